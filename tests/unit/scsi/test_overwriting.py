"""SANITIZE and FORMAT UNIT: what they refuse, what others get meanwhile, what a failure leaves."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from tests.unit.scsi.harness import (
    NOT_READY,
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
from tests.unit.scsi.reserving import MemoryStore
from vscsi_emu import _dataplane
from vscsi_emu.scsi import Asc, LogicalUnit, SenseKey, Status, Target, handle
from vscsi_emu.scsi.store import SavedStateError

ERASES = ["4802", "4803"]
PROTECTED = Sense(SenseKey.DATA_PROTECT, Asc.WRITE_PROTECTED)


def sanitize(action: int, length: int = 0) -> bytes:
    return bytes([0x48, action, 0, 0, 0, 0, 0]) + length.to_bytes(2) + b"\0"


def overwrite_list(pattern: bytes, *, first: int = 1, length: int | None = None) -> bytes:
    length = len(pattern) if length is None else length
    return bytes([first, 0]) + length.to_bytes(2) + pattern


class Work:
    """`_dataplane.Overwrite` that waits for `go`, and notes how it was made."""

    made: list[tuple[bytes | None, int, bool]]
    error: OSError | None = None
    wait = False
    go: threading.Event
    progress = 0x8000

    def __init__(
        self,
        lu: _dataplane.Lu,
        pattern: bytes | None = None,
        *,
        passes: int = 1,
        invert: bool = False,
    ) -> None:
        self.made.append((pattern, passes, invert))

    def run(self) -> None:
        if self.wait:
            assert self.go.wait(60)
        if self.error is not None:
            raise self.error

    def cancel(self) -> None:
        self.go.set()


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Work]]:
    class Mine(Work):
        pass

    Mine.made, Mine.go = [], threading.Event()
    monkeypatch.setattr(_dataplane, "Overwrite", Mine)
    yield Mine
    Mine.go.set()


# ── What is asked of the data plane ────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("first", "passes", "invert"), [(1, 1, False), (0x9F, 31, True)])
def test_overwrite(work: type[Work], first: int, passes: int, invert: bool) -> None:
    target = make_target(make_unit())
    for pattern in (b"\xaa" * 512, b"abcd"):
        data = overwrite_list(pattern, first=first)
        good(target, sanitize(1, len(data)), data_out=data)
        assert work.made.pop() == (pattern, passes, invert)
    # Less of the list may be pattern than all of it.
    good(target, sanitize(1, 8), data_out=overwrite_list(b"abcd", length=3))
    assert work.made.pop() == (b"abc", 1, False)


@pytest.mark.parametrize("cdb", ERASES)
def test_erases(work: type[Work], cdb: str) -> None:
    good(make_target(make_unit()), cdb)
    assert work.made == [(None, 1, False)]


@pytest.mark.parametrize(
    ("cdb", "data", "pattern"),
    [
        ("0400", "", None),
        ("0410", "00000000", None),
        ("0417", "00f00000", None),
        ("0430", "0080000000000000", None),
        ("0410", "00880000 00000000", None),
        ("0410", "00880000 00010003 616263", b"abc"),
        ("0438", "0088000000000000 00010001 61", b"a"),
    ],
)
def test_format_unit(work: type[Work], cdb: str, data: str, pattern: bytes | None) -> None:
    good(make_target(make_unit()), cdb, data_out=bytes.fromhex(data))
    assert work.made == [(pattern, 1, False)]


def test_the_medium_is_really_filled() -> None:
    """With the data plane's own work: nothing fails, and nothing is left refused."""
    target = make_target(make_unit())
    for cdb, data in [
        (sanitize(1, 6), overwrite_list(b"ab", first=0x82)),
        (sanitize(2), b""),
        (bytes([4, 0, 0, 0, 0, 0]), b""),
    ]:
        good(target, cdb, data_out=data)
        good(target, "00")


# ── What is refused ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("length", [0, 1, 4, 517, 0xFFFF])
def test_parameter_list_length_of_overwrite(length: int) -> None:
    target = make_target(make_unit())
    assert refused(target, sanitize(1, length), data_out=bytes(0xFFFF)) == bad_cdb(7, None)


@pytest.mark.parametrize(
    ("data", "where"),
    [
        (overwrite_list(b"abcd", first=0x00), bad_list(0, 4)),
        (overwrite_list(b"abcd", first=0x21), bad_list(0, 6)),
        (b"\x01\x08\x00\x04abcd", bad_list(1, 3)),
        (overwrite_list(b"abcd", length=0), bad_list(2)),
        (overwrite_list(b"abcd", length=5), bad_list(2)),
    ],
)
def test_parameter_list_of_overwrite(data: bytes, where: Sense) -> None:
    assert refused(make_target(make_unit()), sanitize(1, 8), data_out=data) == where


