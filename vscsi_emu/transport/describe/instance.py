"""Where the registers of a virtio-mmio device are, and how it behaves on the bus."""

from dataclasses import dataclass
from typing import Final

REGISTERS: Final = 0x200
"""Bytes of registers and configuration space that Linux and QEMU give each device."""
CONFIG: Final = 0x100
"""Offset of the configuration space (virtio 1.4, 4.2.2): less than this is no device."""
SPIS: Final = 988
"""Shared peripheral interrupts of an Arm GIC: interrupt ids 32 to 1019."""


@dataclass(frozen=True, slots=True)
class MmioInstance:
    """One device. `base` and `size` in bytes; `irq`: number of the interrupt line (of shared
    peripheral interrupts in a device tree, as the kernel counts them on a command line).

    `dma_coherent`: device and driver see the same memory without cache maintenance. True of any
    device emulated by a program, which reaches guest memory through the CPU's caches.
    """

    base: int
    irq: int
    size: int = REGISTERS
    dma_coherent: bool = True

    def __post_init__(self) -> None:
        if self.base < 0 or self.base % 4:
            raise ValueError(f"base {self.base:#x} must be a multiple of 4: registers are 32 bits")
        if self.size <= CONFIG or self.size % 4:
            raise ValueError(
                f"size {self.size:#x} must be a multiple of 4 above {CONFIG:#x}, "
                "where the configuration space begins"
            )
        if self.base + self.size > 1 << 64:
            raise ValueError(f"{self.size:#x} bytes at {self.base:#x} end above 2^64")
        if not 0 <= self.irq < SPIS:
            raise ValueError(f"irq {self.irq} must be from 0 to {SPIS - 1}")


def consecutive(first: MmioInstance, count: int) -> list[MmioInstance]:
    """`count` instances side by side, with interrupt lines in sequence."""
    if count < 1:
        raise ValueError(f"{count} instances: at least one is needed")
    return [
        MmioInstance(first.base + i * first.size, first.irq + i, first.size, first.dma_coherent)
        for i in range(count)
    ]
