"""The vhost-user bus: a driver as the front end of a back end's socket."""

import errno
import os
from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum
from typing import Final, Self

from vscsi_emu._dataplane import GuestMemory
from vscsi_emu.driver.dma import DmaAllocator
from vscsi_emu.driver.front_end import FrontEnd
from vscsi_emu.driver.vring import RingLayout
from vscsi_emu.virtio import vhost_user as vu
from vscsi_emu.virtio.vhost_user import MemoryRegion, ProtocolFeature

USER_OFFSET: Final = 0x7F00_0000_0000
"""Made-up user address of guest address 0: any will do that is not the guest address itself."""

SUPPORTED: Final = (
    ProtocolFeature.MQ
    | ProtocolFeature.REPLY_ACK
    | ProtocolFeature.BACKEND_REQ
    | ProtocolFeature.CONFIG
    | ProtocolFeature.RESET_DEVICE
    | ProtocolFeature.CONFIGURE_MEM_SLOTS
    | ProtocolFeature.STATUS
)
"""Protocol features used if offered; in-band notifications only for who asks for them."""


class Notify(Enum):
    """How one side of a ring tells the other."""

    EVENTFD = "eventfd"
    INBAND = "in-band message"
    POLL = "not at all"


def regions_of(
    memory: GuestMemory, pieces: int = 1, user_offset: int = USER_OFFSET
) -> tuple[MemoryRegion, ...]:
    """Anonymous guest memory as `pieces` adjacent regions of equal size (the last: the rest)."""
    ((start, size, _),) = memory.regions
    step = size // pieces
    sizes = [step] * (pieces - 1) + [size - step * (pieces - 1)]
    return tuple(
        MemoryRegion(start + i * step, n, user_offset + start + i * step, i * step)
        for i, n in enumerate(sizes)
    )


@dataclass(slots=True)
class _Queue:
    layout: RingLayout
    kick: int
    call: int
    error: int

    def close(self) -> None:
        vu.close_fds([fd for fd in (self.kick, self.call, self.error) if fd >= 0])


