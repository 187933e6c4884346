"""RESERVE and RELEASE of SPC-2, and how they meet persistent reservations (SPC-4 5.13.3)."""

import pytest

from tests.unit.scsi.harness import attention, good, make_target, make_unit, refused, send
from tests.unit.scsi.reserving import (
    EA,
    EAAR,
    KINDS,
    REGISTER,
    RESERVE,
    WE,
    WEAR,
    conflict,
    ok,
    pr_out,
    register,
    reservation,
)
from vscsi_emu import _dataplane
from vscsi_emu.scsi import Asc, Target

RESERVE_6, RELEASE_6 = "16", "17"
RESERVE_10, RELEASE_10 = "56", "57"
TEST_UNIT_READY = "00"
READ_10 = "28 00 00000000 00 0001 00"


def two() -> tuple[Target, Target]:
    unit = make_unit()
    return make_target(unit), make_target(unit, number=1)


def closed(target: Target) -> int:
    return target.nexuses[0].data_plane.closed


@pytest.mark.parametrize(("take", "give"), [(RESERVE_6, RELEASE_6), (RESERVE_10, RELEASE_10)])
def test_reserve_and_release(take: str, give: str) -> None:
    a, b = two()
    good(a, take)
    good(a, take)
    conflict(send(b, take))
    conflict(send(b, TEST_UNIT_READY))
    conflict(send(b, READ_10))
    assert (closed(a), closed(b)) == (0, _dataplane.CLASS_ALL)
    good(b, give)
    conflict(send(b, READ_10))
    assert send(a, READ_10).executed
    good(a, give)
    assert closed(b) == 0
    assert send(b, READ_10).executed
    good(b, take)


@pytest.mark.parametrize(
    "cdb",
    [
        "03 00 00 00 12 00",
        "12 00 00 00 60 00",
        "25",
        "a0 00 00 00 00 00 00000100 00 00",
        "4d 00 00 00 00 00 00 0010 00",
        "1b 00 00 00 01 00",
    ],
)
def test_allowed_while_another_has_reserved(cdb: str) -> None:
    a, b = two()
    good(a, RESERVE_6)
    good(b, cdb)


@pytest.mark.parametrize(
    "cdb", ["1a 00 3f 00 ff 00", "1b 00 00 00 00 00", "1d 00", "15 10", "a3 0d 00 00 0000 00000010"]
)
def test_excluded_while_another_has_reserved(cdb: str) -> None:
    a, b = two()
    good(a, RESERVE_6)
    conflict(send(b, cdb))


def test_a_lost_nexus_has_reserved_nothing() -> None:
    a, b = two()
    good(a, RESERVE_6)
    a.nexus_loss()
    assert send(b, READ_10).executed


def test_a_unit_reset_releases() -> None:
    a, b = two()
    good(a, RESERVE_6)
    a.nexuses[0].unit.reset()
    b.nexuses[0].take()
    assert send(b, READ_10).executed


def test_an_initiator_port_that_goes_away_releases() -> None:
    a, b = two()
    good(a, RESERVE_6)
    a.close()
    assert refused(b, "00") == attention(Asc.INQUIRY_DATA_HAS_CHANGED)
    assert send(b, READ_10).executed
    assert closed(b) == 0


@pytest.mark.parametrize("action", range(4))
def test_persistent_reserve_in_conflicts_with_a_reservation(action: int) -> None:
    a, b = two()
    good(a, RESERVE_6)
    for target in (a, b):
        conflict(send(target, bytes([0x5E, action, 0, 0, 0, 0, 0, 1, 0, 0])))


def test_persistent_reserve_out_conflicts_with_a_reservation() -> None:
    a, b = two()
    good(a, RESERVE_6)
    for target in (a, b):
        conflict(pr_out(target, REGISTER, 0, 1))
    good(a, RELEASE_6)
    ok(pr_out(b, REGISTER, 0, 1))


def test_a_registration_excludes_reserve_and_release() -> None:
    a, b = two()
    register(b, 0xB)
    for target in (a, b):
        conflict(send(target, RESERVE_6))
        conflict(send(target, RELEASE_6))


@pytest.mark.parametrize("kind", KINDS)
def test_compatible_reservation_handling(kind: int) -> None:
    """Who has the access anyhow is told GOOD, and the persistent reservation stays."""
    unit = make_unit()
    holder, registered, stranger = (make_target(unit, number=n) for n in range(3))
    register(holder, 1)
    register(registered, 2)
    ok(pr_out(holder, RESERVE, 1, kind=kind))
    before = reservation(holder)
    for cdb in (RESERVE_6, RELEASE_6):
        good(holder, cdb)
        if kind in (WE, EA):
            conflict(send(registered, cdb))
        else:
            good(registered, cdb)
        conflict(send(stranger, cdb))
    assert reservation(holder) == before == (0 if kind in (WEAR, EAAR) else 1, kind)
    assert send(holder, READ_10).executed
