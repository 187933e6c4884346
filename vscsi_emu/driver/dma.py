"""Memory that driver and device share, as the driver sees it: five verbs and an allocator."""

from bisect import insort
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


class DmaAllocator:
    """First-fit allocator of guest-physical ranges. Not for use by several threads."""

    def __init__(self, base: int, size: int) -> None:
        self._free = [(base, size)]
        self._used: dict[int, int] = {}

    @property
    def allocated(self) -> int:
        """Bytes handed out and not yet freed."""
        return sum(self._used.values())

    def alloc(self, size: int, align: int = 16) -> int:
        """Address of `size` bytes, a multiple of `align` (a power of two)."""
        size = max(size, 1)
        for i, (start, length) in enumerate(self._free):
            address = -(-start // align) * align
            gap = address - start
            if gap + size <= length:
                rest = (address + size, length - gap - size)
                self._free[i : i + 1] = [r for r in ((start, gap), rest) if r[1]]
                self._used[address] = size
                return address
        raise DmaExhausted(f"no {size} bytes of guest memory, aligned to {align}, are free")

    def free(self, address: int) -> None:
        """Gives a range back; `KeyError` for an address that `alloc` did not return."""
        insort(self._free, (address, self._used.pop(address)))
        merged: list[tuple[int, int]] = []
        for start, length in self._free:
            if merged and sum(merged[-1]) == start:
                merged[-1] = (merged[-1][0], merged[-1][1] + length)
            else:
                merged.append((start, length))
        self._free = merged
