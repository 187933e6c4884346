"""Unit attention conditions and the gate that they close (SAM-6)."""

import asyncio
import errno

import pytest

from tests.unit.scsi.harness import (
    NO_UNIT,
    NOT_READY,
    Sense,
    attention,
    good,
    make_target,
    make_unit,
    parse_fixed,
    refused,
    send,
)
from vscsi_emu import _dataplane
from vscsi_emu.scsi import (
    REPORT_LUNS_WLUN,
    Asc,
    Nexus,
    ScsiError,
    SenseKey,
    Target,
    decode_lun,
)
from vscsi_emu.scsi.readiness import PowerCondition

TEST_UNIT_READY = "00"
READ_10 = "28"
REPORT_LUNS = "a000 0000 0000 00000100 0000"
REQUEST_SENSE = "03 00 00 00 ff 00"


def closed(nexus: Nexus) -> bool:
    return nexus.data_plane.closed == _dataplane.CLASS_ALL


# ── Reporting ──────────────────────────────────────────────────────────────────────────────────


def test_power_on_is_reported_once_and_closes_the_gate_until_then() -> None:
    target = Target({0: make_unit()})
    assert closed(target.nexuses[0])
    assert refused(target, TEST_UNIT_READY) == attention(Asc.POWER_ON_OCCURRED)
    assert target.nexuses[0].data_plane.closed == 0
    good(target, TEST_UNIT_READY)


def test_a_media_command_reports_it_and_is_not_executed() -> None:
    target = Target({0: make_unit()})
    assert refused(target, READ_10) == attention(Asc.POWER_ON_OCCURRED)
    assert send(target, READ_10).executed


def test_an_unknown_command_does_not_report_it() -> None:
    target = Target({0: make_unit()})
    assert refused(target, "ff").code == Asc.INVALID_COMMAND_OPERATION_CODE
    assert refused(target, TEST_UNIT_READY) == attention(Asc.POWER_ON_OCCURRED)


@pytest.mark.parametrize("cdb", ["120000ff00", REPORT_LUNS])
def test_inquiry_and_report_luns_neither_report_nor_clear_it(cdb: str) -> None:
    target = Target({0: make_unit()})
    good(target, cdb)
    assert refused(target, TEST_UNIT_READY) == attention(Asc.POWER_ON_OCCURRED)


def test_request_sense_reports_it_as_data() -> None:
    target = Target({0: make_unit()})
    assert parse_fixed(good(target, REQUEST_SENSE)) == attention(Asc.POWER_ON_OCCURRED)
    assert parse_fixed(good(target, REQUEST_SENSE)) == Sense(SenseKey.NO_SENSE, 0)
    good(target, TEST_UNIT_READY)


def test_request_sense_in_descriptor_format() -> None:
    target = Target({0: make_unit()})
    assert good(target, "03 01 00 00 ff 00") == bytes.fromhex("72 06 29 01 00000000")


def test_request_sense_cut_by_allocation_length() -> None:
    target = Target({0: make_unit()})
    assert good(target, "03 00 00 00 03 00") == bytes.fromhex("70 00 06")


# ── The queue ──────────────────────────────────────────────────────────────────────────────────


def test_no_duplicates_in_order() -> None:
    nexus = make_target(make_unit()).nexuses[0]
    for code in (
        Asc.MODE_PARAMETERS_CHANGED,
        Asc.CAPACITY_DATA_HAS_CHANGED,
        Asc.MODE_PARAMETERS_CHANGED,
    ):
        nexus.establish(code)
    assert nexus.pending == (Asc.MODE_PARAMETERS_CHANGED, Asc.CAPACITY_DATA_HAS_CHANGED)


def test_a_reset_comes_first_and_one_stands_for_lower_ones() -> None:
    nexus = make_target(make_unit()).nexuses[0]
    nexus.establish(Asc.CAPACITY_DATA_HAS_CHANGED)
    nexus.establish(Asc.I_T_NEXUS_LOSS_OCCURRED)
    nexus.establish(Asc.BUS_DEVICE_RESET_FUNCTION_OCCURRED)
    nexus.establish(Asc.I_T_NEXUS_LOSS_OCCURRED)
    assert nexus.pending == (
        Asc.BUS_DEVICE_RESET_FUNCTION_OCCURRED,
        Asc.CAPACITY_DATA_HAS_CHANGED,
    )


