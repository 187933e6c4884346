"""HBAs in this process, for guests that are threads: registers on a bus, RAM, no event loop to run.

The control thread that is started here runs the loop; loads and stores may come from any other.
"""

from __future__ import annotations

import asyncio
import select
from typing import TYPE_CHECKING, Final, TypeVar

from vscsi_emu import _dataplane
from vscsi_emu.control_thread import ControlThread
from vscsi_emu.service import Service
from vscsi_emu.transport.mmio import REGION_SIZE, MmioBus, MmioTransport
from vscsi_emu.virtio.mmio_registers import MODERN

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from types import TracebackType
    from typing import Self

    from vscsi_emu._dataplane import GuestMemory, Interrupt
    from vscsi_emu.config import Config
    from vscsi_emu.control.local import LocalSync
    from vscsi_emu.hba import Hba, Iommu
    from vscsi_emu.virtio.config import ByteOrder
    from vscsi_emu.virtio.mmio import MmioDevice

T = TypeVar("T")

BASE: Final = 0xFEB0_0000
"""Address of the first device, beyond the RAM that a guest has by default."""
RAM: Final = 64 << 20
"""Bytes, from address 0."""


class Slot:
    """One HBA as a guest's CPU reaches it: loads, stores and an interrupt line."""

    def __init__(self, machine: InProcess, base: int, hba: Hba, transport: MmioTransport) -> None:
        self.base = base
        self.hba = hba
        """For `InProcess.call` only."""
        self.device: MmioDevice = transport.device
        self.interrupt: Interrupt = transport.interrupt
        self.memory: GuestMemory = machine.memory
        self.transport = transport
        self._machine = machine

    def read(self, address: int, size: int) -> int:
        return self._machine.bus.read(address, size)

    def write(self, address: int, size: int, value: int) -> None:
        self._machine.bus.write(address, size, value)

    def wait_interrupt(self, timeout: float) -> bool:
        """Whether the line is asserted, now or within `timeout` seconds. One thread may wait."""
        self.interrupt.clear()
        if not self.interrupt.level:
            poller = select.poll()
            poller.register(self.interrupt.fileno(), select.POLLIN)
            poller.poll(max(0.0, timeout) * 1000)
        return self.interrupt.level


class InProcess:
    """What a `Config` names, on a bus of its own; each HBA in a slot, in the order of the config.

    A context manager: threads that drive a device must have ended before it is left.
    """

    def __init__(
        self,
        config: Config,
        *,
        version: int = MODERN,
        byte_order: ByteOrder = "<",
        memory: GuestMemory | None = None,
        base: int = BASE,
        workers: int | None = None,
        io_uring: bool = True,
        iommu: Iommu | None = None,
    ) -> None:
        """`version`, `byte_order`, `iommu`: as for `MmioTransport`. `memory`: the guest's; 64 MiB
        from address 0 by default. `base`: of the first slot; the others follow, 512 bytes each.
        Raises `service.StartError` when entered."""
        self.bus = MmioBus()
        self.memory = memory or _dataplane.GuestMemory.anonymous(RAM)
        self.slots: tuple[Slot, ...] = ()
        self._service = Service(config, workers=workers, io_uring=io_uring)
        self._version, self._byte_order, self._base = version, byte_order, base
        self._iommu = iommu
        self._thread = ControlThread(self._serve)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._thread.stop()

    @property
    def control(self) -> LocalSync:
        """What the monitor can do, for this process: `control.lun_add(luns=[…])` and so on."""
        from vscsi_emu.control.local import LocalSync

        return LocalSync(self._thread, self._service)

    @property
    def service(self) -> Service:
        """For `call`, and for what may be used from any thread."""
        return self._service

    def call(self, work: Callable[[], Coroutine[object, object, T]], *, timeout: float = 10.0) -> T:
        """As `ControlThread.call`."""
        return self._thread.call(work, timeout=timeout)

    async def _serve(self, ready: Callable[[], None], stop: asyncio.Event) -> None:
        transports: list[MmioTransport] = []
        async with self._service as service:
            try:
                for number, hba in enumerate(service.hbas):
                    transport = MmioTransport(
                        hba,
                        self.memory,
                        version=self._version,
                        byte_order=self._byte_order,
                        iommu=self._iommu,
                    )
                    transports.append(transport)
                    base = self._base + number * REGION_SIZE
                    self.bus.map(base, transport.device)
                    self.slots += (Slot(self, base, hba, transport),)
                ready()
                await stop.wait()
            finally:
                for slot in self.slots:
                    self.bus.unmap(slot.base)
                await asyncio.gather(*(transport.close() for transport in transports))
