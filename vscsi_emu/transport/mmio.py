"""Physical addresses of virtio-mmio devices, and the way from registers to an `Hba`."""

from __future__ import annotations

import asyncio
import logging
from bisect import bisect_right
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, TypeVarTuple, Unpack

from vscsi_emu import _dataplane
from vscsi_emu.virtio import config
from vscsi_emu.virtio.mmio import MmioDevice
from vscsi_emu.virtio.mmio_registers import LEGACY, MODERN, SCSI_HOST
from vscsi_emu.virtio.scsi import Response

if TYPE_CHECKING:
    from vscsi_emu._dataplane import GuestMemory, Queue
    from vscsi_emu.hba import Hba, Iommu
    from vscsi_emu.virtio.config import ByteOrder
    from vscsi_emu.virtio.mmio_queue import QueueSetup

Args = TypeVarTuple("Args")

log = logging.getLogger(__name__)

REGION_SIZE: Final = 0x200
"""Bytes of address space a device gets: registers, then configuration space."""


class RegisterModel(Protocol):
    """What answers loads and stores; see `virtio.mmio.MmioDevice`."""

    def read(self, offset: int, size: int) -> int: ...
    def write(self, offset: int, size: int, value: int) -> None: ...


@dataclass(frozen=True, slots=True)
class _Region:
    base: int
    size: int
    model: RegisterModel


class MmioBus:
    """Address ranges, each a device's registers.

    Values are those of the bytes in little-endian order. May be called from any thread; map before
    guests run, or while they do not touch that range.
    """

    def __init__(self) -> None:
        self._regions: tuple[_Region, ...] = ()
        """By base. Replaced whole: other threads read it meanwhile."""
        self.unmapped = 0
        """Accesses that hit no device."""

    def map(self, base: int, model: RegisterModel, size: int = REGION_SIZE) -> None:
        """Puts a device at `base`, `size` bytes. `ValueError` where something is already."""
        if base < 0 or size < 1:
            raise ValueError(f"{size} bytes at {base:#x} are no address range")
        for other in self._regions:
            if base < other.base + other.size and other.base < base + size:
                raise ValueError(
                    f"{base:#x} to {base + size:#x} overlaps the device at {other.base:#x} "
                    f"({other.size:#x} bytes); choose another base"
                )
        regions = (*self._regions, _Region(base, size, model))
        self._regions = tuple(sorted(regions, key=_base))

    @property
    def regions(self) -> list[tuple[int, int]]:
        """(base, size), sorted by base."""
        return [(region.base, region.size) for region in self._regions]

    def unmap(self, base: int) -> None:
        """`KeyError` if no device starts there."""
        left = tuple(region for region in self._regions if region.base != base)
        if len(left) == len(self._regions):
            raise KeyError(f"no device starts at {base:#x}")
        self._regions = left

    def read(self, address: int, size: int) -> int:
        """A load of `size` bytes; all ones where there is no device, as on a real bus."""
        region = self._find(address, size)
        if region is None:
            self.unmapped += 1
            return (1 << 8 * size) - 1
        return region.model.read(address - region.base, size)

    def write(self, address: int, size: int, value: int) -> None:
        """A store of `size` bytes; lost where there is no device."""
        region = self._find(address, size)
        if region is None:
            self.unmapped += 1
        else:
            region.model.write(address - region.base, size, value)

    def _find(self, address: int, size: int) -> _Region | None:
        regions = self._regions
        index = bisect_right(regions, address, key=_base) - 1
        if index < 0:
            return None
        region = regions[index]
        return region if address + size <= region.base + region.size else None


def _base(region: _Region) -> int:
    return region.base


