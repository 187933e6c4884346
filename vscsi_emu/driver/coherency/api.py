"""Linux's DMA API on a modelled platform: the allocator that a driver gets there."""

from typing import Final

from vscsi_emu.driver.coherency.faults import FaultKind
from vscsi_emu.driver.coherency.iommu import Iommu, IommuFault, Permission
from vscsi_emu.driver.coherency.memory import CoherencyModel
from vscsi_emu.driver.coherency.path import LINE
from vscsi_emu.driver.dma import Direction, DmaAllocator
from vscsi_emu.driver.vring import Segment

_PERMISSION: Final = {
    Direction.TO_DEVICE: Permission.READ,
    Direction.FROM_DEVICE: Permission.WRITE,
}


class DmaApi(DmaAllocator):
    """`DmaAllocator` over `model`'s memory from `base` on, `size` bytes.

    `described_coherent`: what the platform says of the device. While `in_use` is False the driver
    goes past the API: no cache maintenance, no IOMMU mappings, rings in cacheable memory. Buffers
    have cache lines of their own (ARCH_DMA_MINALIGN).
    """

    def __init__(
        self,
        model: CoherencyModel,
        base: int,
        size: int,
        *,
        described_coherent: bool,
        iommu: Iommu | None = None,
    ) -> None:
        super().__init__(base, size)
        self.in_use = True
        self.described_coherent = described_coherent
        self._model = model
        self._iommu = iommu
        self._coherent: dict[int, int] = {}

    def alloc(self, size: int, align: int = 16) -> int:
        return super().alloc(-(-max(size, 1) // LINE) * LINE, max(align, LINE))

    def alloc_coherent(self, size: int, align: int = 16) -> int:
        address = self.alloc(size, align)
        if self.in_use:
            self._coherent[address] = size
            if not self.described_coherent:
                self._model.map_uncached(address, size)
            if self._iommu is not None:
                both = Permission.READ | Permission.WRITE
                self._iommu.map(address, address, size, both)
        return address

    def map(self, address: int, length: int, direction: Direction) -> None:
        if not self.in_use:
            return
        if not self.described_coherent:
            self._model.clean(address, length)
            self._model.prefetch(address, length)
        self._model.mapped.add(address, length, direction)
        if self._iommu is not None:
            self._iommu.map(address, address, length, _PERMISSION[direction])

    def unmap(self, address: int, length: int, direction: Direction) -> None:
        if not self.in_use:
            return
        self._model.mapped.pop(address)
        if self._iommu is not None:
            self._iommu.unmap(address, length, _PERMISSION[direction])
        if not self.described_coherent and direction is Direction.FROM_DEVICE:
            self._model.invalidate(address, length)

    def free(self, address: int) -> None:
        if self._model.mapped.find(address):
            self._model.log.report(
                FaultKind.MISSING_SYNC, address, f"{address:#x} was freed while the device has it"
            )
        if (size := self._coherent.pop(address, None)) is not None:
            self._model.unmap_uncached(address)
            if self._iommu is not None:
                self._iommu.unmap(address, size, Permission.READ | Permission.WRITE)
        super().free(address)

    def check(self, buffer: Segment, writable: bool, name: str) -> None:
        """Whether the device may have this buffer now; `ring.BufferCheck`."""
        if not self.in_use:
            return
        wanted = Direction.FROM_DEVICE if writable else Direction.TO_DEVICE
        held = self._model.mapped.find(buffer.address)
        if held is None or held.value is not wanted:
            self._model.log.report(
                FaultKind.MISSING_SYNC,
                buffer.address,
                f"{name} at {buffer.address:#x} is given to the device without dma_map "
                f"{wanted.value}",
            )
        if self._iommu is not None:
            try:
                self._iommu.translate(buffer.address, buffer.length, _PERMISSION[wanted])
            except IommuFault as error:
                self._model.log.report(FaultKind.IOMMU_FAULT, error.iova, f"{name}: {error}")