def test_the_gate_opens_after_the_last_one() -> None:
    target = make_target(make_unit())
    nexus = target.nexuses[0]
    nexus.establish(Asc.MODE_PARAMETERS_CHANGED)
    nexus.establish(Asc.CAPACITY_DATA_HAS_CHANGED)
    assert refused(target, READ_10) == attention(Asc.MODE_PARAMETERS_CHANGED)
    assert closed(nexus)
    assert refused(target, READ_10) == attention(Asc.CAPACITY_DATA_HAS_CHANGED)
    assert not closed(nexus)


def test_whoever_listens_hears_of_each() -> None:
    nexus = make_target(make_unit()).nexuses[0]
    heard: list[Asc] = []
    nexus.on_attention = heard.append
    nexus.establish(Asc.CAPACITY_DATA_HAS_CHANGED)
    assert heard == [Asc.CAPACITY_DATA_HAS_CHANGED]


def test_a_deferred_error_comes_after_unit_attentions() -> None:
    target = make_target(make_unit())
    nexus = target.nexuses[0]
    nexus.defer(ScsiError(SenseKey.MEDIUM_ERROR, Asc.WRITE_ERROR))
    assert closed(nexus)
    nexus.establish(Asc.CAPACITY_DATA_HAS_CHANGED)
    assert refused(target, READ_10) == attention(Asc.CAPACITY_DATA_HAS_CHANGED)
    assert refused(target, READ_10) == Sense(SenseKey.MEDIUM_ERROR, Asc.WRITE_ERROR, deferred=True)
    assert send(target, READ_10).executed


# ── Events of units and targets ────────────────────────────────────────────────────────────────


@pytest.mark.normative("scsi.evt.d14")
def test_reset_tells_every_nexus_and_restores_the_defaults() -> None:
    unit = make_unit()
    first, second = make_target(unit), make_target(unit, lun=3)
    # WCE 0, D_SENSE 1.
    good(first, "1510000018 00", data_out=bytes(4) + b"\x08\x12" + bytes(18))
    unit.enter(PowerCondition.STOPPED)
    unit.reset()
    assert refused(first, TEST_UNIT_READY) == attention(Asc.BUS_DEVICE_RESET_FUNCTION_OCCURRED)
    assert refused(second, READ_10, lun=3) == attention(Asc.BUS_DEVICE_RESET_FUNCTION_OCCURRED)
    assert unit.data_plane.policy.write_cache
    assert unit.readiness.power is PowerCondition.ACTIVE
    assert refused(second, READ_10, lun=3) == attention(Asc.MODE_PARAMETERS_CHANGED)
    assert send(first, READ_10).executed


def test_nexus_loss_concerns_this_nexus_only() -> None:
    unit = make_unit()
    lost, other = make_target(unit), make_target(unit)
    lost.nexus_loss()
    assert refused(lost, TEST_UNIT_READY) == attention(Asc.I_T_NEXUS_LOSS_OCCURRED)
    good(other, TEST_UNIT_READY)


@pytest.mark.normative("scsi.evt.d15")
def test_a_new_unit_is_reported_until_the_inventory_is_read() -> None:
    target = make_target(make_unit())
    target.attach({1: make_unit()})
    nexus = target.nexuses[0]
    assert nexus.pending == (Asc.REPORTED_LUNS_DATA_HAS_CHANGED,)
    good(target, REPORT_LUNS, lun=REPORT_LUNS_WLUN)
    assert not closed(nexus)
    assert target.nexuses[1].pending == (Asc.POWER_ON_OCCURRED,)
    target.attach({2: make_unit()})
    assert refused(target, TEST_UNIT_READY) == attention(Asc.REPORTED_LUNS_DATA_HAS_CHANGED)


@pytest.mark.normative("scsi.evt.d13")
def test_a_unit_that_is_gone() -> None:
    unit = make_unit()
    target = make_target(unit)
    target.attach({1: make_unit()})
    target.detach([0])
    assert refused(target, TEST_UNIT_READY, lun=0) == NO_UNIT
    assert refused(target, READ_10, lun=0) == NO_UNIT
    assert unit.nexuses == []
    with pytest.raises(KeyError):
        target.detach([0])


