"""Power conditions and removable media (SBC-5 4.20, 5.31; SPC-6 6.16)."""

import pytest

from tests.unit.scsi.harness import (
    NOT_READY,
    Sense,
    attention,
    bad_cdb,
    good,
    make_target,
    make_unit,
    parse_fixed,
    refused,
    send,
)
from tests.unit.scsi.reserving import EA, PREEMPT_AND_ABORT, WE, conflict, ok, pr_out, register
from vscsi_emu import _dataplane
from vscsi_emu.scsi import Asc, SenseKey, Target
from vscsi_emu.scsi.cdb import Feature
from vscsi_emu.scsi.table import command_table

TEST_UNIT_READY, REQUEST_SENSE = "00", "03 00 00 00 12 00"
READ_10 = "28 00 00000000 00 0001 00"
STOP, START = "1b 00 00 00 00 00", "1b 00 00 00 01 00"
EJECT, LOAD = "1b 00 00 00 02 00", "1b 00 00 00 03 00"
ACTIVE, IDLE, STANDBY = "1b 00 00 00 10 00", "1b 00 00 00 20 00", "1b 00 00 00 30 00"
PREVENT, ALLOW = "1e 00 00 00 01 00", "1e 00 00 00 00 00"
NO_MEDIUM = Sense(SenseKey.NOT_READY, Asc.MEDIUM_NOT_PRESENT)
PREVENTED = Sense(SenseKey.ILLEGAL_REQUEST, Asc.MEDIUM_REMOVAL_PREVENTED)


def removable(count: int = 1) -> list[Target]:
    unit = make_unit(removable=True)
    return [make_target(unit, number=number) for number in range(count)]


def sensed(target: Target) -> Sense:
    return parse_fixed(good(target, REQUEST_SENSE))


def closed(target: Target) -> int:
    return target.nexuses[0].data_plane.closed


# ── Power conditions ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("cdb", "code"),
    [
        (IDLE, Asc.IDLE_CONDITION_ACTIVATED_BY_COMMAND),
        (STANDBY, Asc.STANDBY_CONDITION_ACTIVATED_BY_COMMAND),
    ],
)
def test_a_media_command_wakes_a_resting_unit(cdb: str, code: Asc) -> None:
    target = make_target(make_unit())
    good(target, cdb)
    assert closed(target) == _dataplane.CLASS_ALL
    assert sensed(target) == Sense(SenseKey.NO_SENSE, code)
    good(target, TEST_UNIT_READY)
    assert sensed(target) == Sense(SenseKey.NO_SENSE, code), "ready, and still resting"
    assert send(target, READ_10).executed
    assert sensed(target) == Sense(SenseKey.NO_SENSE, Asc.NO_ADDITIONAL_SENSE)
    assert closed(target) == 0


def test_from_one_condition_to_another() -> None:
    target = make_target(make_unit())
    good(target, STOP)
    assert refused(target, READ_10) == NOT_READY
    good(target, STANDBY)
    good(target, TEST_UNIT_READY)
    good(target, STOP)
    good(target, ACTIVE)
    assert send(target, READ_10).executed
    good(target, IDLE)
    good(target, START)
    assert closed(target) == 0


def test_control_by_timers_changes_nothing() -> None:
    target = make_target(make_unit())
    good(target, IDLE)
    good(target, "1b 00 00 00 70 00")
    assert sensed(target).code == Asc.IDLE_CONDITION_ACTIVATED_BY_COMMAND


@pytest.mark.parametrize("condition", [4, 5, 6, 8, 9, 0xA, 0xB, 0xC, 0xD, 0xE, 0xF])
def test_other_conditions(condition: int) -> None:
    target = make_target(make_unit())
    assert refused(target, bytes([0x1B, 0, 0, 0, condition << 4])) == bad_cdb(4, 7)


@pytest.mark.parametrize("condition", [0, 1, 2, 3, 7])
def test_other_modifiers(condition: int) -> None:
    target = make_target(make_unit())
    assert refused(target, bytes([0x1B, 0, 0, 1, condition << 4])) == bad_cdb(3, 3)


@pytest.mark.parametrize(("cdb", "flushes"), [(STOP, 1), (IDLE, 1), (STANDBY, 1), (ACTIVE, 0)])
def test_flush(cdb: str, flushes: int) -> None:
    flushed = []

    async def flush() -> None:
        flushed.append(1)

    target = make_target(make_unit(flush=flush))
    good(target, cdb)
    assert len(flushed) == flushes
    no_flush = bytearray.fromhex(cdb)
    no_flush[4] |= 0x04
    good(target, bytes(no_flush))
    assert len(flushed) == flushes


def test_start_and_loej_say_nothing_beside_a_power_condition() -> None:
    (target,) = removable()
    good(target, "1b 00 00 00 12 00")
    good(target, "1b 00 00 00 23 00")
    good(target, TEST_UNIT_READY)


def test_a_reset_wakes() -> None:
    unit = make_unit()
    target = make_target(unit)
    good(target, STOP)
    unit.reset()
    target.nexuses[0].take()
    assert send(target, READ_10).executed


def test_a_resting_unit_excludes_as_before() -> None:
    unit = make_unit()
    a, b = make_target(unit), make_target(unit, number=1)
    register(a, 1)
    ok(pr_out(a, 1, 1, kind=EA))
    conflict(send(b, IDLE))
    conflict(send(b, "1b 00 00 00 11 00"))
    good(b, START)
    good(a, IDLE)
    conflict(send(b, READ_10))


