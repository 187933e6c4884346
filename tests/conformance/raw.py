"""A request ring written by hand: whatever a hostile driver may put there."""

from typing import Final

from tests.conformance import cdb
from tests.conformance.attach import Guest
from tests.conformance.cdb import Disk
from tests.conformance.reads import DEADLINE, within
from vscsi_emu.driver.request import REQUEST_FIXED, RESPONSE_FIXED, Request
from vscsi_emu.driver.virtio_scsi import REQUEST_QUEUE, VirtioScsi
from vscsi_emu.driver.vring import (
    DESC_F_NEXT,
    DESC_F_WRITE,
    DESCRIPTOR,
    USED_ELEMENT,
    Segment,
    Used,
)
from vscsi_emu.virtio.scsi import encode_lun

REQUEST_BYTES: Final = REQUEST_FIXED + 32
RESPONSE_BYTES: Final = RESPONSE_FIXED + 96
CANARY: Final = 0xA5


class RawRing:
    """A queue of `guest`, past what its driver did there. `request` is a READ of one block from
    0:0, `response` and `data` the room for its answer."""

    def __init__(self, guest: Guest, queue: int = REQUEST_QUEUE) -> None:
        Disk(guest.device, 0, 0).ready()
        self.guest = guest
        self.queue = queue
        self.memory = guest.memory
        self.layout = guest.device.queues[queue].ring.layout
        self._avail = self.memory.load_u16_acquire(self.layout.avail_idx)
        self._used = self.memory.load_u16_acquire(self.layout.used_idx)
        header = Request(encode_lun(0, 0), cdb.read_10(0, 1), 77).pack_header(32)
        self.request = self.buffer(REQUEST_BYTES)
        self.memory.write(self.request.address, header)
        self.response = self.buffer(RESPONSE_BYTES)
        self.data = self.buffer(512)

    def buffer(self, length: int) -> Segment:
        """Guest memory filled with `CANARY`."""
        address = self.guest.bus.allocator.alloc(length, 16)
        self.memory.write(address, bytes([CANARY]) * length)
        return Segment(address, length)

    def descriptor(
        self, index: int, segment: Segment, flags: int = 0, following: int | None = None
    ) -> None:
        """Descriptor `index`; chained to `following`, if there is one."""
        raw = pack(segment, flags, following)
        self.memory.write(self.layout.descriptor(index), raw)

    def good_chain(self, first: int = 0) -> int:
        """The whole READ in descriptors `first` to `first` + 2; its head."""
        self.descriptor(first, self.request, 0, first + 1)
        self.descriptor(first + 1, self.response, DESC_F_WRITE, first + 2)
        self.descriptor(first + 2, self.data, DESC_F_WRITE)
        return first

    def table(self, *raw: bytes) -> Segment:
        """An indirect table of these descriptors."""
        content = b"".join(raw)
        segment = self.buffer(len(content))
        self.memory.write(segment.address, content)
        return segment

    def expose(self, *heads: int) -> None:
        """Makes chains available, and kicks."""
        for head in heads:
            self.memory.write(self.layout.avail_entry(self._avail), head.to_bytes(2, "little"))
            self._avail = (self._avail + 1) & 0xFFFF
        self.set_avail_idx(self._avail)

    def set_avail_idx(self, value: int) -> None:
        self.memory.store_u16_release(self.layout.avail_idx, value & 0xFFFF)
        self.memory.fence()
        self.guest.bus.notify(self.queue)

    def used(self) -> list[Used]:
        """Elements used since this was made."""
        end = self.memory.load_u16_acquire(self.layout.used_idx)
        count = (end - self._used) & 0xFFFF
        raws = (
            self.memory.read(self.layout.used_entry(self._used + i), USED_ELEMENT.size)
            for i in range(count)
        )
        return [Used(*USED_ELEMENT.unpack(raw)) for raw in raws]

    def failed(self, seconds: float = DEADLINE) -> bool:
        """Whether the device reports the ring as broken in time."""
        return within(lambda: self.guest.bus.ring_failed(self.queue), seconds)

    def settled(self, count: int = 1) -> bool:
        """Whether `count` chains are used in time, or the ring is reported as broken."""
        return within(lambda: len(self.used()) >= count or self.guest.bus.ring_failed(self.queue))

    def recover(self) -> None:
        """The driver resets the device and starts anew, over the same connection."""
        Disk(VirtioScsi(self.guest.bus), 0, 0).ready().read(0, 1)


def pack(segment: Segment, flags: int = 0, following: int | None = None) -> bytes:
    if following is None:
        return DESCRIPTOR.pack(segment.address, segment.length, flags, 0)
    return DESCRIPTOR.pack(segment.address, segment.length, flags | DESC_F_NEXT, following)
