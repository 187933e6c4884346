"""The event queue: what an HBA tells its driver unasked (virtio 1.4, 5.6.6.3)."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final

from vscsi_emu.virtio.scsi import EVENTS_MISSED, LUN_SIZE, Event, EventType

if TYPE_CHECKING:
    from vscsi_emu._dataplane import Queue
    from vscsi_emu.runtime import Runtime
    from vscsi_emu.virtio.config import ByteOrder

BACKLOG: Final = 256
"""Events kept for a driver that is short of buffers; more are lost, and it is told so."""

_LOST: Final = Event(EventType.NO_EVENT | EVENTS_MISSED, bytes(LUN_SIZE), 0)


class EventSender:
    """Delivers events in order, each into a buffer of the driver's."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._order: ByteOrder = "<"
        self._queue: Queue | None = None
        self._backlog: deque[Event] = deque()
        self._missed = False
        self._delivery: asyncio.Task[None] | None = None

    def start(self, queue: Queue, order: ByteOrder) -> None:
        """The driver listens from now on."""
        self._queue, self._order = queue, order
        self._deliver_soon()

    async def stop(self) -> None:
        """Nothing is written any more; what waits is delivered after the next `start`."""
        self._queue = None
        if self._delivery:
            await self._delivery

    def clear(self) -> None:
        """Forgets everything: another driver comes."""
        self._backlog.clear()
        self._missed = False

    def send(self, event: Event) -> None:
        if len(self._backlog) >= BACKLOG:
            self._missed = True
        else:
            self._backlog.append(event)
            self._deliver_soon()

    def buffers_arrived(self) -> None:
        self._deliver_soon()

    def _deliver_soon(self) -> None:
        if self._delivery is None and self._queue and (self._backlog or self._missed):
            self._delivery = asyncio.get_running_loop().create_task(self._deliver())

    async def _deliver(self) -> None:
        try:
            while (queue := self._queue) and (self._backlog or self._missed):
                # The loss is told after the events that came before it.
                event = self._backlog[0] if self._backlog else _LOST
                if not await self._push(queue, event):
                    queue.want_event_buffers()
                    return
                if event is _LOST:
                    self._missed = False
                elif self._backlog:  # unless cleared meanwhile
                    self._backlog.popleft()
        finally:
            self._delivery = None

    async def _push(self, queue: Queue, event: Event) -> bool:
        data = event.pack(self._order)
        return bool(await self._runtime.call(lambda token: queue.push_event(token, data)))
