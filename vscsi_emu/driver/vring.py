"""The driver's half of a split virtqueue (virtio 1.4, 2.7)."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from vscsi_emu.driver.dma import Direction, DmaAllocator, DmaMemory
from vscsi_emu.virtio.config import ByteOrder

MAX_SIZE: Final = 32768
DESC_F_NEXT: Final = 1
DESC_F_WRITE: Final = 2
DESC_F_INDIRECT: Final = 4
AVAIL_F_NO_INTERRUPT: Final = 1
USED_F_NO_NOTIFY: Final = 1
LEGACY_ALIGN: Final = 4096

_DESCRIPTOR: Final = "QIHH"  # addr, len, flags, next
_USED_ELEMENT: Final = "II"  # id, len
DESCRIPTOR: Final = struct.Struct("<" + _DESCRIPTOR)
USED_ELEMENT: Final = struct.Struct("<" + _USED_ELEMENT)


class RingBroken(RuntimeError):
    """The device wrote something into the ring that no device may write."""


class RingFull(RuntimeError):
    """Not enough free descriptors; pop used buffers first."""


class Segment(NamedTuple):
    """A physically contiguous piece of a buffer: guest-physical address and bytes."""

    address: int
    length: int


class Used(NamedTuple):
    """A used element: the chain's head, and how many bytes at least the device wrote."""

    head: int
    length: int