def test_luiclr_reporting_on_one_unit_clears_the_others() -> None:
    target = make_target(make_unit())
    target.attach({1: make_unit()})
    assert refused(target, TEST_UNIT_READY) == attention(Asc.REPORTED_LUNS_DATA_HAS_CHANGED)
    assert target.nexuses[1].pending == (Asc.POWER_ON_OCCURRED,)


def test_close_disconnects() -> None:
    unit = make_unit()
    target = make_target(unit)
    target.close()
    assert unit.nexuses == []
    assert target.luns == []


def test_resize() -> None:
    unit = make_unit()
    target = make_target(unit)
    unit.resize(1000)
    assert unit.data_plane.policy.blocks == 1000
    assert refused(target, READ_10) == attention(Asc.CAPACITY_DATA_HAS_CHANGED)
    assert good(target, "25") == bytes.fromhex("000003e7 00000200")
    unit.resize(1000)
    good(target, TEST_UNIT_READY)
    with pytest.raises(ValueError, match="2049 blocks"):
        unit.resize(2049)


# ── Units that are not there, and the well known one ───────────────────────────────────────────


@pytest.mark.parametrize("lun", [9, None])
def test_absent_unit(lun: int | None) -> None:
    target = make_target(make_unit())
    for cdb in (TEST_UNIT_READY, READ_10, "ff", "a30c"):
        assert refused(target, cdb, lun=lun) == NO_UNIT
    assert parse_fixed(good(target, REQUEST_SENSE, lun=lun)) == NO_UNIT
    assert good(target, REPORT_LUNS, lun=lun) == bytes.fromhex("00000008 00000000") + bytes(8)


@pytest.mark.normative("scsi.req.d1")
def test_well_known_unit() -> None:
    target = make_target(make_unit())
    lun = decode_lun(bytes.fromhex("c101000000000000"))
    good(target, TEST_UNIT_READY, lun=lun)
    assert good(target, REPORT_LUNS, lun=lun) == bytes.fromhex("00000008 00000000") + bytes(8)
    assert parse_fixed(good(target, REQUEST_SENSE, lun=lun)) == Sense(SenseKey.NO_SENSE, 0)
    assert refused(target, READ_10, lun=lun).code == Asc.INVALID_COMMAND_OPERATION_CODE


# ── START STOP UNIT ────────────────────────────────────────────────────────────────────────────

STOP, START, STOP_IMMED, STOP_NO_FLUSH = "1b00000000", "1b00000001", "1b01000000", "1b00000004"


def test_stopped_unit() -> None:
    unit = make_unit()
    target, other = make_target(unit), make_target(unit)
    good(target, STOP)
    for each in (target, other):
        assert closed(each.nexuses[0])
        assert refused(each, TEST_UNIT_READY) == NOT_READY
        assert refused(each, READ_10) == NOT_READY
        assert parse_fixed(good(each, REQUEST_SENSE)) == NOT_READY
        good(each, "120000ff00")
        good(each, "25")
    # A unit attention is reported first, and does not open the gate.
    other.nexus_loss()
    assert refused(other, READ_10) == attention(Asc.I_T_NEXUS_LOSS_OCCURRED)
    assert refused(other, READ_10) == NOT_READY
    good(target, START)
    assert not closed(other.nexuses[0])
    assert send(other, READ_10).executed


def test_stopping_waits_then_flushes() -> None:
    steps: list[str] = []

    async def quiesce(lu: _dataplane.Lu) -> None:
        assert lu == unit.data_plane
        steps.append("quiesce")

    async def flush() -> None:
        await asyncio.sleep(0)
        assert unit.readiness.power is PowerCondition.STOPPED
        steps.append("flush")

    unit = make_unit(flush=flush, quiesce=quiesce)
    target = make_target(unit)
    good(target, STOP)
    assert steps == ["quiesce", "flush"]
    good(target, STOP_NO_FLUSH)
    assert steps == ["quiesce", "flush"]


