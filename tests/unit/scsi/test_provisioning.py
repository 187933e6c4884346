"""Thin provisioning: mode page, VPD page, what is counted, and who is told (SBC-5 4.7.3)."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from tests.unit.scsi.harness import (
    IDENTITY,
    bad_list,
    good,
    make_target,
    make_unit,
    parse_fixed,
    refused,
    send,
)
from tests.unit.scsi.media import memory_write
from vscsi_emu import _dataplane
from vscsi_emu.scsi import Asc, LogicalUnit, SenseKey, Target
from vscsi_emu.scsi.provisioning import ThinSpace, Usage

PAGE = 4096
LIMIT = 100 * PAGE
SIZE = 1000 * PAGE
POOL = bytes.fromhex("3111111111111111")
LBPERE = 0x80
INCREASING, AVAILABLE = 16, 24
"""Byte offsets of the two threshold descriptors."""


@dataclass
class Watcher:
    """What a unit waits for; `look` tells it what has happened."""

    waiting: dict[int, tuple[_dataplane.Space, int, bool, Callable[[], None]]] = field(
        default_factory=dict
    )
    last: int = 0

    def __call__(
        self, space: _dataplane.Space, level: int, rising: bool, reached: Callable[[], None]
    ) -> Callable[[], None]:
        self.last += 1
        number = self.last
        self.waiting[number] = space, level, rising, reached
        return lambda: self.waiting.pop(number, None) and None

    def look(self) -> None:
        for number, (space, level, rising, reached) in list(self.waiting.items()):
            if (space.used >= level) == rising:
                del self.waiting[number]
                reached()


@dataclass
class Thin:
    unit: LogicalUnit
    target: Target
    space: _dataplane.Space
    watcher: Watcher

    def use(self, pages: int) -> list[tuple[int, int]]:
        """Takes or frees space until that much is in use; the thresholds passed are answered as
        (code, INFORMATION)."""
        if pages * PAGE < self.space.used:
            _dataplane.Overwrite(self.unit.data_plane).run()
        memory_write(self.unit, bytes([1]) * pages * PAGE)
        self.watcher.look()
        told = []
        while (command := send(self.target, bytes(6))).status:
            assert command.sense[0] & 0x80
            sense = parse_fixed(command.sense)
            assert sense.key == SenseKey.UNIT_ATTENTION
            told.append((sense.code, int.from_bytes(command.sense[3:7])))
        return told

    def page(self, control: int = 0) -> bytes:
        return good(self.target, bytes([0x1A, 8, control << 6 | 0x1C, 2, 255, 0]))[4:]

    def select(self, page: bytes) -> None:
        good(self.target, bytes([0x15, 0x10, 0, 0, 4 + len(page), 0]), data_out=bytes(4) + page)

    def set(self, descriptor: int, *, enabled: bool, count: int) -> None:
        page = bytearray(self.page())
        page[descriptor] = page[descriptor] & 0x7F | (0x80 if enabled else 0)
        page[descriptor + 4 : descriptor + 8] = count.to_bytes(4)
        self.select(bytes(page))


def thin(*, block_size: int = 512, pool: bytes | None = None, percent: int = 80) -> Thin:
    space, watcher = _dataplane.Space(LIMIT), Watcher()
    unit = LogicalUnit(
        _dataplane.Engine.memory(SIZE).thin(space),
        IDENTITY,
        block_size=block_size,
        lbprz=True,
        thin=ThinSpace(space, pool, percent),
        watcher=watcher,
    )
    return Thin(unit, make_target(unit), space, watcher)


REACHED = Asc.THIN_PROVISIONING_SOFT_THRESHOLD_REACHED


def test_the_default_threshold_is_told_once() -> None:
    disk = thin()
    assert disk.use(80) == []
    assert disk.use(81) == [(REACHED, INCREASING)]
    assert disk.use(95) == []


def test_every_nexus_is_told() -> None:
    disk = thin()
    other = make_target(disk.unit, number=1)
    assert disk.use(90) == [(REACHED, INCREASING)]
    assert refused(other, bytes(6)).code == REACHED


def test_it_is_told_again_after_it_was_left() -> None:
    disk = thin()
    disk.use(90)
    assert disk.use(80) == [], "within the range: not armed again"
    assert disk.use(81) == []
    assert disk.use(79) == []
    assert disk.use(81) == [(REACHED, INCREASING)]


def test_thresholds_can_be_chosen() -> None:
    disk = thin()
    disk.set(INCREASING, enabled=True, count=10)
    assert disk.use(10) == []
    assert disk.use(11) == [(REACHED, INCREASING)]
    disk.set(INCREASING, enabled=False, count=10)
    disk.set(AVAILABLE, enabled=True, count=50)
    assert disk.use(50) == []
    assert disk.use(51) == [(REACHED, AVAILABLE)]
    disk.set(AVAILABLE, enabled=False, count=50)
    assert disk.use(20) == []
    assert disk.use(100) == []
    assert not disk.watcher.waiting


def test_what_is_past_already_is_told_when_it_is_chosen() -> None:
    disk = thin()
    disk.use(50)
    disk.set(INCREASING, enabled=True, count=10)
    assert disk.use(50) == [(REACHED, INCREASING)]


@pytest.mark.parametrize("count", [0, 0xFFFF_FFFF])
def test_thresholds_beyond_what_can_be(count: int) -> None:
    disk = thin()
    for descriptor in (INCREASING, AVAILABLE):
        disk.set(descriptor, enabled=True, count=count)
    expected = [(REACHED, AVAILABLE)] if count else [(REACHED, INCREASING)]
    assert disk.use(1) == expected


def test_without_lbpere_nobody_is_told() -> None:
    disk = thin()
    page = bytearray(good(disk.target, bytes.fromhex("1a080100ff00"))[4:])
    assert page[7] == LBPERE
    page[7] = 0
    disk.select(bytes(page))
    assert disk.use(90) == []
    page[7] = LBPERE
    disk.select(bytes(page))
    assert disk.use(90) == [(REACHED, INCREASING)]


def test_a_reset_takes_the_default_back() -> None:
    disk = thin()
    disk.set(INCREASING, enabled=False, count=0)
    disk.unit.reset()
    disk.target.nexuses[0].take()
    assert disk.use(81) == [(REACHED, INCREASING)]


def test_the_mode_page() -> None:
    disk = thin(percent=25)
    head = bytes.fromhex("5c02 001c 000000000000000000000000")
    assert disk.page() == head + bytes.fromhex("81020000 00000019 00010000 0000004b")
    assert disk.page(1) == head + bytes.fromhex("80000000 ffffffff 80000000 ffffffff")
    page = disk.page()
    for offset, number in [(4, 0), (16, 0), (17, 1), (24, 5)]:
        wrong = bytearray(page)
        wrong[offset] ^= 1 << number
        command = bytes([0x15, 0x10, 0, 0, 4 + len(page), 0])
        assert refused(disk.target, command, data_out=bytes(4) + wrong) == bad_list(
            4 + offset, number
        )


def test_no_threshold_without_a_space() -> None:
    unit = LogicalUnit(_dataplane.Engine.memory(SIZE), IDENTITY)
    target = make_target(unit)
    assert refused(target, bytes.fromhex("1a081c02ff00")).code == Asc.INVALID_FIELD_IN_CDB
    assert good(target, bytes.fromhex("1a080100ff00"))[4 + 7] == 0
    assert good(target, "12 01 b2 00ff 00")[4:] == bytes.fromhex("00e00200")
    memory_write(unit, bytes(3 * PAGE + 1))
    assert unit.provisioning.usage() == Usage(None, 4, shared=False)


@pytest.mark.parametrize(
    ("block_size", "pool", "page"),
    [
        (512, None, "03e40200"),
        (4096, None, "01e40200"),
        (512, POOL, "03e50200 01030008" + POOL.hex()),
    ],
)
def test_the_vpd_page(block_size: int, pool: bytes | None, page: str) -> None:
    target = thin(block_size=block_size, pool=pool).target
    assert good(target, "12 01 b2 00ff 00")[4:] == bytes.fromhex(page)


def test_what_is_counted() -> None:
    disk = thin()
    assert disk.unit.provisioning.usage() == Usage(100, 0, shared=False)
    disk.use(7)
    assert disk.unit.provisioning.usage() == Usage(93, 7, shared=False)
    pooled = thin(pool=POOL, block_size=4096)
    pooled.use(7)
    assert pooled.unit.provisioning.usage() == Usage(46, 4, shared=True)


def test_a_set_grows_with_the_capacity() -> None:
    """So that 32 bits count them."""
    for size, exponent in [(1 << 30, 3), ((1 << 44) - 4096, 3), (1 << 44, 4), (1 << 52, 12)]:
        unit = LogicalUnit(_dataplane.Engine.null(size), IDENTITY)
        assert unit.provisioning.exponent == exponent
        assert size // 512 >> exponent < 1 << 32


def test_nothing_is_anchored() -> None:
    target = thin().target
    for command, byte, bit in [
        (struct.pack(">BBIBHB", 0x41, 0x10, 0, 0, 1, 0), 1, 4),
        (struct.pack(">BBQIBB", 0x93, 0x18, 0, 1, 0, 0), 1, 4),
        (struct.pack(">BB4xBHB", 0x42, 1, 0, 24, 0), 1, 0),
    ]:
        sense = refused(target, command)
        assert (sense.code, sense.pointer) == (Asc.INVALID_FIELD_IN_CDB, (byte, bit))


@pytest.mark.parametrize(("pool", "scope"), [(None, 1), (POOL, 2)])
def test_the_log_page_counts_what_there_is(pool: bytes | None, scope: int) -> None:
    disk = thin(pool=pool)
    disk.use(30)
    usage = disk.unit.provisioning.usage()
    assert usage.available is not None
    assert usage.used is not None
    data = good(disk.target, bytes.fromhex("4d 00 4c 00 00 00 00 00 ff 00"))
    available, used = (
        bytes([0, code, 0x23, 8]) + count.to_bytes(4) + bytes([scope, 0, 0, 0])
        for code, count in ((1, usage.available), (2, usage.used))
    )
    assert data == bytes([0x8C, 0, 0, 24]) + available + used
    assert usage.used > 0


def test_the_log_page_of_a_unit_without_a_bound_knows_what_is_used() -> None:
    data = good(make_target(make_unit()), bytes.fromhex("4d 00 4c 00 00 00 00 00 ff 00"))
    assert data == bytes.fromhex("8c00000c 00022308 00000000 01000000")