@dataclass(frozen=True, slots=True)
class RingLayout:
    """Where the three parts of a ring of `size` entries lie (guest-physical)."""

    size: int
    desc: int
    driver: int
    device: int

    def __post_init__(self) -> None:
        if not 0 < self.size <= MAX_SIZE or self.size & (self.size - 1):
            raise ValueError(f"a split queue's size is a power of two up to 32768, not {self.size}")

    @classmethod
    def modern(cls, allocator: DmaAllocator, size: int) -> "RingLayout":
        """Three parts apart, each aligned as 2.7.1 says."""
        return cls(
            size,
            allocator.alloc_coherent(16 * size, 16),
            allocator.alloc_coherent(6 + 2 * size, 2),
            allocator.alloc_coherent(6 + 8 * size, 4),
        )

    @classmethod
    def legacy(cls, allocator: DmaAllocator, size: int, align: int = LEGACY_ALIGN) -> "RingLayout":
        """A block of its own, laid out as `contiguous` does."""
        length = _front(size, align) + -(-(6 + 8 * size) // align) * align
        return cls.contiguous(size, allocator.alloc_coherent(length, align), align)

    @classmethod
    def contiguous(cls, size: int, base: int, align: int = LEGACY_ALIGN) -> "RingLayout":
        """One block at `base`: descriptors, available, padding to `align`, used (2.7.2)."""
        return cls(size, base, base + 16 * size, base + _front(size, align))

    def descriptor(self, index: int) -> int:
        return self.desc + DESCRIPTOR.size * index

    @property
    def avail_flags(self) -> int:
        return self.driver

    @property
    def avail_idx(self) -> int:
        return self.driver + 2

    def avail_entry(self, index: int) -> int:
        return self.driver + 4 + 2 * (index % self.size)

    @property
    def used_event(self) -> int:
        return self.driver + 4 + 2 * self.size

    @property
    def used_flags(self) -> int:
        return self.device

    @property
    def used_idx(self) -> int:
        return self.device + 2

    def used_entry(self, index: int) -> int:
        return self.device + 4 + USED_ELEMENT.size * (index % self.size)

    @property
    def avail_event(self) -> int:
        return self.device + 4 + USED_ELEMENT.size * self.size


def _front(size: int, align: int) -> int:
    """Bytes of a legacy ring before its used ring."""
    return -(-(16 * size + 6 + 2 * size) // align) * align


def needs_event(event: int, new: int, old: int) -> bool:
    """Whether going from index `old` to `new` passes `event` (2.7.7, vring_need_event)."""
    return (new - event - 1) & 0xFFFF < (new - old) & 0xFFFF


@dataclass(slots=True)
class _Chain:
    descriptors: list[int]
    writable: int
    table: Segment | None


class SplitRing:
    """Adds chains, publishes them, and takes back what the device used.

    `event_idx`, `indirect`: features negotiated. `trust_length` False ignores the lengths in used
    elements, which legacy devices get wrong (2.7.8.3). `order`: the guest's own for a legacy
    device (2.7.3).
    """

    def __init__(
        self,
        memory: DmaMemory,
        allocator: DmaAllocator,
        layout: RingLayout,
        *,
        event_idx: bool = False,
        indirect: bool = False,
        trust_length: bool = True,
        order: ByteOrder = "<",
    ) -> None:
        self.layout = layout
        self._order = order
        self._descriptor = struct.Struct(order + _DESCRIPTOR)
        self._used_element = struct.Struct(order + _USED_ELEMENT)
        self._memory = memory
        self._allocator = allocator
        self._event_idx = event_idx
        self._indirect = indirect
        self._trust_length = trust_length
        self._free = list(range(layout.size))
        self._chains: dict[int, _Chain] = {}
        self._avail = 0  # next entry to fill; published up to _published
        self._published = 0
        self._used = 0
        for start, length in (
            (layout.desc, 16 * layout.size),
            (layout.driver, 6 + 2 * layout.size),
            (layout.device, 6 + 8 * layout.size),
        ):
            memory.write(start, bytes(length))

    @property
    def free_descriptors(self) -> int:
        return len(self._free)

    @property
    def in_flight(self) -> int:
        """Chains added and not yet popped."""
        return len(self._chains)

    @property
    def heads(self) -> list[int]:
        """Heads of the chains in flight, oldest first."""
        return list(self._chains)

    @property
    def used_index(self) -> int:
        """Free-running index of the next used element to pop."""
        return self._used

    def add(
        self,
        readable: Sequence[Segment],
        writable: Sequence[Segment],
        *,
        indirect_from: int | None = None,
    ) -> int:
        """Puts a chain into the ring, not yet published; returns its head.

        Segments from index `indirect_from` on go into an indirect table that the last direct
        descriptor of the chain points to (0: the table is the whole chain).
        """
        segments = [*readable, *writable]
        if not segments:
            raise ValueError("a chain has at least one segment")
        if len(segments) > self.layout.size:
            raise ValueError(f"{len(segments)} segments do not fit a queue of {self.layout.size}")
        if sum(s.length for s in segments) > 1 << 32:
            raise ValueError("a chain describes at most 2^32 bytes")
        split = len(segments) if indirect_from is None else indirect_from
        if not 0 <= split <= len(segments):
            raise ValueError(f"no segment {split} to start the indirect table with")
        tabled = split < len(segments)
        if tabled and not self._indirect:
            raise ValueError("VIRTIO_F_INDIRECT_DESC was not negotiated")
        needed = split + tabled
        if needed > len(self._free):
            raise RingFull(f"{needed} descriptors wanted, {len(self._free)} free")

        flags = [0] * len(readable) + [DESC_F_WRITE] * len(writable)
        entries = [(s.address, s.length, f) for s, f in zip(segments, flags, strict=True)]
        table = None
        if tabled:
            size = DESCRIPTOR.size * len(entries[split:])
            table = Segment(self._allocator.alloc(size), size)
            linked = self._linked(entries[split:], range(len(entries) - split))
            self._memory.write(table.address, linked)
            self._allocator.map(*table, Direction.TO_DEVICE)
            entries[split:] = [(*table, DESC_F_INDIRECT)]
        indices, self._free = self._free[:needed], self._free[needed:]
        raw = self._linked(entries, indices)
        for i, index in enumerate(indices):
            self._memory.write(
                self.layout.descriptor(index), raw[DESCRIPTOR.size * i : DESCRIPTOR.size * (i + 1)]
            )
        self._chains[indices[0]] = _Chain(indices, sum(s.length for s in writable), table)
        self._memory.write(
            self.layout.avail_entry(self._avail), struct.pack(self._order + "H", indices[0])
        )
        self._avail = (self._avail + 1) & 0xFFFF
        return indices[0]

    def publish(self) -> bool:
        """Exposes all added chains at once; True if the device wants to be notified (2.7.13).

        The release store orders the chains before the index; the fence orders the index before
        the suppression read, without which both sides may wait for each other.
        """
        old, self._published = self._published, self._avail
        self._store(self.layout.avail_idx, self._avail)
        self._memory.fence()
        if self._event_idx:
            event = self._load(self.layout.avail_event)
            return needs_event(event, self._avail, old)
        flags = self._load(self.layout.used_flags)
        return old != self._avail and not flags & USED_F_NO_NOTIFY

    def pop(self) -> Used | None:
        """The next used buffer, its descriptors free again; None if there is none.

        `RingBroken` for an index, head or length that the device cannot have.
        """
        pending = self._pending()
        if not pending:
            return None
        raw = self._memory.read(self.layout.used_entry(self._used), USED_ELEMENT.size)
        head, length = self._used_element.unpack(raw)
        chain = self._chains.pop(head, None)
        if chain is None:
            raise RingBroken(f"used element {self._used} names head {head}, which is not in flight")
        if self._trust_length and length > chain.writable:
            raise RingBroken(f"{length} bytes used of a buffer with {chain.writable} writable")
        self._free += chain.descriptors
        self._free_table(chain)
        self._used = (self._used + 1) & 0xFFFF
        return Used(head, length)

    def abandon(self) -> None:
        """Frees the tables of chains in flight, from a device that has let go of the ring. The
        ring's own memory stays its owner's; it is not used any more."""
        for chain in self._chains.values():
            self._free_table(chain)
        self._chains.clear()

    def _free_table(self, chain: _Chain) -> None:
        if chain.table is not None:
            self._allocator.unmap(*chain.table, Direction.TO_DEVICE)
            self._allocator.free(chain.table.address)

    def disable_notifications(self) -> None:
        """Asks for no used-buffer notifications: a hint, they may still come (2.7.7)."""
        if self._event_idx:
            self._set_used_event(-1)  # 65535 elements away
        else:
            self._store(self.layout.avail_flags, AVAIL_F_NO_INTERRUPT)

    def enable_notifications(self, after: int = 0) -> bool:
        """Asks for a notification once `after` more elements than popped, and one, are used
        (`after` counts with EVENT_IDX only). True if there is already something to pop, for which
        no notification may come (2.7.14)."""
        if self._event_idx:
            self._set_used_event(after)
        else:
            self._store(self.layout.avail_flags, 0)
        self._memory.fence()
        return self._pending() > after

    def _set_used_event(self, after: int) -> None:
        self._store(self.layout.used_event, (self._used + after) & 0xFFFF)

    def _pending(self) -> int:
        device_idx = self._load(self.layout.used_idx)
        pending = (device_idx - self._used) & 0xFFFF
        exposed = (self._published - self._used) & 0xFFFF
        if pending > exposed:
            raise RingBroken(f"used.idx {device_idx}: {pending} elements used, {exposed} in flight")
        return pending

    def _load(self, address: int) -> int:
        return self._native(self._memory.load_u16_acquire(address))

    def _store(self, address: int, value: int) -> None:
        self._memory.store_u16_release(address, self._native(value))

    def _native(self, value: int) -> int:
        """`value` as a little-endian u16 says it, or the other way round."""
        return value if self._order == "<" else (value & 0xFF) << 8 | value >> 8

    def _linked(self, entries: Sequence[tuple[int, int, int]], indices: Sequence[int]) -> bytes:
        """Descriptors (address, length, flags), each but the last chained to the next index."""
        last = len(entries) - 1
        return b"".join(
            self._descriptor.pack(address, length, flags | DESC_F_NEXT, indices[i + 1])
            if i < last
            else self._descriptor.pack(address, length, flags, 0)
            for i, (address, length, flags) in enumerate(entries)
        )
