"""The virtio-scsi guest driver: the 2011 Linux driver's job, over any `Bus`.

Clauses are those of virtio 1.4, 5.6.
"""

import itertools
import struct
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Generic, TypeVar

from vscsi_emu.driver.bus import Bus
from vscsi_emu.driver.queue import BufferQueue, Ticket
from vscsi_emu.driver.request import RESPONSE_FIXED, AnswerError, Framing, Request, Result, separate
from vscsi_emu.driver.vring import RingFull, RingLayout, SplitRing
from vscsi_emu.virtio import config as scsi_config
from vscsi_emu.virtio.config import ByteOrder, ScsiConfig
from vscsi_emu.virtio.features import Feature, Status
from vscsi_emu.virtio.scsi import (
    AsyncReply,
    AsyncRequest,
    ControlType,
    Event,
    TmfRequest,
    encode_lun,
)

CONTROL_QUEUE: Final = 0
EVENT_QUEUE: Final = 1
REQUEST_QUEUE: Final = 2
"""The first one."""
EVENT_BUFFERS: Final = 8
SECTOR: Final = 512
"""Unit of max_sectors, in bytes."""
OLD_MAX_SECTORS: Final = 0xFFFF
SENSE_SIZE_OFFSET: Final = 20
CDB_SIZE_OFFSET: Final = 24

KNOWN: Final = (
    Feature.VERSION_1
    | Feature.ANY_LAYOUT
    | Feature.INDIRECT_DESC
    | Feature.EVENT_IDX
    | Feature.SCSI_HOTPLUG
    | Feature.SCSI_CHANGE
    | Feature.SCSI_INOUT
)

_USABLE: Final = MappingProxyType(
    {
        "num_queues": (1, 0x10000 - REQUEST_QUEUE),
        "seg_max": (1, 0xFFFFFFFF),
        "max_sectors": (1, 0xFFFFFFFF),
        "cmd_per_lun": (1, 0xFFFFFFFF),
        "event_info_size": (0, 4096),
        "sense_size": (0, 4096),
        "cdb_size": (scsi_config.MIN_CDB_SIZE, 4096),
    }
)
"""Least and most of each number in configuration space that this driver works with."""

T = TypeVar("T")


class ProbeError(RuntimeError):
    """The device cannot be used; it was told so by FAILED."""


@dataclass(frozen=True, slots=True)
class Options:
    """How the driver uses a device.

    `features`: accepted if offered. `queue_size`: the most entries a ring gets. `queues`: request
    queues used (None: all). `cdb_size`, `sense_size`: None leaves the device's. `framing`: how
    headers and data share descriptors; for a legacy device without ANY_LAYOUT it must be
    `separate`. `indirect_from`: as for `SplitRing.add`, if negotiated. `align`: of buffers, bytes.
    `event_buffers`: how many the event queue is kept filled with. `obey_limits` False plays an
    old guest that ignores max_sectors, seg_max and cmd_per_lun. `trust_length` False ignores used
    lengths of modern devices too: QEMU's say more than it wrote. `byte_order`: the guest's, in
    which legacy devices are spoken to.
    """

    features: Feature = KNOWN
    queue_size: int = 128
    queues: int | None = 1
    cdb_size: int | None = None
    sense_size: int | None = None
    framing: Framing = separate
    indirect_from: int | None = 0
    align: int = 16
    event_buffers: int = EVENT_BUFFERS
    obey_limits: bool = True
    trust_length: bool = True
    byte_order: ByteOrder = "<"


@dataclass(eq=False, frozen=True, slots=True)
class InFlight(Generic[T]):
    """A request on its way. `tag` is its id, for task management."""

    queue: int
    tag: int
    lun: bytes
    ticket: Ticket
    parse: Callable[[bytes], T]

    @property
    def done(self) -> bool:
        return self.ticket.done


