"""Two copies of a line, and when each side sees the other's stores."""

from __future__ import annotations

from random import Random

import pytest

from tests.unit.driver.ram import RecordingRam
from vscsi_emu.driver.coherency.faults import FaultKind, FaultLog
from vscsi_emu.driver.coherency.path import LINE, CpuCache, DeviceCache, Shared

RANDOM = Random(0)
Paths = type[CpuCache] | type[DeviceCache]


@pytest.fixture
def ram() -> RecordingRam:
    return RecordingRam(4096)


@pytest.fixture
def log() -> FaultLog:
    return FaultLog()


def kinds(log: FaultLog) -> list[FaultKind]:
    return [fault.kind for fault in log.faults]


def test_shared_memory_is_one_view(ram: RecordingRam) -> None:
    path = Shared(ram)
    path.write(100, b"abc")
    path.write(200, b"xy")
    assert (ram.peek(100, 3), ram.peek(200, 2)) == (b"abc", b"xy")
    ram.poke(100, b"z")
    assert path.read(100, 3) == path.peek(100, 3) == b"zbc"


@pytest.mark.parametrize("kind", [CpuCache, DeviceCache])
def test_stores_in_a_line_held_by_a_cache_reach_the_other_side_only_when_cleaned(
    kind: Paths, ram: RecordingRam, log: FaultLog
) -> None:
    path = kind(ram, log)
    path.touch(60, 8)
    path.write(60, b"12345678")  # across two lines
    assert ram.peek(60, 8) == bytes(8)
    assert path.read(60, 8) == path.peek(60, 8) == b"12345678"
    path.clean(60, 8)
    assert ram.peek(60, 8) == b"12345678"
    assert not log.faults


def test_a_cpu_reads_stale_lines_until_it_invalidates(ram: RecordingRam, log: FaultLog) -> None:
    path = CpuCache(ram, log)
    path.read(128, LINE)
    ram.poke(130, b"new")
    assert path.read(128, 2) == bytes(2)
    assert not log.faults  # the bytes read are not stale
    assert path.read(128, 8) == bytes(8)
    assert [(f.kind, f.address) for f in log.faults] == [(FaultKind.STALE_CPU_READ, 130)]
    path.invalidate(128, LINE)
    assert path.read(130, 3) == b"new"


def test_invalidating_part_of_a_line_keeps_the_neighbours_stores(
    ram: RecordingRam, log: FaultLog
) -> None:
    path = CpuCache(ram, log)
    path.write(0, b"neighbour")
    path.invalidate(32, 16)
    assert ram.peek(0, 9) == b"neighbour"


def test_a_whole_dirty_line_is_lost_when_invalidated(ram: RecordingRam, log: FaultLog) -> None:
    path = CpuCache(ram, log)
    path.write(0, b"x" * LINE)
    path.invalidate(0, LINE)
    assert path.read(0, LINE) == ram.peek(0, LINE) == bytes(LINE)


def test_false_sharing_loses_the_devices_store(ram: RecordingRam, log: FaultLog) -> None:
    path = CpuCache(ram, log)
    path.write(0, b"cpu")
    ram.poke(8, b"device")
    path.evict(RANDOM)
    assert ram.peek(0, 14) == b"cpu" + bytes(11)
    assert [(f.kind, f.address) for f in log.faults] == [(FaultKind.LOST_STORE, 8)]


def test_past_a_cold_cache_there_is_one_view(ram: RecordingRam, log: FaultLog) -> None:
    path = DeviceCache(ram, log)
    path.write(10, b"abc")
    assert ram.peek(10, 3) == b"abc"
    ram.poke(10, b"z")
    assert path.read(10, 3) == b"zbc"
    assert not log.faults


def test_past_a_warm_cache_the_devices_stores_are_not_seen(
    ram: RecordingRam, log: FaultLog
) -> None:
    path = DeviceCache(ram, log)
    path.touch(0, 4)
    ram.poke(2, b"\7")
    assert path.read(2, 1) == b"\0"
    assert kinds(log) == [FaultKind.MISMATCHED_ALIAS]
    path.evict(RANDOM)  # written back: nobody had stored anything else
    assert path.read(2, 1) == b"\7"
    assert FaultKind.LOST_STORE not in kinds(log)


def test_a_clean_line_that_goes_lets_the_cpus_stores_through(
    ram: RecordingRam, log: FaultLog
) -> None:
    path = DeviceCache(ram, log)
    path.touch(0, 4)
    path.write(2, b"\1\2")
    path.write(41, b"odd")
    assert ram.peek(2, 2) == bytes(2)
    path.evict(RANDOM)
    assert (ram.peek(2, 2), ram.peek(41, 3)) == (b"\1\2", b"odd")
    assert not log.faults


def test_a_dirty_line_that_goes_takes_the_cpus_stores_along(
    ram: RecordingRam, log: FaultLog
) -> None:
    path = DeviceCache(ram, log)
    path.touch(0, 4)
    path.write(2, b"\1\2")
    ram.poke(60, b"\7")
    path.evict(RANDOM)
    assert path.read(2, 2) == ram.peek(2, 2) == bytes(2)
    assert kinds(log) == [FaultKind.LOST_STORE]


def test_a_repeated_fault_is_counted(log: FaultLog) -> None:
    for _ in range(3):
        log.report(FaultKind.STALE_CPU_READ, 1, "x")
    assert [log.count(f) for f in log.faults] == [3]