@pytest.mark.parametrize("action", [2, 3, 0x1F])
def test_others_have_no_parameter_list(action: int) -> None:
    target = make_target(make_unit())
    assert refused(target, sanitize(action, 8), data_out=bytes(8)) == bad_cdb(7, None)


@pytest.mark.parametrize(
    ("cdb", "data", "where"),
    [
        ("0420", "", bad_cdb(1, 5)),
        ("0408", "", bad_cdb(1, 3)),
        ("0405", "", bad_cdb(1, 2)),
        ("0490", "00000000", bad_cdb(1, 7)),
        ("0410", "01000000", bad_list(0, 0)),
        ("0410", "00200000", bad_list(1, 5)),
        ("0410", "00810000", bad_list(1, 0)),
        ("0410", "00800008", bad_list(2)),
        ("0430", "0080000100000000", bad_list(3, 0)),
        ("0430", "0080000000000100", bad_list(4)),
        ("0410", "00880000 20000000", bad_list(4, 5)),
        ("0410", "00880000 00020000", bad_list(5)),
        ("0410", "00880000 00000001 61", bad_list(6)),
        ("0410", "00880000 00010000", bad_list(6)),
        ("0410", "00880000 00010201" + "00" * 513, bad_list(6)),
    ],
)
def test_format_unit_refuses(cdb: str, data: str, where: Sense) -> None:
    target = make_target(make_unit())
    assert refused(target, cdb, data_out=bytes.fromhex(data)) == where


@pytest.mark.parametrize("cdb", [*ERASES, "0400"])
def test_write_protected_or_stopped(work: type[Work], cdb: str) -> None:
    assert refused(make_target(make_unit(read_only=True)), cdb) == PROTECTED
    target = make_target(make_unit())
    good(target, "1b")
    assert refused(target, cdb) == NOT_READY
    assert not work.made


# ── Meanwhile ──────────────────────────────────────────────────────────────────────────────────


async def under_way(target: Target, cdb: bytes) -> asyncio.Task[None]:
    """The command, begun; its work waits."""
    command = Recorder(cdb.ljust(32, b"\0"))
    later = handle(command, target, 0)
    assert later is not None
    task = asyncio.create_task(later)
    await asyncio.sleep(0.01)
    assert (command.status == Status.GOOD) == bool(cdb[1] & 0x80)
    return task


def answer(target: Target, cdb: str) -> Recorder:
    """Of a command that needs no waiting."""
    command = Recorder(bytes.fromhex(cdb).ljust(32, b"\0"))
    assert handle(command, target, 0) is None
    return command


@pytest.mark.parametrize(
    ("cdb", "code"),
    [
        (sanitize(2), Asc.SANITIZE_IN_PROGRESS),
        (sanitize(0x82), Asc.SANITIZE_IN_PROGRESS),
        (b"\x04\0\0\0\0\0", Asc.FORMAT_IN_PROGRESS),
    ],
)
def test_other_commands_wait_for_the_end(work: type[Work], cdb: bytes, code: Asc) -> None:
    work.wait = True
    unit = make_unit()
    target, other = make_target(unit), make_target(unit)
    progress = bytes.fromhex("808000")

    async def scenario() -> None:
        task = await under_way(target, cdb)
        for each in (target, other):
            for command in ("00", "28", "89", "48 02", "1b 00000001", "9e12", "5a 08 3f", "04"):
                got = answer(each, command)
                assert parse_fixed(got.sense.replace(progress, bytes(3))) == Sense(
                    SenseKey.NOT_READY, code
                )
                assert got.sense[15:] == progress
            assert each.nexuses[0].data_plane.closed == _dataplane.CLASS_ALL
            for command in ("12 00000024", "a0 000000000000000010", "a30c 00000000000010"):
                assert answer(each, command).status == Status.GOOD
            state = answer(each, "03 000000fc").data_in
            assert (state[2], state[12] << 8 | state[13], state[15:]) == (2, code, progress)
        unit.reset()
        assert other.take(other.nexuses[0]) is not None
        assert target.take(target.nexuses[0]) is not None
        assert answer(target, "00").sense[12:14] == code.to_bytes(2), "a reset ends nothing"
        work.go.set()
        await asyncio.wait_for(task, 10)

    asyncio.run(scenario())
    for each in (target, other):
        good(each, "00")
        assert each.nexuses[0].data_plane.closed == 0


