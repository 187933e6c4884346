"""One of the two devices that are compared, at the other end of a qtest socket."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from socket import AF_UNIX, SOCK_STREAM, socket
from typing import Final

from vscsi_emu.driver.dma import DmaAllocator
from vscsi_emu.driver.mmio import VirtioMmioBus
from vscsi_emu.driver.qtest import QtestClient, QtestRegisters
from vscsi_emu.driver.virtio_scsi import Options, VirtioScsi
from vscsi_emu.virtio.mmio_registers import MODERN

BASE: Final = 0xFEB0_0E00
"""Slot 7 of microvm, which the first device takes."""
IRQ: Final = 23
RAM_MIB: Final = 64
BLOCKS: Final = (8 << 20) // 512
QUEUES: Final = 2
SEG_MAX: Final = 126
MAX_SECTORS: Final = 0x10000
SERIAL: Final = "VSCSI0001"
NAA: Final = "5000000000000001"
START_SECONDS: Final = 60.0
UNTOUCHED: Final = 0xA5
"""What buffers hold before a device writes into them."""
_HEAP: Final = 1 << 20


class _Heap(DmaAllocator):
    """All memory but the first MiB, filled anew before each use."""

    def __init__(self, client: QtestClient) -> None:
        super().__init__(_HEAP, (RAM_MIB << 20) - _HEAP)
        self._client = client

    def alloc(self, size: int, align: int = 16) -> int:
        address = super().alloc(size, align)
        self._client.memset(address, size, UNTOUCHED)
        return address


@dataclass(frozen=True, slots=True)
class Machine:
    client: QtestClient
    version: int

    @property
    def modern(self) -> bool:
        return self.version == MODERN

    def read(self, offset: int, size: int = 4) -> int:
        return self.client.load(BASE + offset, size)

    def write(self, offset: int, value: int, size: int = 4) -> None:
        self.client.store(BASE + offset, size, value)

    def reset(self) -> None:
        self.bus().reset()

    def bus(self) -> VirtioMmioBus:
        """The device, with all memory free."""
        bus = VirtioMmioBus.find(QtestRegisters(self.client, IRQ), BASE, _Heap(self.client))
        assert bus is not None
        return bus

    def driver(self, options: Options | None = None) -> VirtioScsi:
        """A driver just probed."""
        wanted = replace(options or Options(), queue_size=64, trust_length=False)
        return VirtioScsi(self.bus(), wanted, timeout=60.0)


@contextmanager
def listening(path: Path) -> Iterator[socket]:
    """Where a device connects to."""
    with socket(AF_UNIX, SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()
        yield listener


def accept(listener: socket) -> QtestClient:
    return QtestClient.accept(listener, timeout=START_SECONDS)


def lun(image: Path, options: Sequence[str] = ()) -> str:
    """The disk as our command line has it, named as QEMU names its own."""
    identity = f"vendor=QEMU,product=QEMU HARDDISK,serial={SERIAL},wwn={NAA}"
    return ",".join([f"0:0={image}", identity, *options])