def test_loej_needs_a_removable_medium() -> None:
    sense = refused(make_target(make_unit()), "1b00000002")
    assert (sense.code, sense.pointer) == (Asc.INVALID_FIELD_IN_CDB, (4, 1))


async def _fail() -> None:
    raise OSError(errno.EIO, "Input/output error")


def test_a_failed_flush_is_the_status() -> None:
    target = make_target(make_unit(flush=_fail))
    assert refused(target, STOP) == Sense(SenseKey.MEDIUM_ERROR, Asc.WRITE_ERROR)


def test_with_immed_a_failed_flush_is_deferred() -> None:
    target = make_target(make_unit(flush=_fail))
    good(target, STOP_IMMED)
    assert refused(target, START) == Sense(SenseKey.MEDIUM_ERROR, Asc.WRITE_ERROR, deferred=True)
    good(target, START)


@pytest.mark.parametrize(
    ("immed", "plain", "outside"),
    [
        ("35020000000000000000", "35000000000000000000", "3502000007ff0000 0200"),
        ("9102", "91", "91020000000000000800"),
    ],
)
def test_synchronize_cache_with_immed(immed: str, plain: str, outside: str) -> None:
    """What is lost then is told of by the next command of this nexus."""
    unit = make_unit(flush=_fail)
    target, other = make_target(unit), make_target(unit, number=1)
    good(target, immed)
    good(other, "00")
    assert refused(target, "00") == Sense(SenseKey.MEDIUM_ERROR, Asc.WRITE_ERROR, deferred=True)
    good(target, "00")
    assert send(target, plain).executed
    assert refused(target, outside) == Sense(
        SenseKey.ILLEGAL_REQUEST, Asc.LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE, (2, None)
    )
    code = int(immed[:2], 16)
    usage = unit.commands.usage_maps[code]
    assert not usage[1] & 2, "the data plane leaves it to us"
    command = unit.commands.get(code, None)
    assert command is not None
    assert command.usage_map[1] & 2


LOST = Sense(SenseKey.MEDIUM_ERROR, Asc.WRITE_ERROR, deferred=True)


def test_whoever_wrote_to_a_cache_that_is_lost_hears_of_it_once() -> None:
    unit = make_unit(flush=_fail)
    sender, writer, idle = (make_target(unit, number=number) for number in range(3))
    for target in (sender, writer):
        target.nexuses[0].data_plane.wrote()
    assert refused(sender, STOP) == Sense(SenseKey.MEDIUM_ERROR, Asc.WRITE_ERROR)
    good(sender, START)
    assert good(writer, "12 00 00 00ff 00"), "reports no deferred error"
    assert refused(writer, READ_10) == LOST
    assert send(writer, READ_10).executed
    assert send(idle, READ_10).executed


def test_a_good_flush_is_the_end_of_what_can_be_lost() -> None:
    failing = False

    async def flush() -> None:
        if failing:
            await _fail()

    unit = make_unit(flush=flush)
    sender, writer = make_target(unit), make_target(unit, number=1)
    writer.nexuses[0].data_plane.wrote()
    good(sender, STOP)
    good(sender, START)
    failing = True
    assert refused(sender, STOP) == Sense(SenseKey.MEDIUM_ERROR, Asc.WRITE_ERROR)
    good(sender, START)
    assert send(writer, READ_10).executed


def test_unit_attentions_come_before_what_is_lost() -> None:
    unit = make_unit(flush=_fail)
    sender, writer = make_target(unit), make_target(unit, number=1)
    writer.nexuses[0].data_plane.wrote()
    unit.establish(Asc.MODE_PARAMETERS_CHANGED)
    with pytest.raises(ScsiError):
        asyncio.run(unit.flush(by=sender.nexuses[0]))
    assert refused(writer, "00") == attention(Asc.MODE_PARAMETERS_CHANGED)
    assert refused(writer, "00") == LOST
    good(writer, "00")


def test_self_test() -> None:
    good(make_target(make_unit()), "1d0400000000")
    good(make_target(make_unit(flush=_fail)), "1d0000000000")
    assert refused(make_target(make_unit(flush=_fail)), "1d0400000000") == Sense(
        SenseKey.HARDWARE_ERROR, Asc.LOGICAL_UNIT_FAILED_SELF_TEST
    )
