"""Ways from the CPU to memory that a device shares: three, by who has a cache in between.

The device's view of memory is always what is in `GuestMemory`: there the real data plane works,
at its own pace, unaware of being modelled.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Final, Protocol

from vscsi_emu.driver.coherency.faults import FaultKind, FaultLog
from vscsi_emu.driver.dma import DmaMemory

LINE: Final = 64
"""Bytes of a cache line."""


class Path(Protocol):
    """Where a load or store of the CPU goes. Ranges may cross lines."""

    def peek(self, address: int, length: int) -> bytes:
        """What the CPU would read; changes and reports nothing."""

    def read(self, address: int, length: int) -> bytes: ...
    def write(self, address: int, data: bytes) -> None: ...
    def clean(self, address: int, length: int) -> None:
        """Writes dirty lines back."""

    def invalidate(self, address: int, length: int) -> None:
        """Drops lines, so that the next read sees memory."""

    def touch(self, address: int, length: int) -> None:
        """Brings lines into whatever cache there is, as any access or prefetch may."""

    def evict(self, random: Random) -> None:
        """Throws one line out of the cache, if there is one."""

    @property
    def disagreement(self) -> FaultKind:
        """What it is called when the device reads something else than the CPU wrote."""


class Shared:
    """Both sides have one view: through the same caches, or past all of them."""

    disagreement = FaultKind.STALE_DEVICE_READ

    def __init__(self, memory: DmaMemory) -> None:
        self._memory = memory

    def peek(self, address: int, length: int) -> bytes:
        return self.read(address, length)

    def read(self, address: int, length: int) -> bytes:
        if length == 2 and address % 2 == 0:
            return self._memory.load_u16_acquire(address).to_bytes(2, "little")
        return self._memory.read(address, length)

    def write(self, address: int, data: bytes) -> None:
        _store(self._memory, address, data)

    def clean(self, address: int, length: int) -> None:
        pass

    def invalidate(self, address: int, length: int) -> None:
        pass

    def touch(self, address: int, length: int) -> None:
        pass

    def evict(self, random: Random) -> None:
        pass


@dataclass(slots=True)
class _Line:
    """The CPU's copy of a line, and what both sides agreed on when they parted."""

    copy: bytearray
    base: bytes

    @property
    def stored(self) -> bool:
        """Whether the CPU stored something that the device does not see."""
        return self.copy != self.base


class _TwoViews:
    """Lines of which CPU and device see different copies. Others are shared."""

    def __init__(self, memory: DmaMemory, log: FaultLog) -> None:
        self._memory = memory
        self._log = log
        self._lines: dict[int, _Line] = {}

    def peek(self, address: int, length: int) -> bytes:
        return b"".join(self._peek_line(*piece) for piece in _pieces(address, length))

    def _peek_line(self, start: int, low: int, high: int) -> bytes:
        line = self._lines.get(start)
        if line is None:
            return self._memory.read(start + low, high - low)
        return bytes(line.copy[low:high])

    def touch(self, address: int, length: int) -> None:
        for start, _, _ in _pieces(address, length):
            self._fill(start)

    def evict(self, random: Random) -> None:
        if self._lines:
            start = random.choice(list(self._lines))
            self._evict(start)

    def _fill(self, start: int) -> _Line:
        line = self._lines.get(start)
        if line is None:
            data = self._memory.read(start, LINE)
            line = self._lines[start] = _Line(bytearray(data), data)
        return line

    def _evict(self, start: int) -> None:
        raise NotImplementedError

    def _changed_by_device(self, line: _Line, start: int, low: int, high: int) -> int | None:
        """Address of the first byte of the piece that the device wrote since they parted."""
        now = self._memory.read(start + low, high - low)
        if now == line.base[low:high]:
            return None
        return start + next(i for i in range(low, high) if now[i - low] != line.base[i])