class VhostUserBus:
    """`Bus` over vhost-user. Sets up the connection and the memory table when made.

    `pieces`: regions that the memory is announced in. `kick` and `call` choose how rings notify;
    INBAND negotiates in-band notifications, which the back end must offer. Queues start disabled
    without `enable`. The connection is closed with the bus.
    """

    def __init__(
        self,
        front_end: FrontEnd,
        memory: GuestMemory,
        allocator: DmaAllocator,
        *,
        pieces: int = 1,
        protocol_features: ProtocolFeature = SUPPORTED,
        kick: Notify = Notify.EVENTFD,
        call: Notify = Notify.EVENTFD,
        enable: bool = True,
    ) -> None:
        self.front_end = front_end
        self._memory = memory
        self._allocator = allocator
        self._kick = kick
        self._call = call
        self._enable = enable
        self._queues: dict[int, _Queue] = {}
        self._local_status = 0
        try:
            self._negotiate(protocol_features)
            # With GPA_ADDRESSES user addresses repeat the guest's, and so do ring addresses.
            by_guest = ProtocolFeature.GPA_ADDRESSES in front_end.protocol_features
            self.regions = regions_of(memory, pieces, 0 if by_guest else USER_OFFSET)
            self.set_memory_table()
        except BaseException:
            front_end.close()
            raise

    def _negotiate(self, wanted: ProtocolFeature) -> None:
        self.front_end.put(vu.SET_OWNER)
        self._offered = self.front_end.get_u64(vu.GET_FEATURES)
        self.max_queues = 0x100
        if not self._offered & vu.F_PROTOCOL_FEATURES:
            return
        inband = Notify.INBAND in (self._kick, self._call)
        if inband:
            wanted |= ProtocolFeature.INBAND_NOTIFICATIONS
        accepted = self.front_end.negotiate_protocol(wanted)
        if inband and ProtocolFeature.INBAND_NOTIFICATIONS not in accepted:
            raise ValueError("the back end offers no in-band notifications")
        if ProtocolFeature.MQ in accepted:
            self.max_queues = self.front_end.get_u64(vu.GET_QUEUE_NUM)
        if ProtocolFeature.BACKEND_REQ in accepted:
            self.front_end.open_back_channel()

    def set_memory_table(self) -> None:
        """Announces `regions`, all backed by the memory's one descriptor."""
        fds = [self._memory.fileno()] * len(self.regions)
        self.front_end.put(vu.SET_MEM_TABLE, vu.MemoryTable(self.regions), fds)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Drops the connection; rings die with it."""
        self.front_end.close()
        self._forget_queues()

    def _forget_queues(self) -> None:
        for queue in self._queues.values():
            queue.close()
        self._queues.clear()

    @property
    def memory(self) -> GuestMemory:
        return self._memory

    @property
    def allocator(self) -> DmaAllocator:
        return self._allocator

    # ── Device ──────────────────────────────────────────────────────────────────────────────────

    def device_features(self) -> int:
        """Bit 30 belongs to the transport, not to the driver (6.3)."""
        return self._offered & ~vu.F_PROTOCOL_FEATURES

    def set_driver_features(self, features: int) -> None:
        bit_30 = self._offered & vu.F_PROTOCOL_FEATURES
        self.front_end.put_u64(vu.SET_FEATURES, features | bit_30)

    def status(self) -> int:
        if ProtocolFeature.STATUS in self.front_end.protocol_features:
            return self.front_end.get_u64(vu.GET_STATUS)
        return self._local_status

    def set_status(self, status: int) -> None:
        self._local_status = status
        if ProtocolFeature.STATUS in self.front_end.protocol_features:
            self.front_end.put_u64(vu.SET_STATUS, status)

    def reset(self) -> None:
        """Stops the rings, then status 0 and, where the back end has it, RESET_DEVICE."""
        for index in list(self._queues):
            self.stop_queue(index)
        self._forget_queues()
        self.set_status(0)
        if ProtocolFeature.RESET_DEVICE in self.front_end.protocol_features:
            self.front_end.put(vu.RESET_DEVICE)

    def read_config(self, offset: int, length: int) -> bytes:
        return self.front_end.get_config(offset, length)

    def write_config(self, offset: int, data: bytes) -> None:
        self.front_end.put(vu.SET_CONFIG, vu.ConfigSpace(offset, 0, data))

    # ── Queues ──────────────────────────────────────────────────────────────────────────────────

    def max_queue_size(self, index: int) -> int:
        """vhost-user has no message for it: what a back end must stand, and 0 for a queue above
        those that the back end says it has."""
        return 1024 if index < self.max_queues else 0

    def start_queue(self, index: int, layout: RingLayout) -> None:
        """Configures and starts queue `index`, and enables it."""
        self.configure_queue(index, layout, base=0)
        self.run_queue(index)

    def configure_queue(self, index: int, layout: RingLayout, *, base: int) -> None:
        """Size, addresses and next avail index of a stopped queue."""
        put = self.front_end.put
        put(vu.SET_VRING_NUM, vu.VringState(index, layout.size))
        put(vu.SET_VRING_BASE, vu.VringState(index, base))
        put(
            vu.SET_VRING_ADDR,
            vu.VringAddr(
                index,
                0,
                self.user_address(layout.desc),
                self.user_address(layout.device),
                self.user_address(layout.driver),
                0,
            ),
        )
        if index in self._queues:
            self._queues.pop(index).close()
        self._queues[index] = _Queue(
            layout,
            kick=_eventfd(self._kick),
            call=_eventfd(self._call),
            error=os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK),
        )

    def run_queue(self, index: int) -> None:
        """Hands over the notifiers, which starts the queue, and enables it if that is wanted."""
        queue = self._queues[index]
        if self._call is not Notify.INBAND:
            self._put_fd(vu.SET_VRING_CALL, index, queue.call)
        self._put_fd(vu.SET_VRING_ERR, index, queue.error)
        if self._kick is not Notify.INBAND:
            self._put_fd(vu.SET_VRING_KICK, index, queue.kick)
        if self._enable and self._offered & vu.F_PROTOCOL_FEATURES:
            self.front_end.put(vu.SET_VRING_ENABLE, vu.VringState(index, 1))
        # Back ends of older specifications start a ring on its first kick only.
        self.notify(index)

    def stop_queue(self, index: int) -> int:
        """GET_VRING_BASE: waits for what is in flight; returns the next avail index."""
        reply = self.front_end.get(vu.GET_VRING_BASE, vu.VringState(index, 0))
        assert isinstance(reply, vu.VringState)
        return reply.num

    def _put_fd(self, message: vu.MessageType, index: int, fd: int) -> None:
        self.front_end.put(message, vu.VringFd.of(index, has_fd=fd >= 0), [fd] if fd >= 0 else [])

    def notify(self, index: int) -> None:
        if self._kick is Notify.INBAND:
            self.front_end.put(vu.VRING_KICK, vu.VringState(index, 0))
        elif self._kick is Notify.EVENTFD:
            os.eventfd_write(self._queues[index].kick, 1)

    def wait(self, queues: Collection[int], timeout: float) -> set[int]:
        if self._call is Notify.POLL:
            # Nothing will tell; give the back end a moment and have the rings looked at.
            self.front_end.poll([], min(timeout, 0.0005))
            return set(queues) if timeout > 0 else set()
        fds = {self._queues[i].call: i for i in queues if self._queues[i].call >= 0}
        waiting = 0.0 if self.front_end.called & set(queues) else timeout
        ready = {fds[fd] for fd in self.front_end.poll(fds, waiting)}
        for index in ready:
            self.take_call(index)
        ready |= self.front_end.called & set(queues)
        self.front_end.called -= ready
        return ready

    def kick_fd(self, index: int) -> int:
        """The queue's kick eventfd, -1 if it has none; still the bus's."""
        return self._queues[index].kick

    def take_call(self, index: int) -> int:
        """Count on the queue's call eventfd since the last look, which clears it."""
        return _drain(self._queues[index].call)

    def ring_failed(self, index: int) -> bool:
        """Whether the back end reported an error on the queue since the last look."""
        inband = index in self.front_end.failed
        self.front_end.failed.discard(index)
        return bool(_drain(self._queues[index].error)) or inband

    def user_address(self, guest_address: int) -> int:
        """What ring addresses are given in: the front end's own addresses."""
        for region in self.regions:
            if region.guest_address <= guest_address < region.guest_address + region.size:
                return guest_address - region.guest_address + region.user_address
        raise ValueError(f"guest address {guest_address:#x} is in no memory region")


def _eventfd(notify: Notify) -> int:
    return os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) if notify is Notify.EVENTFD else -1


def _drain(eventfd: int) -> int:
    try:
        return os.eventfd_read(eventfd)
    except OSError as error:
        if error.errno != errno.EAGAIN:
            raise
        return 0
