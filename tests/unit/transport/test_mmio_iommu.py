"""virtio-mmio behind a software IOMMU in this process (VIRTIO_F_ACCESS_PLATFORM)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from vscsi_emu.config import from_arguments
from vscsi_emu.driver.coherency.iommu import PAGE, Iommu, Permission
from vscsi_emu.driver.disk import Disk
from vscsi_emu.driver.dma import Direction, DmaAllocator
from vscsi_emu.driver.mmio import VirtioMmioBus
from vscsi_emu.driver.virtio_scsi import KNOWN, REQUEST_QUEUE, Options, VirtioScsi
from vscsi_emu.inprocess import InProcess
from vscsi_emu.virtio.features import Feature, Status
from vscsi_emu.virtio.mmio_registers import MODERN

if TYPE_CHECKING:
    from vscsi_emu._dataplane import GuestMemory, Queue

RAM = 64 << 20
HEAP = 1 << 20
OF = {Direction.TO_DEVICE: Permission.READ, Direction.FROM_DEVICE: Permission.WRITE}
OPTIONS = Options(features=KNOWN | Feature.ACCESS_PLATFORM, queues=2)


class Platform:
    """`hba.Iommu` that answers at once from a table of pages."""

    def __init__(self) -> None:
        self.table = Iommu()
        self.memory: GuestMemory | None = None
        self.misses: list[int] = []
        self.denials: list[tuple[int, int]] = []

    def miss(self, queue: Queue, iova: int, access: int) -> None:
        assert self.memory
        self.misses.append(iova)
        page = iova - iova % PAGE
        if allowed := self.table.allowed(page):
            # User addresses of our own memory are its guest addresses.
            self.memory.iotlb_update(page, PAGE, page, allowed)
        else:
            queue.fail(f"{iova:#x} is not mapped")

    def denied(self, _queue: Queue, iova: int, access: int) -> None:
        self.denials.append((iova, access))


class Allocator(DmaAllocator):
    """Shows the device what it was given, as long as it was."""

    def __init__(self, machine: InProcess, platform: Platform) -> None:
        super().__init__(HEAP, RAM - HEAP)
        self._machine = machine
        self._table = platform.table

    def alloc_coherent(self, size: int, align: int = 16) -> int:
        size = -(-size // PAGE) * PAGE
        address = self.alloc(size, max(align, PAGE))
        self._table.map(address, address, size, Permission.READ | Permission.WRITE)
        return address

    def map(self, address: int, length: int, direction: Direction) -> None:
        self._table.map(address, address, length, OF[direction])
        # Pages may be known already, for the other direction.
        self.invalidate(address, length)

    def unmap(self, address: int, length: int, direction: Direction) -> None:
        self._table.unmap(address, length, OF[direction])
        self.invalidate(address, length)

    def invalidate(self, address: int, length: int) -> None:
        memory = self._machine.memory
        memory.iotlb_invalidate(address, length)
        runtime = self._machine.slots[0].hba.runtime
        self._machine.call(lambda: runtime.quiesce_range(memory, address, length))


@contextmanager
def booted() -> Iterator[tuple[VirtioScsi, Allocator, Platform]]:
    platform = Platform()
    with InProcess(from_arguments(["mem:8M"], queues=2), iommu=platform) as machine:
        platform.memory = machine.memory
        allocator = Allocator(machine, platform)
        [slot] = machine.slots
        with VirtioMmioBus(slot, slot.base, allocator, MODERN) as bus:
            yield VirtioScsi(bus, OPTIONS), allocator, platform


@pytest.mark.normative("rsvd.d3", "rsvd.r4")
def test_a_disk_behind_an_iommu() -> None:
    with booted() as (device, allocator, platform):
        assert Feature.ACCESS_PLATFORM in device.features
        disk = Disk(device, 0, 0)
        for turn in range(20):
            data = bytes([turn]) * 8192
            disk.write(turn, data)
            allocator.invalidate(0, RAM)
            assert disk.read(turn, 16) == data
        assert platform.misses
        assert not platform.denials


def test_an_address_that_nothing_maps_needs_a_reset() -> None:
    with booted() as (device, _, platform):
        address = break_ring(device, length=64)
        until(device)
        assert platform.misses[-1] == address
        # A reset makes it well again.
        again = VirtioScsi(device.bus, OPTIONS)
        assert Disk(again, 0, 0).read(0, 1) == bytes(512)


def test_a_forbidden_direction_needs_a_reset() -> None:
    with booted() as (device, allocator, platform):
        address = allocator.alloc(PAGE, PAGE)
        assert platform.memory
        platform.memory.iotlb_update(address, PAGE, address, Permission.WRITE)
        break_ring(device, address=address, length=64)
        until(device)
        assert platform.denials == [(address, Permission.READ)]


def break_ring(device: VirtioScsi, *, length: int, address: int = 0x7000_0000) -> int:
    """Offers a readable buffer at `address` in the request queue."""
    layout = device.queues[REQUEST_QUEUE].ring.layout
    memory = device.bus.memory
    descriptor = address.to_bytes(8, "little") + length.to_bytes(4, "little") + bytes(4)
    memory.write(layout.descriptor(0), descriptor)
    index = memory.load_u16_acquire(layout.avail_idx)
    memory.write(layout.avail_entry(index), bytes(2))
    memory.store_u16_release(layout.avail_idx, index + 1 & 0xFFFF)
    device.bus.notify(REQUEST_QUEUE)
    return address


def until(device: VirtioScsi) -> None:
    deadline = time.monotonic() + 10.0
    while not device.bus.status() & Status.NEEDS_RESET:
        assert time.monotonic() < deadline, "the device does not ask for a reset"
        time.sleep(0.001)
