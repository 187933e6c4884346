"""Whatever comes, a command gets exactly one answer."""

import asyncio

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.unit.scsi.harness import Recorder, Sense, make_target, make_unit, refused
from vscsi_emu.scsi import (
    REPORT_LUNS_WLUN,
    Asc,
    DataOutTooShort,
    Feature,
    LogicalUnit,
    SenseKey,
    Status,
    Target,
    handle,
)
from vscsi_emu.scsi.cdb import CommandType
from vscsi_emu.scsi.mode_pages import direct_access_pages
from vscsi_emu.scsi.table import command_table

COMMANDS = list(command_table(Feature.THIN))


@st.composite
def likely_cdbs(draw: st.DrawFn) -> bytes:
    """CDBs that mean something: bits of the usage map of a command, any of them set."""
    command: CommandType = draw(st.sampled_from(COMMANDS))
    raw = bytearray(draw(st.binary(min_size=32, max_size=32)))
    for offset, mask in enumerate(command.usage_map):
        raw[offset] &= mask
    raw[0] = command.opcode
    if command.service_action is not None:
        raw[1] = command.service_action
    return bytes(raw)


luns = st.sampled_from([0, 1, 9, None, REPORT_LUNS_WLUN])


def answer(cdb: bytes, lun: int | None, data_out: bytes) -> Recorder:
    target = Target({0: make_unit(), 1: make_unit(discard=False, read_only=True)})
    target.nexuses[0].take()
    command = Recorder(cdb, data_out)
    try:
        if (later := handle(command, target, lun)) is not None:
            asyncio.run(later)
    except DataOutTooShort:
        assert command.answers == 0
        return command
    assert command.answers == 1
    if command.status == Status.CHECK_CONDITION:
        assert command.sense[0] in (0x70, 0x72)
        # Nothing here may be our own mistake.
        assert command.sense[2] & 0xF not in (SenseKey.NO_SENSE, SenseKey.HARDWARE_ERROR)
    return command


@given(st.binary(max_size=32), luns, st.binary(max_size=64))
@example(b"", 0, b"")
def test_any_cdb(cdb: bytes, lun: int | None, data_out: bytes) -> None:
    answer(cdb, lun, data_out)


@given(likely_cdbs(), luns, st.binary(max_size=300))
def test_any_command(cdb: bytes, lun: int | None, data_out: bytes) -> None:
    answer(cdb, lun, data_out)


PAGES = [page.default for page in direct_access_pages(write_cache=True)]


@given(st.lists(st.sampled_from(PAGES), max_size=4), st.integers(0, 200), st.integers(0, 255))
def test_mode_select_with_one_byte_changed(pages: list[bytes], where: int, value: int) -> None:
    data = bytearray(bytes(8) + b"".join(pages))
    data[where % len(data)] = value
    answer(bytes([0x55, 0x10, 0, 0, 0, 0, 0]) + len(data).to_bytes(2) + bytes(7), 0, bytes(data))


# ── Mistakes of our own ────────────────────────────────────────────────────────────────────────


async def _fail() -> None:
    raise RuntimeError("the roof is on fire")


@pytest.mark.parametrize("cdb", ["9e10 0000000000000000 00000020", "1b00000000"])
def test_an_internal_error_is_answered_and_logged(
    cdb: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    unit = make_unit(flush=_fail)
    monkeypatch.setattr(LogicalUnit, "thin", property(lambda unit: 1 // 0))
    monkeypatch.setattr(LogicalUnit, "enter", lambda unit, condition: None)
    assert refused(make_target(unit), cdb) == Sense(
        SenseKey.HARDWARE_ERROR, Asc.INTERNAL_TARGET_FAILURE
    )
    assert caplog.records[0].exc_info


def test_a_cancelled_wait_leaves_the_answer_to_the_transport() -> None:
    async def scenario() -> int:
        forever = asyncio.Event()

        async def flush() -> None:
            await forever.wait()

        command = Recorder(bytes.fromhex("1b0000000000"))
        later = handle(command, make_target(make_unit(flush=flush)), 0)
        assert later is not None
        task = asyncio.ensure_future(later)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return command.answers

    assert asyncio.run(scenario()) == 0
