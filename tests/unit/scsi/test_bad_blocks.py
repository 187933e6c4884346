"""Blocks marked bad by WRITE LONG: what is saved, and when."""

from __future__ import annotations

import asyncio
import struct

import pytest

from tests.unit.scsi.harness import Recorder, Sense, make_target, make_unit, refused, send
from tests.unit.scsi.reserving import MemoryStore
from vscsi_emu import _dataplane
from vscsi_emu.scsi import Asc, LogicalUnit, SenseKey, Target, handle
from vscsi_emu.scsi.bad_blocks import MAX_MARKS
from vscsi_emu.scsi.store import SavedStateError

SECTION = "bad-blocks"


def write_long(lba: int, flags: int = 0x40) -> bytes:
    return struct.pack(">BBIBHB", 0x3F, flags, lba, 0, 0, 0)


def write_16(opcode: int, lba: int, blocks: int) -> bytes:
    return struct.pack(">BBQIBB", opcode, 0, lba, blocks, 0, 0)


def disk(store: MemoryStore | None) -> tuple[LogicalUnit, Target]:
    unit = make_unit(store=store)
    return unit, make_target(unit)


def marked(*lbas: int) -> tuple[LogicalUnit, Target, MemoryStore]:
    store = MemoryStore()
    unit, target = disk(store)
    for lba in lbas:
        assert send(target, write_long(lba)).executed
    return unit, target, store


def test_saved_before_they_are_marked() -> None:
    _, target, store = marked(5, 9, 6, 7)
    assert store.sections[SECTION] == [[5, 3], [9, 1]]
    assert target.nexuses[0].data_plane.closed == _dataplane.CLASS_WRITE
    for command in (write_long(5, 0), write_long(1 << 30)):
        assert send(target, command).executed, "refused by the data plane"
    assert store.sections[SECTION] == [[5, 3], [9, 1]]


def test_marked_again_at_the_start() -> None:
    _, _, store = marked(5)
    unit, _ = disk(store)
    source = unit.data_plane
    work = _dataplane.Copy(source, source, [(0, 512, 10 * 512)], durable=False)
    with pytest.raises(OSError, match="marked bad"):
        work.run()


def test_without_a_store_nothing_is_remembered_or_slowed_down() -> None:
    _, target = disk(None)
    assert send(target, write_long(5)).executed
    assert target.nexuses[0].data_plane.closed == 0


@pytest.mark.parametrize(
    ("command", "left"),
    [
        (write_16(0x8A, 4, 1), [[5, 1], [300, 1], [2000, 1]]),
        (write_16(0x8A, 4, 2), [[300, 1], [2000, 1]]),
        (write_16(0x8A, 5, 0), [[5, 1], [300, 1], [2000, 1]]),
        (write_16(0x93, 300, 0), [[5, 1]]),
        (bytes([0x0A, 0, 0, 100, 0, 0]), [[5, 1], [2000, 1]]),
        (struct.pack(">BB4xBHB", 0x42, 0, 0, 24, 0), None),
        (struct.pack(">BBQ3xBBB", 0x89, 0, 5, 1, 0, 0), [[300, 1], [2000, 1]]),
    ],
)
def test_forgotten_before_they_are_written(command: bytes, left: object) -> None:
    _, target, store = marked(5, 300, 2000)
    assert send(target, command).executed
    assert store.sections[SECTION] == left
    closed = 0 if left is None else _dataplane.CLASS_WRITE
    assert target.nexuses[0].data_plane.closed == closed


def test_a_write_waits_for_the_store() -> None:
    _, target, store = marked(5)
    saving = asyncio.Event()

    async def save(section: str, value: object) -> None:
        await saving.wait()
        store.sections[section] = value

    async def scenario() -> None:
        store.save = save  # type: ignore[method-assign]
        tasks, commands = [], [Recorder(write_16(0x8A, 5, 1).ljust(32, b"\0")) for _ in range(2)]
        for command in commands:
            later = handle(command, target, 0)
            assert later is not None
            tasks.append(asyncio.ensure_future(later))
        await asyncio.sleep(0)
        assert not any(command.executed for command in commands)
        saving.set()
        await asyncio.gather(*tasks)
        assert all(command.executed for command in commands)

    asyncio.run(scenario())


def test_a_store_that_fails() -> None:
    _, target, store = marked(5)
    store.fail = True
    failure = Sense(SenseKey.HARDWARE_ERROR, Asc.INTERNAL_TARGET_FAILURE)
    assert refused(target, write_16(0x8A, 5, 1)) == failure
    assert refused(target, write_long(6)) == failure
    assert send(target, write_16(0x8A, 6, 1)).executed


def test_not_without_bounds() -> None:
    store = MemoryStore()
    store.sections[SECTION] = [[0, MAX_MARKS]]
    unit = make_unit(size=512 * (MAX_MARKS + 10), store=store)
    target = make_target(unit)
    assert refused(target, write_long(MAX_MARKS)) == Sense(
        SenseKey.ILLEGAL_REQUEST, Asc.INSUFFICIENT_RESOURCES
    )
    assert send(target, write_long(5)).executed


@pytest.mark.parametrize("saved", [7, ["x"], [[1]], [[1, 0]], [[-1, 1]], [[0, MAX_MARKS + 1]]])
def test_damaged_state(saved: object) -> None:
    store = MemoryStore()
    store.sections[SECTION] = saved
    with pytest.raises(SavedStateError, match="bad blocks are"):
        make_unit(store=store)
