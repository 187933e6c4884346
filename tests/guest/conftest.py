"""Guests as fixtures: each test that asks for one runs in every kind."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from vscsi_emu.testing import GuestUnavailable, HbaProcess, LinuxGuest, QemuGuest, UmlGuest

KINDS = ("uml", "qemu")


def make_guest(kind: str, hbas: Sequence[HbaProcess] = ()) -> LinuxGuest:
    """A guest of `kind` attached to `hbas`."""
    sockets = [hba.socket for hba in hbas]
    return UmlGuest(sockets) if kind == "uml" else QemuGuest(sockets)


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Each kind of guest in turn; skips where this machine cannot run it."""
    chosen: str = request.param
    try:
        make_guest(chosen).require()
    except GuestUnavailable as error:
        pytest.skip(str(error))
    return chosen
