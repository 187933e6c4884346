"""SEND DIAGNOSTIC, RECEIVE DIAGNOSTIC RESULTS and self-tests (SPC-4 5.15, 6.28, 6.42)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager

import pytest

from tests.unit.scsi.harness import (
    Recorder,
    Sense,
    bad_cdb,
    bad_list,
    good,
    make_target,
    make_unit,
    parse_fixed,
    refused,
    send,
)
from vscsi_emu import _dataplane
from vscsi_emu.scsi import Asc, LogicalUnit, SenseKey, Status, Target, handle
from vscsi_emu.scsi.self_tests import NOWHERE, Result, SelfTestCode

ABORT, SHORT, EXTENDED = 0b100, 0b001, 0b010
FOREGROUND_SHORT, FOREGROUND_EXTENDED = 0b101, 0b110
TESTING = Sense(SenseKey.NOT_READY, Asc.SELF_TEST_IN_PROGRESS)
FAILED = Sense(SenseKey.HARDWARE_ERROR, Asc.LOGICAL_UNIT_FAILED_SELF_TEST)


def send_cdb(code: int = 0, *, flags: int = 0, length: int = 0) -> bytes:
    return bytes([0x1D, code << 5 | flags, 0]) + length.to_bytes(2) + b"\0"


SELFTEST = send_cdb(flags=0x04)


def without_progress(sense: bytes) -> Sense:
    read = parse_fixed(sense)
    return Sense(read.key, read.code)


# ── Diagnostic pages ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("pcv", ["01", "00"])
def test_the_page_that_lists_the_pages(pcv: str) -> None:
    target = make_target(make_unit())
    good(target, send_cdb(flags=0x10, length=4), data_out=bytes(4))
    assert good(target, f"1c {pcv} 00 00ff 00") == bytes.fromhex("00 00 0001 00")
    assert good(target, f"1c {pcv} 00 0004 00") == bytes.fromhex("00 00 0001")


def test_pages_that_are_not_there() -> None:
    target = make_target(make_unit())
    assert refused(target, "1c 01 40 00ff 00") == bad_cdb(2, 7)
    page = bytes([0x40, 0, 0, 0])
    assert refused(target, send_cdb(flags=0x10, length=4), data_out=page) == bad_list(0)


def test_pages_to_send() -> None:
    target = make_target(make_unit())
    assert refused(target, send_cdb(length=4), data_out=bytes(4)) == bad_cdb(1, 4)
    for length, data in ((3, bytes(3)), (4, bytes([0, 0, 0, 1]))):
        cdb = send_cdb(flags=0x10, length=length)
        assert refused(target, cdb, data_out=data) == bad_cdb(3, None)
    data = bytes([0, 0, 0, 1, 0])
    assert refused(target, send_cdb(flags=0x10, length=5), data_out=data) == bad_list(2)


# ── What is asked for ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("cdb", "byte", "bit"),
    [
        (send_cdb(0b011), 1, 7),
        (send_cdb(0b111), 1, 7),
        (send_cdb(ABORT), 1, 7),  # there is none
        (send_cdb(SHORT, flags=0x04), 1, 7),
        (send_cdb(flags=0x04, length=4), 3, None),
        (send_cdb(SHORT, length=4), 3, None),
        (send_cdb(SHORT, flags=0x10, length=4), 3, None),
    ],
)
def test_what_cannot_be(cdb: bytes, byte: int, bit: int | None) -> None:
    assert refused(make_target(make_unit()), cdb, data_out=bytes(4)) == bad_cdb(byte, bit)


def test_nothing_at_all() -> None:
    for flags in (0, 0x10, 0x13):
        good(make_target(make_unit()), send_cdb(flags=flags))


def test_without_a_medium() -> None:
    unit = make_unit(removable=True)
    target = make_target(unit)
    unit.eject()
    no_medium = Sense(SenseKey.NOT_READY, Asc.MEDIUM_NOT_PRESENT)
    assert refused(target, send_cdb(FOREGROUND_EXTENDED)) == no_medium
    good(target, send_cdb(FOREGROUND_SHORT))


# ── Results ────────────────────────────────────────────────────────────────────────────────────


def results(unit: LogicalUnit) -> list[tuple[int, int]]:
    return [(test.code, test.result) for test in unit.self_tests]


@pytest.mark.parametrize("code", [SHORT, EXTENDED, FOREGROUND_SHORT, FOREGROUND_EXTENDED])
def test_one_that_passes(code: int) -> None:
    unit = make_unit()
    target = make_target(unit)
    good(target, send_cdb(code))
    assert results(unit) == [(code, Result.PASSED)]
    (test,) = unit.self_tests
    assert (test.hours, test.address, test.key, test.asc) == (0, NOWHERE, 0, 0)
    assert target.nexuses[0].data_plane.closed == 0


async def _full() -> None:
    raise OSError(5, "Input/output error")


@pytest.mark.parametrize("code", [SHORT, EXTENDED, FOREGROUND_SHORT, FOREGROUND_EXTENDED])
def test_one_that_fails_to_flush(code: int) -> None:
    unit = make_unit(flush=_full)
    target = make_target(unit)
    if code in (FOREGROUND_SHORT, FOREGROUND_EXTENDED):
        assert refused(target, send_cdb(code)) == FAILED
    else:
        good(target, send_cdb(code))
        # What runs in the background is no deferred error.
        good(target, "00")
    assert results(unit) == [(code, Result.FIRST_SEGMENT_FAILED)]
    (test,) = unit.self_tests
    assert (test.address, test.key, test.asc) == (NOWHERE, SenseKey.MEDIUM_ERROR, Asc.WRITE_ERROR)


def test_the_default_one_is_not_remembered() -> None:
    unit = make_unit(flush=_full)
    assert refused(make_target(unit), SELFTEST) == FAILED
    unit = make_unit()
    good(make_target(unit), SELFTEST)
    assert results(unit) == []


def test_an_extended_one_reads_the_medium(monkeypatch: pytest.MonkeyPatch) -> None:
    class Scan:
        progress = 0

        def __init__(self, _: _dataplane.Lu) -> None:
            pass

        def run(self) -> tuple[int, int, int]:
            return 77, 3, 0x1114

    monkeypatch.setattr(_dataplane, "Scan", Scan)
    unit = make_unit()
    target = make_target(unit)
    good(target, send_cdb(FOREGROUND_SHORT))
    assert refused(target, send_cdb(FOREGROUND_EXTENDED)) == FAILED
    latest, _ = unit.self_tests
    assert latest.result is Result.SECOND_SEGMENT_FAILED
    assert (latest.address, latest.key, latest.asc) == (77, 3, 0x1114)


def test_20_are_remembered() -> None:
    unit = make_unit()
    target = make_target(unit)
    for n in range(21):
        good(target, send_cdb(SHORT if n else FOREGROUND_SHORT))
    assert results(unit) == 20 * [(SHORT, Result.PASSED)]


# ── While one runs ─────────────────────────────────────────────────────────────────────────────


class Slow:
    """Storage that is being flushed until it is let go."""

    def __init__(self) -> None:
        self.event = asyncio.Event()

    async def flush(self) -> None:
        await self.event.wait()


@asynccontextmanager
async def running(code: int, slow: Slow, target: Target) -> AsyncIterator[Recorder]:
    """A self-test runs inside, and has ended on leaving."""
    command = Recorder(send_cdb(code).ljust(32, b"\0"))
    later = handle(command, target, 0)
    assert later is not None
    task = asyncio.ensure_future(later)
    await asyncio.sleep(0)
    try:
        yield command
    finally:
        slow.event.set()
        await asyncio.wait_for(task, 10)


def now(target: Target, cdb: str | bytes) -> Recorder:
    """A command that ends at once."""
    raw = bytes.fromhex(cdb) if isinstance(cdb, str) else cdb
    command = Recorder(raw.ljust(32, b"\0"))
    assert handle(command, target, 0) is None
    return command


def run(work: Awaitable[None]) -> None:
    async def main() -> None:
        await asyncio.wait_for(work, 10)

    asyncio.run(main())


def test_in_the_foreground_all_else_waits() -> None:
    async def work() -> None:
        slow = Slow()
        unit = make_unit(flush=slow.flush)
        target, other = make_target(unit), make_target(unit, number=1)
        async with running(FOREGROUND_SHORT, slow, target) as command:
            assert command.status is None
            for each in (target, other):
                assert each.nexuses[0].data_plane.closed == _dataplane.CLASS_ALL
                for cdb in ("00", "28", "1a 00 3f 00 ff", SELFTEST, send_cdb(ABORT)):
                    assert without_progress(now(each, cdb).sense) == TESTING
                for cdb in ("12 00 00 00 60", "a0 00 00 00 00 00 00 00 01 00"):
                    assert now(each, cdb).status == Status.GOOD
                assert without_progress(now(each, "03 00 00 00 12").data_in) == TESTING
        assert command.status == Status.GOOD
        assert target.nexuses[0].data_plane.closed == 0
        assert now(target, "00").status == Status.GOOD

    run(work())


def test_in_the_background_all_else_goes_on() -> None:
    async def work() -> None:
        slow = Slow()
        unit = make_unit(flush=slow.flush)
        target = make_target(unit)
        async with running(SHORT, slow, target) as command:
            assert command.status == Status.GOOD
            assert target.nexuses[0].data_plane.closed == 0
            assert now(target, "00").status == Status.GOOD
            assert now(target, send_cdb()).status == Status.GOOD
            for cdb in (SELFTEST, send_cdb(SHORT), send_cdb(FOREGROUND_EXTENDED)):
                assert without_progress(now(target, cdb).sense) == TESTING
            assert without_progress(now(target, "03 00 00 00 12").data_in) == TESTING
            assert results(unit) == [(SHORT, Result.IN_PROGRESS)]
        assert results(unit) == [(SHORT, Result.PASSED)]
        assert now(target, "03 00 00 00 12").data_in[2] == SenseKey.NO_SENSE

    run(work())


@pytest.mark.parametrize(
    ("end", "result"),
    [
        (send_cdb(ABORT), Result.ABORTED_BY_SEND_DIAGNOSTIC),
        ("1b 00 00 00 11", Result.ABORTED),
        ("reset", Result.ABORTED),
    ],
)
@pytest.mark.parametrize("code", [SHORT, EXTENDED])
def test_what_ends_one_in_the_background(end: str | bytes, result: Result, code: int) -> None:
    async def work() -> None:
        slow = Slow()
        unit = make_unit(flush=slow.flush)
        target = make_target(unit)
        async with running(code, slow, target):
            if end == "reset":
                unit.reset()
                target.nexuses[0].take()
            else:
                assert now(target, end).status == Status.GOOD
            assert results(unit) == [(code, result)]
            assert now(target, "03 00 00 00 12").data_in[2] == SenseKey.NO_SENSE
        assert results(unit) == [(code, result)]

    run(work())


def test_a_nexus_loss_does_not() -> None:
    async def work() -> None:
        slow = Slow()
        unit = make_unit(flush=slow.flush)
        target = make_target(unit)
        async with running(SHORT, slow, target):
            target.nexus_loss()
            assert results(unit) == [(SHORT, Result.IN_PROGRESS)]

    run(work())


def test_a_scan_is_cancelled_with_its_test() -> None:
    """Of a medium that takes longer to read than anybody would wait."""

    async def work() -> None:
        unit = make_unit(size=1 << 60)
        test = asyncio.ensure_future(unit.self_tests.run(SelfTestCode.BACKGROUND_EXTENDED))
        while unit.self_tests._scan is None:
            await asyncio.sleep(0.01)
        assert unit.self_tests.abort()
        await asyncio.gather(test, return_exceptions=True)
        assert results(unit) == [(EXTENDED, Result.ABORTED)]

    run(work())


def test_progress() -> None:
    unit = make_unit()

    async def work() -> None:
        slow = Slow()
        unit = make_unit(flush=slow.flush)
        target = make_target(unit)
        async with running(EXTENDED, slow, target):
            assert parse_fixed(now(target, "03 00 00 00 12").data_in).pointer == (0, None)

    run(work())
    scan = _dataplane.Scan(unit.data_plane)
    assert scan.progress == 0
    assert scan.run() is None
    assert scan.progress == 0xFFFF
    assert send(make_target(unit), "00").status == Status.GOOD
