"""What a CPU sees at physical addresses: RAM, registers, and nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from vscsi_emu._dataplane import GuestMemory
    from vscsi_emu.transport.mmio import MmioBus

ADDRESSES: Final = 1 << 64
_WORD: Final = 4
"""The widest access that registers get."""
_INDEX: Final = 2


class AddressSpace:
    """Accesses of any length, done as QEMU does them: RAM as it is, registers by the widest aligned
    accesses up to 4 bytes. Where nothing is, reads give zeros and writes are lost."""

    def __init__(self, memory: GuestMemory, bus: MmioBus) -> None:
        self._memory = memory
        self._bus = bus

    def read(self, address: int, length: int) -> bytes:
        return b"".join(
            self._load(kind, at, size) for kind, at, size in self._pieces(address, length)
        )

    def write(self, address: int, data: bytes) -> None:
        for kind, at, size in self._pieces(address, len(data)):
            piece = data[at - address : at - address + size]
            if kind == "ram":
                self._store_ram(at, piece)
            elif kind == "registers":
                self._bus.write(at, size, int.from_bytes(piece, "little"))

    def _load(self, kind: str, address: int, size: int) -> bytes:
        if kind == "ram":
            if size == _INDEX and address % _INDEX == 0:
                return self._memory.load_u16_acquire(address).to_bytes(size, "little")
            return self._memory.read(address, size)
        if kind == "registers":
            return self._bus.read(address, size).to_bytes(size, "little")
        return bytes(size)

    def _store_ram(self, address: int, data: bytes) -> None:
        if len(data) == _INDEX and address % _INDEX == 0:
            # Ring indices: one store, and not before what was written earlier.
            self._memory.store_u16_release(address, int.from_bytes(data, "little"))
        else:
            self._memory.write(address, data)

    def _pieces(self, address: int, length: int) -> Iterator[tuple[str, int, int]]:
        """(kind, address, length) of what lies there, in order."""
        end = address + length
        ranges = [(start, start + size, "ram") for start, size, _ in self._memory.regions]
        ranges += [(start, start + size, "registers") for start, size in self._bus.regions]
        ranges.sort()
        while address < end:
            start, stop, kind = next(
                (entry for entry in ranges if entry[1] > address), (end, end, "nothing")
            )
            if start > address:
                kind, stop = "nothing", start
            size = min(stop, end) - address
            if kind == "registers":
                size = _aligned(address, size)
            yield kind, address, size
            address += size


def _aligned(address: int, length: int) -> int:
    """The widest power of two, at most 4 and `length`, that `address` is a multiple of."""
    size = _WORD
    while size > length or address % size:
        size //= 2
    return size