def test_power_condition_page() -> None:
    page = good(make_target(make_unit()), "12 01 8a 00ff 00")
    assert page == bytes.fromhex("00 8a 000e 01 01") + bytes(12)


# ── Removable medium ───────────────────────────────────────────────────────────────────────────


def test_a_fixed_disk_neither_ejects_nor_prevents() -> None:
    target = make_target(make_unit())
    assert good(target, "12 00 00 0060 00")[1] == 0
    assert refused(target, EJECT) == bad_cdb(4, 1)
    assert refused(target, PREVENT).code == Asc.INVALID_COMMAND_OPERATION_CODE
    assert command_table(Feature.NONE).get(0x1E, None) is None


def test_a_removable_disk_says_so() -> None:
    (target,) = removable()
    assert good(target, "12 00 00 0060 00")[1] == 0x80
    found = command_table(Feature.REMOVABLE)
    stop, prevent = found.get(0x1B, None), found.get(0x1E, None)
    assert stop is not None
    assert prevent is not None
    assert stop.usage_map == bytes.fromhex("1b 01 00 0f f7 00")
    assert prevent.usage_map == bytes.fromhex("1e 00 00 00 03 00")


NEED_MEDIUM = [
    TEST_UNIT_READY,
    "25",
    "9e 10 0000000000000000 00000020 00 00",
    READ_10,
    "2a 00 00000000 00 0001 00",
    "35",
    "2f 00 00000000 00 0001 00",
    "93" + "00" * 15,
]


@pytest.mark.parametrize("cdb", NEED_MEDIUM)
def test_without_a_medium(cdb: str) -> None:
    (target,) = removable()
    good(target, EJECT)
    assert closed(target) == _dataplane.CLASS_ALL
    assert refused(target, cdb) == NO_MEDIUM
    assert sensed(target) == NO_MEDIUM
    good(target, LOAD)
    command = send(target, cdb)
    assert command.executed or command.status == 0
    assert closed(target) == 0


@pytest.mark.parametrize("cdb", ["12 00 00 0060 00", "1a 00 3f 00 ff 00", START, STOP, PREVENT])
def test_what_needs_no_medium(cdb: str) -> None:
    (target,) = removable()
    good(target, EJECT)
    good(target, cdb)
    assert refused(target, TEST_UNIT_READY) == NO_MEDIUM


def test_stopping_is_not_ejecting() -> None:
    (target,) = removable()
    good(target, STOP)
    assert refused(target, TEST_UNIT_READY) == NOT_READY
    good(target, START)
    good(target, TEST_UNIT_READY)


def test_loading_is_told_the_others() -> None:
    a, b = removable(2)
    good(a, LOAD)
    assert not b.nexuses[0].pending, "it was there"
    good(a, EJECT)
    good(a, LOAD)
    good(a, TEST_UNIT_READY)
    assert refused(b, TEST_UNIT_READY) == attention(Asc.MEDIUM_MAY_HAVE_CHANGED)


def test_ejecting_flushes() -> None:
    order = []

    async def flush() -> None:
        order.append("flush")

    async def quiesce(_lu: _dataplane.Lu) -> None:
        order.append("quiesce")

    target = make_target(make_unit(removable=True, flush=flush, quiesce=quiesce))
    good(target, EJECT)
    assert order == ["quiesce", "flush"]


def test_prevent_and_allow() -> None:
    a, b = removable(2)
    good(a, PREVENT)
    for target in (a, b):
        assert refused(target, EJECT) == PREVENTED
        assert refused(target, LOAD) == PREVENTED
    good(a, TEST_UNIT_READY)
    good(b, ALLOW)
    assert refused(b, EJECT) == PREVENTED, "each nexus allows for itself"
    good(a, ALLOW)
    good(b, EJECT)
    good(a, PREVENT)
    assert refused(a, LOAD) == PREVENTED


@pytest.mark.parametrize("prevent", [2, 3])
def test_obsolete_values_of_prevent(prevent: int) -> None:
    (target,) = removable()
    assert refused(target, bytes([0x1E, 0, 0, 0, prevent])) == bad_cdb(4, 1)


def test_what_ends_prevention() -> None:
    unit = make_unit(removable=True)
    a, b = make_target(unit), make_target(unit, number=1)
    good(a, PREVENT)
    a.nexus_loss()
    good(b, EJECT)
    good(b, LOAD)
    a.nexuses[0].take()
    a.nexuses[0].take()
    good(a, PREVENT)
    unit.reset()
    b.nexuses[0].take()
    good(b, EJECT)
    good(b, LOAD)
    register(a := make_target(unit, number=2), 0xA)
    register(b, 0xB)
    good(a, PREVENT)
    ok(pr_out(b, PREEMPT_AND_ABORT, 0xB, 0xA))
    good(b, EJECT)


def test_prevention_under_a_reservation() -> None:
    a, b = removable(2)
    register(a, 0xA)
    ok(pr_out(a, 1, 0xA, kind=WE))
    conflict(send(b, PREVENT))
    conflict(send(b, EJECT))
    good(b, ALLOW)
    good(a, EJECT)


def test_a_copy_needs_the_medium() -> None:
    (target,) = removable()
    good(target, EJECT)
    assert refused(target, "83 00" + "00" * 14) == NO_MEDIUM
