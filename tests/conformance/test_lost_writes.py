"""What a cache loses when it cannot be flushed: everybody who wrote to it hears of it."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.conformance.cdb import (
    CHECK_CONDITION,
    GOOD,
    Disk,
    cdb_32,
    expect_good,
    expect_sense,
    synchronize_cache_10,
    test_unit_ready,
    write_16,
)
from vscsi_emu import Storage
from vscsi_emu.config import Config, from_arguments
from vscsi_emu.driver.dma import DmaAllocator
from vscsi_emu.driver.mmio import VirtioMmioBus
from vscsi_emu.driver.request import Result
from vscsi_emu.driver.virtio_scsi import VirtioScsi
from vscsi_emu.inprocess import RAM, InProcess
from vscsi_emu.virtio.mmio_registers import MODERN

MEDIUM_ERROR, WRITE_ERROR = 0x03, 0x0C00
FUA, BYTCHK = 0x08, 0x02
DEFERRED = 0x71
HEAP = 1 << 20
NODES = 3


class Cache(Storage):
    """Of its next flushes, each fails that `fails` has a True for."""

    made: Cache
    size = 1 << 20
    threads = 2

    def __init__(self) -> None:
        type(self).made = self
        self.fails: list[bool] = []
        self.meet: threading.Barrier | None = None

    def read(self, offset: int, length: int) -> bytes:
        return bytes(length)

    def write(self, offset: int, data: bytes) -> None:
        pass

    def flush(self) -> None:
        failed = self.fails.pop(0) if self.fails else False
        if self.meet is not None:
            self.meet.wait(10)
        if failed:
            raise OSError(errno.EIO, "lost")


@pytest.fixture
def nodes() -> Iterator[list[Disk]]:
    """The same disk through several HBAs."""
    one = from_arguments([f"0:0=python:{__name__}:Cache,cdb-32=on"])
    hbas = tuple(replace(one.hbas[0], port_group=number + 1) for number in range(NODES))
    with InProcess(Config(one.luns, hbas)) as machine:
        yield [
            Disk(
                VirtioScsi(
                    VirtioMmioBus(slot, slot.base, DmaAllocator(HEAP * (1 + number), HEAP), MODERN)
                ),
                0,
                0,
            ).ready()
            for number, slot in enumerate(machine.slots)
        ]
    assert HEAP * (NODES + 1) <= RAM


def deferred(result: Result) -> bool:
    if result.status == GOOD:
        return False
    expect_sense(result, MEDIUM_ERROR, WRITE_ERROR)
    return result.sense[0] & 0x7F == DEFERRED


def current(result: Result) -> bool:
    return result.status == CHECK_CONDITION and not deferred(result)


def test_a_failed_flush_is_told_to_all_that_wrote(nodes: list[Disk]) -> None:
    sender, writer, idle = nodes
    writer.write(0, bytes(512))
    sender.write(8, bytes(512))
    Cache.made.fails = [True]
    assert current(sender.run(synchronize_cache_10()))
    expect_good(sender.run(test_unit_ready()))
    assert deferred(writer.run(test_unit_ready()))
    expect_good(writer.run(synchronize_cache_10()))
    expect_good(idle.run(synchronize_cache_10()))


def test_a_flush_of_ones_own_does_not_hide_it(nodes: list[Disk]) -> None:
    sender, writer, _ = nodes
    writer.write(0, bytes(512))
    Cache.made.fails = [True]
    assert current(sender.run(synchronize_cache_10()))
    assert deferred(writer.run(synchronize_cache_10()))
    expect_good(writer.run(synchronize_cache_10()))


def test_what_was_flushed_well_cannot_be_lost(nodes: list[Disk]) -> None:
    sender, writer, _ = nodes
    writer.write(0, bytes(512))
    expect_good(sender.run(synchronize_cache_10()))
    Cache.made.fails = [True]
    assert current(sender.run(synchronize_cache_10()))
    expect_good(writer.run(test_unit_ready()))


@pytest.mark.parametrize("cdb", [write_16(0, 1, flags=FUA), cdb_32(0x0C, 0, 1, flags=BYTCHK)])
def test_so_is_a_write_through_the_cache(nodes: list[Disk], cdb: bytes) -> None:
    """It may be what the storage tells of earlier writes, whosever they were."""
    sender, writer, idle = nodes
    sender.write(8, bytes(512))
    writer.write(16, bytes(512))
    Cache.made.fails = [True]
    assert current(sender.run(cdb, data_out=bytes(512)))
    assert deferred(sender.run(test_unit_ready()))
    assert deferred(writer.run(test_unit_ready()))
    for node in nodes:
        expect_good(node.run(test_unit_ready()))
    Cache.made.fails = [True]
    assert current(idle.run(cdb, data_out=bytes(512)))
    expect_good(idle.run(test_unit_ready()))


def test_writes_through_the_cache_leave_nothing_to_lose(nodes: list[Disk]) -> None:
    sender, writer, _ = nodes
    expect_good(writer.run(write_16(0, 1, flags=FUA), data_out=bytes(512)))
    Cache.made.fails = [True]
    assert current(sender.run(synchronize_cache_10()))
    expect_good(writer.run(test_unit_ready()))


def test_a_flush_beside_one_that_fails_is_not_the_last_word(nodes: list[Disk]) -> None:
    """The storage tells one of them only."""
    for _ in range(20):
        for node in nodes[:2]:
            node.write(0, bytes(512))
        Cache.made.fails = [True, False]
        Cache.made.meet = threading.Barrier(2)
        flying = [(node, node.device.submit(0, 0, synchronize_cache_10())) for node in nodes[:2]]
        ended = [(node, node.device.wait(item)) for node, item in flying]
        Cache.made.meet = None
        heard = []
        for node, result in ended:
            told = result.status == CHECK_CONDITION
            after = node.run(test_unit_ready())
            heard.append(told or deferred(after))
            if told:
                expect_good(after)
        assert heard == [True, True]
        for node in nodes:
            expect_good(node.run(synchronize_cache_10()))
