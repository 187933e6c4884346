"""How a front end's request may end badly."""

from __future__ import annotations

from vscsi_emu.virtio.vhost_user import WireError

__all__ = ["RefusedError", "WireError"]


class RefusedError(Exception):
    """A well-formed request that cannot be done. The acknowledgement says so, if one was asked
    for; otherwise the session ends, as the front end could not learn of it (`fatal`)."""

    def __init__(self, text: str, *, fatal: bool = True) -> None:
        super().__init__(text)
        self.fatal = fatal