class VirtioScsi:
    """A virtio-scsi device, probed when made. Not for use by several threads.

    `timeout`: seconds that any wait takes at most, unless it is told otherwise.
    """

    def __init__(self, bus: Bus, options: Options | None = None, *, timeout: float = 10.0) -> None:
        self.bus = bus
        self.options = options or Options()
        self.timeout = timeout
        self.features = Feature(0)
        self.config = ScsiConfig()
        self.queues: dict[int, BufferQueue] = {}
        self._tags = itertools.count(1)
        self._commands: dict[Ticket, bytes] = {}
        self._per_lun: Counter[bytes] = Counter()
        self._events: list[Event] = []
        self._probe()

    # ── Probe ───────────────────────────────────────────────────────────────────────────────────

    def _probe(self) -> None:
        """Initialization in the order of 3.1.1; 3.1.2 for a device without VERSION_1."""
        self.bus.reset()
        status = Status.ACKNOWLEDGE
        self.bus.set_status(status)
        status |= Status.DRIVER
        self.bus.set_status(status)
        try:
            self.features = Feature(self.bus.device_features() & self.options.features)
            self.bus.set_driver_features(self.features)
            if Feature.VERSION_1 in self.features:
                status |= Status.FEATURES_OK
                self.bus.set_status(status)
                if not self.bus.status() & Status.FEATURES_OK:
                    raise ProbeError(f"the device refused features {self.features!r}")
            if self.bus.device_features() & self.features != self.features:
                raise ProbeError("the device offers other features than before")
            self._configure()
            self._find_queues()
        except BaseException:
            self.bus.set_status(status | Status.FAILED)
            raise
        self.bus.set_status(status | Status.DRIVER_OK)
        self._fill_events(self.options.event_buffers)

    def _configure(self) -> None:
        for offset, size in (
            (SENSE_SIZE_OFFSET, self.options.sense_size),
            (CDB_SIZE_OFFSET, self.options.cdb_size),
        ):
            if size is not None:
                self.bus.write_config(offset, struct.pack(self.order + "I", size))
        self.config = ScsiConfig.unpack(self.bus.read_config(0, scsi_config.SIZE), self.order)
        self._check_config()

    def _check_config(self) -> None:
        """Buffers and loops follow from these numbers, and the device may be hostile."""
        for name, (low, high) in _USABLE.items():
            value = getattr(self.config, name)
            if not low <= value <= high:
                raise ProbeError(f"the device's {name} {value} is not within {low} to {high}")

    def _find_queues(self) -> None:
        requests = self.config.num_queues
        if self.options.queues is not None:
            requests = min(requests, self.options.queues)
        for index in range(REQUEST_QUEUE + requests):
            size = min(self.bus.max_queue_size(index), self.options.queue_size)
            if not size and index > REQUEST_QUEUE:
                return  # the transport carries fewer than the device has
            if not size:
                raise ProbeError(f"the device has no queue {index}")
            self.queues[index] = self._make_queue(size)
            self.bus.start_queue(index, self.queues[index].ring.layout)

    @property
    def order(self) -> ByteOrder:
        """Of all structures: little-endian, or the guest's own for a legacy device."""
        return "<" if Feature.VERSION_1 in self.features else self.options.byte_order

    def _make_queue(self, size: int) -> BufferQueue:
        modern = Feature.VERSION_1 in self.features
        trusted = modern and self.options.trust_length
        layout = (RingLayout.modern if modern else RingLayout.legacy)(self.bus.allocator, size)
        ring = SplitRing(
            self.bus.memory,
            self.bus.allocator,
            layout,
            event_idx=Feature.EVENT_IDX in self.features,
            indirect=Feature.INDIRECT_DESC in self.features,
            trust_length=trusted,
            order=self.order,
        )
        return BufferQueue(
            self.bus.memory,
            self.bus.allocator,
            ring,
            trust_length=trusted,
            align=self.options.align,
        )

    def restart_queue(self, index: int, size: int) -> BufferQueue:
        """A new ring of `size` entries for a queue that the bus has reset (2.6.1); what was in
        flight on it never comes back."""
        self._take_back(index)
        self.queues[index] = self._make_queue(size)
        self.bus.start_queue(index, self.queues[index].ring.layout)
        return self.queues[index]

    def remove(self) -> None:
        """Gives the device up; what was in flight never comes back. Memory is taken back only
        after a reset (3.3.1)."""
        self.bus.reset()
        for index in list(self.queues):
            self._take_back(index)

    def _take_back(self, index: int) -> None:
        """The memory of a queue that is not live."""
        queue = self.queues.pop(index)
        for ticket in queue.abandon():
            self._forget(ticket)
        layout = queue.ring.layout
        parts = [layout.desc, layout.driver, layout.device]
        modern = Feature.VERSION_1 in self.features
        for part in parts if modern else parts[:1]:  # a legacy ring is one block
            self.bus.allocator.free(part)

    # ── Commands ────────────────────────────────────────────────────────────────────────────────

    def execute(
        self,
        target: int,
        lun: int,
        cdb: bytes,
        *,
        data_out: bytes = b"",
        data_in_length: int = 0,
        queue: int = REQUEST_QUEUE,
    ) -> Result:
        """One SCSI command, waited for. `TimeoutError` if no notification brings its answer."""
        return self.wait(
            self.submit(
                target, lun, cdb, data_out=data_out, data_in_length=data_in_length, queue=queue
            )
        )

    def submit(
        self,
        target: int,
        lun: int,
        cdb: bytes,
        *,
        data_out: bytes = b"",
        data_in_length: int = 0,
        queue: int = REQUEST_QUEUE,
    ) -> InFlight[Result]:
        """Starts a SCSI command; waits only for room in the ring and under cmd_per_lun."""
        request = Request(encode_lun(target, lun), cdb, next(self._tags), data_out, data_in_length)
        return self.submit_request(request, queue=queue)

    def submit_request(
        self, request: Request, *, queue: int = REQUEST_QUEUE, publish: bool = True
    ) -> InFlight[Result]:
        """As `submit`, of a request made by hand. With `publish` False the device does not see it
        before the next one, or `publish`."""
        if self.options.obey_limits:
            self._check_limits(request)
            self._pump_until(
                [queue],
                lambda: self._per_lun[request.lun] < self.config.cmd_per_lun,
                "room under cmd_per_lun",
            )
        header = request.pack_header(self.config.cdb_size, self.order)
        readable = self._cut(header, request.data_out)
        sense_size = self.config.sense_size
        writable = self._room(RESPONSE_FIXED + sense_size, request.data_in_length)
        ticket = self._add(queue, readable, writable)
        self._commands[ticket] = request.lun
        self._per_lun[request.lun] += 1
        if publish:
            self.publish(queue)
        return InFlight(
            queue,
            request.tag,
            request.lun,
            ticket,
            lambda reply: Result.unpack(reply, sense_size, request, self.order),
        )

    def _cut(self, header: bytes, data: bytes = b"") -> list[bytes]:
        source = header + data
        pieces = []
        for length in self.options.framing(len(header), len(data)):
            pieces.append(source[:length])
            source = source[length:]
        return [piece for piece in pieces if piece]

    def _room(self, header: int, data: int = 0) -> list[int]:
        return [length for length in self.options.framing(header, data) if length]

    def _check_limits(self, request: Request) -> None:
        longest = self.config.max_sectors * SECTOR
        length = max(len(request.data_out), request.data_in_length)
        if length > longest:
            raise ValueError(f"{length} bytes of data are above max_sectors ({longest} bytes)")
        segments = self._segments(length)
        if segments > self.config.seg_max:
            raise ValueError(f"{segments} data segments are above seg_max {self.config.seg_max}")

    def _segments(self, data: int) -> int:
        """Descriptors that so many bytes of data add to a request."""
        header = RESPONSE_FIXED + self.config.sense_size
        return len(self._room(header, data)) - len(self._room(header))

    def max_transfer(self, block: int) -> int:
        """Most blocks of `block` bytes that a command may move: max_sectors, seg_max and the ring
        bound it. A driver that does not obey them takes all disks for 0xFFFF sectors, as Linux's
        first one did."""
        if not self.options.obey_limits:
            return OLD_MAX_SECTORS * SECTOR // block
        most = min(self.config.seg_max, self.queues[REQUEST_QUEUE].ring.layout.size - 2)
        candidates = range(1, self.config.max_sectors * SECTOR // block + 1)
        return bisect_right(candidates, most, key=lambda blocks: self._segments(blocks * block))

    def next_tag(self) -> int:
        """An id for a request made by hand."""
        return next(self._tags)

    # ── Waiting ─────────────────────────────────────────────────────────────────────────────────

    def wait(self, item: InFlight[T], timeout: float | None = None) -> T:
        """The answer; `TimeoutError` if no notification brings it in time."""
        what = f"answer to request {item.tag} on queue {item.queue}"
        self._pump_until([item.queue], lambda: item.done, what, timeout)
        return item.parse(item.ticket.reply)

    def wait_all(self, items: Sequence[InFlight[T]], timeout: float | None = None) -> list[T]:
        return [self.wait(item, timeout) for item in items]

    def publish(self, queue: int) -> None:
        """Shows the device what was added, and notifies it if it wants that."""
        if self.queues[queue].ring.publish():
            self.bus.notify(queue)

    def reap(self, queue: int) -> list[Ticket]:
        """Takes back what the device used on a queue, notified or not."""
        tickets = self.queues[queue].reap()
        for ticket in tickets:
            self._forget(ticket)
        return tickets

    def _forget(self, ticket: Ticket) -> None:
        lun = self._commands.pop(ticket, None)
        if lun is not None:
            self._per_lun[lun] -= 1

    def _pump_until(
        self,
        queues: Collection[int],
        condition: Callable[[], bool],
        what: str,
        timeout: float | None = None,
    ) -> None:
        """Takes used buffers as the device notifies, until `condition`.

        Rings are looked at when they notify, and when notifications are switched on again
        (2.7.14); a notification that the device owes and does not send is thus an error.
        """
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        while not condition():
            pending = [q for q in queues if self.queues[q].ring.enable_notifications()]
            left = deadline - time.monotonic()
            ready = set(pending) or self.bus.wait(queues, left)
            for queue in ready:
                self.queues[queue].ring.disable_notifications()
                self.reap(queue)
            # However often the device notifies: only answers end the wait.
            if left <= 0 and not condition():
                raise TimeoutError(f"no {what} in time")

    def _add(self, queue: int, readable: Sequence[bytes], writable: Sequence[int]) -> Ticket:
        indirect = self.options.indirect_from if Feature.INDIRECT_DESC in self.features else None
        if indirect is not None:
            indirect = min(indirect, len(readable) + len(writable) - 1)
        while True:
            try:
                return self.queues[queue].add(readable, writable, indirect_from=indirect)
            except RingFull:
                self._make_room(queue)

    def _make_room(self, queue: int) -> None:
        """Waits until one chain came back; `RingFull` if none can."""
        ring = self.queues[queue].ring
        if not ring.in_flight:
            raise RingFull(f"a chain does not fit queue {queue} even when it is empty")
        before = ring.used_index
        self.publish(queue)
        self._pump_until([queue], lambda: ring.used_index != before, "room in the ring")

    # ── Control queue ───────────────────────────────────────────────────────────────────────────

    def task_management(self, function: int, target: int, lun: int, tag: int = 0) -> int:
        """A task management function (TmfType), waited for; its response code."""
        return self.wait(self.submit_task_management(function, encode_lun(target, lun), tag))

    def submit_task_management(self, function: int, lun: bytes, tag: int = 0) -> InFlight[int]:
        """Starts one, for `lun` as its 8-byte field."""
        request = TmfRequest(function, lun, tag).pack(self.order)
        return self._control(request, 1, lun, _tmf_response)

    def query_async(self, target: int, lun: int, events: int) -> AsyncReply:
        """Which of these asynchronous events the unit can report (VIRTIO_SCSI_T_AN_QUERY)."""
        return self._asynchronous(ControlType.AN_QUERY, target, lun, events)

    def subscribe_async(self, target: int, lun: int, events: int) -> AsyncReply:
        """Asks for these asynchronous events, and no others (VIRTIO_SCSI_T_AN_SUBSCRIBE)."""
        return self._asynchronous(ControlType.AN_SUBSCRIBE, target, lun, events)

    def _asynchronous(self, kind: ControlType, target: int, lun: int, events: int) -> AsyncReply:
        request = AsyncRequest(kind, encode_lun(target, lun), events)
        item = self._control(
            request.pack(self.order),
            AsyncReply.SIZE,
            request.lun,
            lambda reply: AsyncReply.unpack(reply, self.order),
        )
        return self.wait(item)

    def _control(
        self, request: bytes, reply_length: int, lun: bytes, parse: Callable[[bytes], T]
    ) -> InFlight[T]:
        ticket = self._add(CONTROL_QUEUE, self._cut(request), self._room(reply_length))
        self.publish(CONTROL_QUEUE)
        return InFlight(CONTROL_QUEUE, next(self._tags), lun, ticket, parse)

    # ── Event queue ─────────────────────────────────────────────────────────────────────────────

    def next_event(self, timeout: float = 0.0) -> Event | None:
        """The oldest event not yet taken; waits up to `timeout` seconds for one."""
        deadline = time.monotonic() + timeout
        while not self._events:
            left = deadline - time.monotonic()
            ring = self.queues[EVENT_QUEUE].ring
            if not ring.enable_notifications():
                notified = self.bus.wait([EVENT_QUEUE], max(left, 0.0))
                if not notified or (left <= 0 and not ring.enable_notifications()):
                    return None
            tickets = self.reap(EVENT_QUEUE)
            self._events += [Event.unpack(t.reply, self.order) for t in tickets]
            self._fill_events(len(tickets))
        return self._events.pop(0)

    def _fill_events(self, count: int) -> None:
        """Offers buffers of event_info_size, and no less than the struct (5.6.6.3.1)."""
        size = max(self.config.event_info_size, Event.SIZE)
        count = min(count, self.queues[EVENT_QUEUE].ring.free_descriptors)
        for _ in range(count):
            self.queues[EVENT_QUEUE].add([], [size])
        if count:
            self.publish(EVENT_QUEUE)


def _tmf_response(reply: bytes) -> int:
    if not reply:
        raise AnswerError("a task management function was answered by no byte")
    return reply[0]