class CpuCache(_TwoViews):
    """The CPU goes through its cache; the device reads and writes memory beneath it."""

    disagreement = FaultKind.STALE_DEVICE_READ

    def read(self, address: int, length: int) -> bytes:
        for start, low, high in _pieces(address, length):
            at = self._changed_by_device(self._fill(start), start, low, high)
            if at is not None:
                self._log.report(
                    FaultKind.STALE_CPU_READ,
                    at,
                    f"CPU read a stale cached line: the device wrote {at:#x} "
                    "and the CPU did not invalidate",
                )
        return self.peek(address, length)

    def write(self, address: int, data: bytes) -> None:
        for start, low, high in _pieces(address, len(data)):
            offset = start + low - address
            self._fill(start).copy[low:high] = data[offset : offset + high - low]

    def clean(self, address: int, length: int) -> None:
        for start, _, _ in _pieces(address, length):
            self._write_back(start)

    def invalidate(self, address: int, length: int) -> None:
        for start, low, high in _pieces(address, length):
            if high - low < LINE:
                self._write_back(start)  # the rest of the line is somebody else's
            self._lines.pop(start, None)

    def _evict(self, start: int) -> None:
        self._write_back(start)
        del self._lines[start]

    def _write_back(self, start: int) -> None:
        line = self._lines.get(start)
        if line is None or not line.stored:
            return
        at = self._changed_by_device(line, start, 0, LINE)
        if at is not None:
            self._log.report(
                FaultKind.LOST_STORE,
                at,
                f"the CPU's dirty line {start:#x} was written back over "
                f"what the device had stored at {at:#x}",
            )
        self._memory.write(start, bytes(line.copy))
        line.base = bytes(line.copy)


class DeviceCache(_TwoViews):
    """The CPU goes past the caches that the device's accesses go through: mismatched aliases.

    Lines here are those that the device's caches hold; for all others memory is the one view.
    """

    disagreement = FaultKind.MISMATCHED_ALIAS

    def read(self, address: int, length: int) -> bytes:
        for start, low, high in _pieces(address, length):
            line = self._lines.get(start)
            at = self._changed_by_device(line, start, low, high) if line else None
            if at is not None:
                self._log.report(
                    FaultKind.MISMATCHED_ALIAS,
                    at,
                    f"CPU read {at:#x} past the cache, where the device's store to it is",
                )
        return self.peek(address, length)

    def write(self, address: int, data: bytes) -> None:
        for start, low, high in _pieces(address, len(data)):
            offset = start + low - address
            piece = data[offset : offset + high - low]
            if line := self._lines.get(start):
                line.copy[low:high] = piece
            else:
                _store(self._memory, start + low, piece)

    def clean(self, address: int, length: int) -> None:
        """By address, hence through all caches down to memory."""
        for start, _, _ in _pieces(address, length):
            if start in self._lines:
                self._evict(start)

    def invalidate(self, address: int, length: int) -> None:
        self.clean(address, length)

    def _evict(self, start: int) -> None:
        line = self._lines.pop(start)
        if self._changed_by_device(line, start, 0, LINE) is None:
            # A clean line just goes; the device will fetch what the CPU stored.
            for low, high in _runs(line):
                _store(self._memory, start + low, bytes(line.copy[low:high]))
        elif line.stored:
            at = start + next(_runs(line))[0]
            self._log.report(
                FaultKind.LOST_STORE,
                at,
                f"the device's dirty line {start:#x} was written back over "
                f"what the CPU had stored at {at:#x} past the cache",
            )


def _pieces(address: int, length: int) -> Iterator[tuple[int, int, int]]:
    """(line's address, first and last+1 offset in it) of each line that a range touches."""
    end = address + length
    for start in range(address - address % LINE, end, LINE):
        yield start, max(address - start, 0), min(end - start, LINE)


def _runs(line: _Line) -> Iterator[tuple[int, int]]:
    """Offsets of what the CPU stored, 16 bits at a time."""
    for low in range(0, LINE, 2):
        if line.copy[low : low + 2] != line.base[low : low + 2]:
            yield low, low + 2


def _store(memory: DmaMemory, address: int, data: bytes) -> None:
    """A store of the CPU; 16 bits at once are seen at once."""
    if len(data) == 2 and address % 2 == 0:
        memory.store_u16_release(address, int.from_bytes(data, "little"))
    else:
        memory.write(address, data)