def test_running_commands_are_waited_for(work: type[Work]) -> None:
    log: list[str] = []

    async def quiesce(lu: _dataplane.Lu) -> None:
        assert unit.nexuses[0].data_plane.closed == _dataplane.CLASS_ALL
        log.append("quiet")

    unit = make_unit(quiesce=quiesce)
    work.run = lambda self: log.append("run")  # type: ignore[method-assign]
    good(make_target(unit), "4802")
    assert log == ["quiet", "run"]


def test_a_cancelled_command_ends_the_work(work: type[Work]) -> None:
    work.wait = True

    async def scenario() -> None:
        task = await under_way(make_target(make_unit()), sanitize(0x82))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())
    assert work.go.is_set()


# ── Failure ────────────────────────────────────────────────────────────────────────────────────


def failed(cdb: str, work: type[Work]) -> tuple[LogicalUnit, Target]:
    work.error = OSError(5, "broken")
    unit = make_unit()
    target = make_target(unit)
    send(target, cdb)
    work.error = None
    return unit, target


SANITIZE_FAILED = Sense(SenseKey.MEDIUM_ERROR, Asc.SANITIZE_COMMAND_FAILED)
CORRUPTED = Sense(SenseKey.MEDIUM_ERROR, Asc.MEDIUM_FORMAT_CORRUPTED)


def test_a_failed_sanitize_is_left_by_exit_failure_mode_with_ause_only(work: type[Work]) -> None:
    unit, target = failed("4822", work)
    assert refused(target, "28") == refused(target, "04") == SANITIZE_FAILED
    good(target, "481f")
    good(target, "00")
    assert unit.failure is None
    _, target = failed("4802", work)
    assert refused(target, "481f") == bad_cdb(1, 4)
    assert refused(target, "4823") == bad_cdb(1, 5)
    assert refused(target, "28") == SANITIZE_FAILED
    good(target, sanitize(1, 6), data_out=overwrite_list(b"ab"))
    good(target, "00")


def test_a_failed_format_is_left_by_another_one(work: type[Work]) -> None:
    _, target = failed("04", work)
    assert refused(target, "28") == CORRUPTED
    good(target, "481f")
    assert refused(target, "28") == CORRUPTED
    good(target, "04")
    good(target, "00")


def test_with_immed_the_failure_is_a_deferred_error(work: type[Work]) -> None:
    _, target = failed("4882", work)
    assert refused(target, "00") == Sense(
        SenseKey.MEDIUM_ERROR, Asc.SANITIZE_COMMAND_FAILED, deferred=True
    )
    assert refused(target, "00") == SANITIZE_FAILED


@pytest.mark.parametrize(
    ("cdb", "sense"), [("4802", SANITIZE_FAILED), ("4882", SANITIZE_FAILED), ("04", CORRUPTED)]
)
def test_a_process_that_ends_meanwhile_has_failed(work: type[Work], cdb: str, sense: Sense) -> None:
    store, seen = MemoryStore(), []
    work.run = lambda self: seen.append(dict(store.sections))  # type: ignore[method-assign]
    target = make_target(make_unit(store=store))
    good(target, cdb)
    assert store.sections == {"medium-failure": None}
    store.sections = seen[0]
    assert refused(make_target(make_unit(store=store)), "28") == sense


def test_a_failure_outlives_the_process_until_it_is_left(work: type[Work]) -> None:
    store = MemoryStore()
    work.error = OSError(5, "broken")
    for cdb in ("4802", "4822"):
        send(make_target(make_unit(store=store)), cdb)
        again = make_target(make_unit(store=store))
        assert refused(again, "28") == SANITIZE_FAILED
        if cdb == "4802":
            assert refused(again, "481f") == bad_cdb(1, 4)
            work.error = None
            good(again, "4802")
            work.error = OSError(5, "broken")
        else:
            good(again, "481f")
        good(make_target(make_unit(store=store)), "00")


def test_without_a_place_to_remember_it_nothing_begins(work: type[Work]) -> None:
    store = MemoryStore()
    store.fail = True
    target = make_target(make_unit(store=store))
    for cdb in ("4802", "4882"):
        sense = refused(target, cdb)
        assert sense == Sense(SenseKey.HARDWARE_ERROR, Asc.INTERNAL_TARGET_FAILURE)
    good(target, "00")


@pytest.mark.parametrize(
    "saved",
    [
        7,
        {},
        {"code": "xyzw", "restricted": True},
        {"code": "3103"},
        {"code": "2400", "restricted": True},
        {"code": "3103", "restricted": 2},
    ],
)
def test_damaged_state(saved: object) -> None:
    store = MemoryStore()
    store.sections = {"medium-failure": saved}
    with pytest.raises(SavedStateError, match="failure of the medium"):
        make_unit(store=store)


def test_exit_failure_mode_without_a_failure() -> None:
    target = make_target(make_unit())
    good(target, "481f")
    good(target, "00")