class MmioTransport:
    """Serves an `Hba` over virtio-mmio registers: `device`, to be mapped on a bus.

    It is the HBA's `Link` and the register model's `Backend`. Guests' threads call the model, and
    what the model asks for is done by the event loop, in the order it was asked.
    """

    def __init__(
        self,
        hba: Hba,
        memory: GuestMemory,
        *,
        version: int = MODERN,
        byte_order: ByteOrder = "<",
        iommu: Iommu | None = None,
    ) -> None:
        """`byte_order`: of a legacy guest. With an `iommu` the device offers ACCESS_PLATFORM.
        Made on the HBA's event loop."""
        if byte_order != "<" and version != LEGACY:
            raise ValueError("a big-endian guest is legacy: version 2 is little-endian (2.5.3)")
        self.interrupt = _dataplane.Interrupt()
        self._hba = hba
        self._memory = memory
        self._loop = asyncio.get_running_loop()
        self._queues: dict[int, Queue] = {}
        """Started ones, by index. Written on the loop, read by guests' threads."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        hba.byte_order = byte_order
        # First: what the device offers depends on it.
        hba.connect(self, iommu)
        self.device = MmioDevice(self, self.interrupt, version=version)

    async def close(self) -> None:
        """After the device left its bus. The HBA may be connected again."""
        self._closed = True
        await self._drain()
        await self._hba.disconnect(self)
        self._hba.byte_order = "<"

    # ── hba.Link ───────────────────────────────────────────────────────────────────────────────

    def config_changed(self) -> None:
        self.device.config_changed()

    def queue_broken(self, queue: Queue, text: str) -> None:
        self.device.needs_reset(f"queue {queue.index} is broken: {text}")

    # ── virtio.mmio.Backend ────────────────────────────────────────────────────────────────────

    @property
    def device_id(self) -> int:
        return SCSI_HOST

    @property
    def device_features(self) -> int:
        return self._hba.device_features

    @property
    def queue_count(self) -> int:
        return self._hba.queue_count

    def read_config(self) -> bytes:
        return self._hba.read_config(0, config.SIZE)

    def write_config(self, offset: int, data: bytes) -> None:
        self._hba.write_config(offset, data)

    def set_features(self, features: int) -> None:
        self._post(self._hba.set_features, features)

    def start_queue(self, index: int, setup: QueueSetup) -> None:
        self._post(self._start, index, setup)

    def stop_queue(self, index: int, *, abort: bool) -> None:
        self._post(self._spawn, self._stop, index, abort)

    def notify(self, index: int) -> None:
        if queue := self._queues.get(index):
            queue.kick()
        else:
            # It may have looked at its ring already, before it is known here.
            self._post(self._kick, index)

    def reset(self) -> None:
        self._post(self._spawn, self._reset)

    # ── On the event loop ──────────────────────────────────────────────────────────────────────

    def _post(self, call: Callable[[Unpack[Args]], object], *arguments: *Args) -> None:
        if not self._closed:
            self._loop.call_soon_threadsafe(call, *arguments)

    def _spawn(
        self, work: Callable[[Unpack[Args]], Coroutine[None, None, None]], *arguments: *Args
    ) -> None:
        task = self._loop.create_task(work(*arguments))
        self._tasks.add(task)
        task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.error("internal error: the device will not come out of its reset", exc_info=error)

    def _start(self, index: int, setup: QueueSetup) -> None:
        try:
            self._queues[index] = self._hba.start_queue(
                index,
                self._memory,
                size=setup.size,
                desc=setup.desc,
                driver=setup.driver,
                device=setup.device,
                next_avail=0,
                next_used=0,
                enabled=True,
                notifier=_dataplane.Notifier.interrupt(self.interrupt),
                kick_fd=-1,
                poll=False,
            )
        except _dataplane.DataplaneError as error:
            self.device.needs_reset(f"queue {index} cannot start: {error}")

    def _kick(self, index: int) -> None:
        if queue := self._queues.get(index):
            queue.kick()

    async def _stop(self, index: int, abort: bool) -> None:
        if queue := self._queues.pop(index, None):
            await self._hba.stop_queue(queue, abort=Response.RESET if abort else None)
        self.device.queue_stopped(index)

    async def _reset(self) -> None:
        await self._drain()
        await self._hba.reset()
        self.device.reset_done()

    async def _drain(self) -> None:
        """Every queue has stopped on return, also those that were stopping already."""
        for index in list(self._queues):
            self._spawn(self._stop, index, True)
        await asyncio.gather(*(self._tasks - {asyncio.current_task()}))
