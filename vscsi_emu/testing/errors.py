"""What goes wrong with a guest or with the server it is attached to."""

from __future__ import annotations


class GuestError(Exception):
    """The guest did not do what it was asked; the message ends with what it said last."""


class GuestUnavailable(GuestError):
    """This machine cannot run such a guest; the message says what to install."""


class GuestTimeout(GuestError):
    """The deadline passed; the guest was killed."""


class ServerError(Exception):
    """``vscsi-emu serve`` did not start, or died; the message carries its standard error."""


def tail(text: str, lines: int = 40) -> str:
    """The last `lines` lines of `text`, indented for an error message."""
    return "\n".join(f"    {line}" for line in text.rstrip().splitlines()[-lines:])
