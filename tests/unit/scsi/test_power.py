"""Power conditions and removable media: START STOP UNIT, PREVENT ALLOW MEDIUM REMOVAL."""

from __future__ import annotations

import pytest

from tests.unit.scsi.harness import (
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
from vscsi_emu import _dataplane
from vscsi_emu.scsi import Asc, SenseKey, Target
from vscsi_emu.scsi.readiness import PowerCondition

TEST_UNIT_READY, REQUEST_SENSE = "000000000000", "030000001200"
READ_10, READ_CAPACITY = "28000000000000000100", "25"
INQUIRY = "120000006000"
EJECT, LOAD, STOP, START = "1b00000002", "1b00000003", "1b00000000", "1b00000001"
PREVENT, ALLOW = "1e00000001", "1e00000000"
NO_MEDIUM = Sense(SenseKey.NOT_READY, Asc.MEDIUM_NOT_PRESENT)
PREVENTED = Sense(SenseKey.ILLEGAL_REQUEST, Asc.MEDIUM_REMOVAL_PREVENTED)


def closed(target: Target) -> bool:
    return target.nexuses[0].data_plane.closed == _dataplane.CLASS_ALL


def condition(target: Target) -> int:
    return parse_fixed(good(target, REQUEST_SENSE)).code


@pytest.mark.parametrize(
    ("cdb", "entered", "reported"),
    [
        ("1b00000010", PowerCondition.ACTIVE, Asc.NO_ADDITIONAL_SENSE),
        ("1b00000020", PowerCondition.IDLE_A, Asc.IDLE_CONDITION_ACTIVATED_BY_COMMAND),
        ("1b00000120", PowerCondition.IDLE_B, Asc.IDLE_B_CONDITION_ACTIVATED_BY_COMMAND),
        ("1b00000220", PowerCondition.IDLE_C, Asc.IDLE_C_CONDITION_ACTIVATED_BY_COMMAND),
        ("1b00000030", PowerCondition.STANDBY_Z, Asc.STANDBY_CONDITION_ACTIVATED_BY_COMMAND),
        ("1b00000130", PowerCondition.STANDBY_Y, Asc.STANDBY_Y_CONDITION_ACTIVATED_BY_COMMAND),
    ],
)
def test_power_conditions(cdb: str, entered: PowerCondition, reported: Asc) -> None:
    unit = make_unit()
    target = make_target(unit)
    good(target, STOP)
    good(target, cdb)
    assert unit.readiness.power is entered
    assert condition(target) == reported
    good(target, TEST_UNIT_READY)
    assert unit.readiness.power is entered
    assert closed(target) is (entered is not PowerCondition.ACTIVE)
    assert send(target, READ_10).executed
    assert unit.readiness.power is PowerCondition.ACTIVE
    assert not closed(target)


@pytest.mark.parametrize(
    ("cdb", "sense"),
    [
        ("1b00000040", bad_cdb(4, 7)),
        ("1b000000f0", bad_cdb(4, 7)),
        ("1b00000320", bad_cdb(3, 3)),
        ("1b00000230", bad_cdb(3, 3)),
        ("1b00000110", bad_cdb(3, 3)),
    ],
)
def test_reserved_power_conditions(cdb: str, sense: Sense) -> None:
    assert refused(make_target(make_unit()), cdb) == sense


def test_lu_control_changes_nothing_without_timers() -> None:
    unit = make_unit()
    target = make_target(unit)
    good(target, STOP)
    good(target, "1b00000070")
    assert unit.readiness.power is PowerCondition.STOPPED


@pytest.mark.parametrize(("cdb", "flushes"), [("1b00000030", 1), ("1b00000034", 0), (EJECT, 1)])
def test_what_is_flushed_before(cdb: str, flushes: int) -> None:
    flushed = []

    async def flush() -> None:
        flushed.append(1)

    good(make_target(make_unit(flush=flush, removable=True)), cdb)
    assert len(flushed) == flushes


def test_rmb() -> None:
    assert good(make_target(make_unit(removable=True)), INQUIRY)[1] == 0x80
    assert good(make_target(make_unit()), INQUIRY)[1] == 0


def test_an_ejected_medium_is_not_present_until_it_is_loaded() -> None:
    unit = make_unit(removable=True)
    target, other = make_target(unit), make_target(unit)
    good(target, EJECT)
    for each in (target, other):
        assert closed(each)
        for cdb in (TEST_UNIT_READY, READ_10, READ_CAPACITY):
            assert refused(each, cdb) == NO_MEDIUM
        assert parse_fixed(good(each, REQUEST_SENSE)) == NO_MEDIUM
        good(each, INQUIRY)
    good(target, START)
    assert refused(target, TEST_UNIT_READY) == NO_MEDIUM
    good(target, LOAD)
    good(target, TEST_UNIT_READY)
    assert refused(other, TEST_UNIT_READY) == attention(Asc.MEDIUM_MAY_HAVE_CHANGED)
    assert send(other, READ_10).executed


def test_a_stop_does_not_eject() -> None:
    target = make_target(make_unit(removable=True))
    good(target, STOP)
    assert refused(target, TEST_UNIT_READY).code == Asc.INITIALIZING_COMMAND_REQUIRED
    good(target, LOAD)
    good(target, TEST_UNIT_READY)


def test_removal_is_prevented_until_every_nexus_allows_it() -> None:
    unit = make_unit(removable=True)
    target, other = make_target(unit), make_target(unit)
    good(target, PREVENT)
    good(other, PREVENT)
    assert refused(target, EJECT) == PREVENTED
    assert refused(target, LOAD) == PREVENTED
    good(target, ALLOW)
    assert refused(target, EJECT) == PREVENTED
    good(target, STOP)
    good(other, ALLOW)
    good(target, EJECT)


@pytest.mark.parametrize("end", ["reset", "nexus_loss", "close"])
def test_what_ends_a_prevention(end: str) -> None:
    unit = make_unit(removable=True)
    target, other = make_target(unit), make_target(unit)
    good(other, PREVENT)
    {"reset": unit.reset, "nexus_loss": other.nexus_loss, "close": other.close}[end]()
    target.nexuses[0].take()
    good(target, EJECT)


def test_obsolete_codes_of_prevent() -> None:
    assert refused(make_target(make_unit()), "1e00000002") == bad_cdb(4, 1)
