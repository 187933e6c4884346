"""The virtqueues of an HBA that run, each on its worker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NotRequired, TypedDict, Unpack

from vscsi_emu import _dataplane

if TYPE_CHECKING:
    from vscsi_emu._dataplane import GuestMemory, Hostility, Notifier, Port, Queue
    from vscsi_emu.hba.events import EventSender
    from vscsi_emu.runtime import PortOwner, Runtime
    from vscsi_emu.virtio.config import ByteOrder
    from vscsi_emu.virtio.features import Feature

CONTROL_QUEUE: Final = 0
EVENT_QUEUE: Final = 1
FIRST_REQUEST_QUEUE: Final = 2

_KINDS: Final = {
    CONTROL_QUEUE: _dataplane.KIND_CONTROL,
    EVENT_QUEUE: _dataplane.KIND_EVENT,
}


class RingSetup(TypedDict):
    """How a transport has a virtqueue started; see `_dataplane.Queue`."""

    size: int
    desc: int
    driver: int
    device: int
    next_avail: int
    next_used: NotRequired[int | None]
    enabled: bool
    notifier: Notifier
    kick_fd: int
    poll: bool


class Queues:
    """Starts and drains them. `owner` hears of what comes through them."""

    def __init__(
        self, runtime: Runtime, port: Port, owner: PortOwner, events: EventSender, *, requests: int
    ) -> None:
        """`requests`: how many request queues there may be."""
        self._runtime = runtime
        self._port = port
        self._owner = owner
        self._events = events
        self._first_worker = runtime.reserve(requests)
        self._drains: dict[Queue, asyncio.Task[int]] = {}

    def start(
        self,
        index: int,
        memory: GuestMemory,
        features: Feature,
        order: ByteOrder,
        hostility: Hostility | None,
        **ring: Unpack[RingSetup],
    ) -> Queue:
        workers = self._runtime.workers
        # Control and event queue share the first request queue's worker: they are quiet.
        slot = max(index - FIRST_REQUEST_QUEUE, 0)
        queue = _dataplane.Queue(
            workers[(self._first_worker + slot) % len(workers)],
            self._port,
            memory,
            index=index,
            kind=_KINDS.get(index, _dataplane.KIND_REQUEST),
            features=features,
            big_endian=order == ">",
            hostility=hostility,
            **ring,
        )
        self._runtime.add_queue(queue, self._owner)
        if index == EVENT_QUEUE:
            self._events.start(queue, order)
        return queue

    async def end(self, queue: Queue, end: Callable[[int], None]) -> int:
        """Drains a queue by a call of the data plane; its next available index."""
        drain = self._drains.get(queue)
        if drain is None:
            drain = asyncio.create_task(self._drain(queue, end))
            self._drains[queue] = drain
        # Whoever waits may be cancelled; the drain goes on, and the next one waits for it.
        return await asyncio.shield(drain)

    async def _drain(self, queue: Queue, end: Callable[[int], None]) -> int:
        try:
            if queue.index == EVENT_QUEUE:
                await self._events.stop()
            return await self._runtime.end_queue(queue, end)
        finally:
            del self._drains[queue]
