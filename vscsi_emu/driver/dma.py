"""Memory that driver and device share, as the driver sees it: five verbs and an allocator."""

from bisect import bisect
from enum import Enum
from typing import Protocol


class DmaMemory(Protocol):
    """Guest RAM by guest-physical address. `_dataplane.GuestMemory` is one.

    Python never maps guest RAM: a store that is not one store (`struct.pack_into` zeroes first),
    or that overtakes another, shows to the device.
    """

    def read(self, address: int, length: int, /) -> bytes: ...
    def write(self, address: int, data: bytes, /) -> None: ...
    def load_u16_acquire(self, address: int, /) -> int:
        """A little-endian u16; later accesses are not moved before it."""

    def store_u16_release(self, address: int, value: int, /) -> None:
        """A little-endian u16; earlier accesses are not moved behind it."""

    def fence(self) -> None:
        """Full barrier, also store→load."""


class DmaExhausted(MemoryError):
    """The allocator has no free range of that size and alignment."""


class Direction(Enum):
    """Who may write a buffer while the device has it (enum dma_data_direction)."""

    TO_DEVICE = "to device"
    FROM_DEVICE = "from device"


class DmaAllocator:
    """First-fit allocator of guest-physical ranges. Not for use by several threads.

    This one is for devices that see what the CPU sees: giving them memory takes no more than
    telling where it is. Others override what Linux calls the DMA API.
    """

    def __init__(self, base: int, size: int) -> None:
        self._free = [(base, size)]  # sorted, no two adjacent
        self._used: dict[int, int] = {}

    @property
    def allocated(self) -> int:
        """Bytes handed out and not yet freed, what rounding up takes included."""
        return sum(self._used.values())

    def alloc(self, size: int, align: int = 16) -> int:
        """Address of `size` bytes, a multiple of `align` (a power of two)."""
        # Rounded up, so that no slivers collect which nothing fits.
        rounded = max(1, -(-size // align)) * align
        for i, (start, length) in enumerate(self._free):
            address = -(-start // align) * align
            gap = address - start
            if gap + rounded <= length:
                rest = (address + rounded, length - gap - rounded)
                self._free[i : i + 1] = [r for r in ((start, gap), rest) if r[1]]
                self._used[address] = rounded
                return address
        raise DmaExhausted(f"no {size} bytes of guest memory, aligned to {align}, are free")

    def alloc_coherent(self, size: int, align: int = 16) -> int:
        """As `alloc`, for memory that driver and device use at the same time: rings."""
        return self.alloc(size, align)

    def map(self, address: int, length: int, direction: Direction) -> None:
        """Gives a buffer to the device (dma_map_single): from now on the driver leaves it alone."""

    def unmap(self, address: int, length: int, direction: Direction) -> None:
        """Takes it back, before the driver looks at it or frees it."""

    def free(self, address: int) -> None:
        """Gives a range back; `KeyError` for an address that `alloc` did not return."""
        start, end = address, address + self._used.pop(address)
        i = bisect(self._free, (start, 0))
        first = last = i
        if i and sum(self._free[i - 1]) == start:
            first, start = i - 1, self._free[i - 1][0]
        if i < len(self._free) and self._free[i][0] == end:
            last, end = i + 1, sum(self._free[i])
        self._free[first:last] = [(start, end - start)]
