"""A virtqueue with its buffers: bytes in, bytes out."""

from collections.abc import Sequence

from vscsi_emu.driver.dma import Direction, DmaAllocator, DmaMemory
from vscsi_emu.driver.vring import Segment, SplitRing


class Ticket:
    """One buffer given to the device, until it comes back."""

    def __init__(self, memory: DmaMemory, readable: list[Segment], writable: list[Segment]) -> None:
        self._memory = memory
        self.readable = readable
        self.writable = writable
        self._reply: bytes | None = None

    @property
    def done(self) -> bool:
        return self._reply is not None

    @property
    def reply(self) -> bytes:
        """What the device wrote, no byte more (2.7.8.3)."""
        if self._reply is None:
            raise RuntimeError("the device has not used this buffer yet")
        return self._reply

    def complete(self, length: int) -> None:
        written = b"".join(self._memory.read(s.address, s.length) for s in self.writable)
        self._reply = written[:length]


class BufferQueue:
    """Copies buffers into guest memory, and what the device wrote out of it.

    `align`: alignment of each piece in guest memory, in bytes.
    """

    def __init__(
        self,
        memory: DmaMemory,
        allocator: DmaAllocator,
        ring: SplitRing,
        *,
        trust_length: bool = True,
        align: int = 16,
    ) -> None:
        self.ring = ring
        self._memory = memory
        self._allocator = allocator
        self._trust_length = trust_length
        self._align = align
        self._tickets: dict[int, Ticket] = {}

    def add(
        self,
        readable: Sequence[bytes],
        writable: Sequence[int],
        *,
        indirect_from: int | None = None,
    ) -> Ticket:
        """A chain of these pieces: bytes to read, lengths to write. Not yet published.

        Raises `RingFull` or `DmaExhausted` and then leaves nothing behind.
        """
        taken: list[int] = []
        try:
            sources = [self._alloc(len(piece), taken) for piece in readable]
            sinks = [self._alloc(length, taken) for length in writable]
            for segment, piece in zip(sources, readable, strict=True):
                self._memory.write(segment.address, piece)
            head = self.ring.add(sources, sinks, indirect_from=indirect_from)
        except BaseException:
            for address in taken:
                self._allocator.free(address)
            raise
        for source in sources:
            self._allocator.map(*source, Direction.TO_DEVICE)
        for sink in sinks:
            self._allocator.map(*sink, Direction.FROM_DEVICE)
        ticket = self._tickets[head] = Ticket(self._memory, sources, sinks)
        return ticket

    def reap(self) -> list[Ticket]:
        """Tickets whose buffers came back, in the device's order. Their memory is free again."""
        done = []
        while (used := self.ring.pop()) is not None:
            ticket = self._tickets.pop(used.head)
            self._unmap(ticket)
            capacity = sum(s.length for s in ticket.writable)
            ticket.complete(used.length if self._trust_length else capacity)
            self._free(ticket)
            done.append(ticket)
        return done

    def abandon(self) -> list[Ticket]:
        """Takes back all buffers unanswered, from a device that has let go of the ring (2.6.1)."""
        lost = list(self._tickets.values())
        for ticket in lost:
            self._unmap(ticket)
            self._free(ticket)
        self._tickets.clear()
        self.ring.abandon()
        return lost

    def _unmap(self, ticket: Ticket) -> None:
        for source in ticket.readable:
            self._allocator.unmap(*source, Direction.TO_DEVICE)
        for sink in ticket.writable:
            self._allocator.unmap(*sink, Direction.FROM_DEVICE)

    def _free(self, ticket: Ticket) -> None:
        for segment in (*ticket.readable, *ticket.writable):
            self._allocator.free(segment.address)

    def _alloc(self, length: int, taken: list[int]) -> Segment:
        address = self._allocator.alloc(length, self._align)
        taken.append(address)
        return Segment(address, length)
