"""Physical addresses of virtio-mmio devices, and the way from registers to an `Hba`."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import Final, Protocol

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
