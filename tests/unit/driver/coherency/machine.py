"""A driver on a modelled platform, before a real HBA in this process."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vscsi_emu.config import from_arguments
from vscsi_emu.driver.coherency import CoherencyBus, Iommu, Kernel, Reality
from vscsi_emu.driver.dma import DmaAllocator
from vscsi_emu.driver.dma_policy import DmaPolicy, Platform
from vscsi_emu.driver.mmio import VirtioMmioBus
from vscsi_emu.driver.virtio_scsi import KNOWN, Options, VirtioScsi
from vscsi_emu.inprocess import InProcess
from vscsi_emu.virtio.features import Feature
from vscsi_emu.virtio.mmio_registers import LEGACY, MODERN

BASE, SIZE = 0x10_0000, 16 << 20
TIMEOUT = 20.0
PLATFORM = KNOWN | Feature.ACCESS_PLATFORM


@contextmanager
def coherency_bus(
    *,
    described: bool,
    really: bool,
    version: int = LEGACY,
    policy: DmaPolicy = DmaPolicy.ARM_LEGACY,
    seed: int = 0,
    evictions: float = 1 / 256,
    iommu: Iommu | None = None,
) -> Iterator[CoherencyBus]:
    """ARM_LEGACY or ACCESS_PLATFORM: the driver uses the DMA API in either version."""
    kernel = Kernel(policy, Platform(described_coherent=described))
    reality = Reality(really, access_platform=version == MODERN, keeps_promise=False)
    with InProcess(from_arguments(["mem:1M"]), version=version, workers=1) as machine:
        (slot,) = machine.slots
        with VirtioMmioBus(slot, slot.base, DmaAllocator(BASE, SIZE), version) as inner:
            yield CoherencyBus(
                inner, BASE, SIZE, kernel, reality, seed=seed, evictions=evictions, iommu=iommu
            )


def probed(bus: Any, *, timeout: float = TIMEOUT) -> VirtioScsi:
    """A driver whose unit attention is taken."""
    guest = VirtioScsi(bus, Options(features=PLATFORM), timeout=timeout)
    guest.execute(0, 0, bytes(6))
    return guest


def write_and_read(guest: VirtioScsi, block: int, data: bytes) -> bytes:
    where = block.to_bytes(4, "big") + b"\0\0\x01\0"
    assert guest.execute(0, 0, b"\x2a\0" + where, data_out=data).status == 0
    return guest.execute(0, 0, b"\x28\0" + where, data_in_length=512).data
