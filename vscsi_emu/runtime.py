"""Workers, the inbox, and the event loop that stands between them and the HBAs."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
from collections.abc import Awaitable, Callable, Iterable
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

from vscsi_emu import _dataplane
from vscsi_emu.journal import Journal
from vscsi_emu.parking import Parking
from vscsi_emu.virtio.scsi import Response

if TYPE_CHECKING:
    from vscsi_emu._dataplane import (
        Command,
        Control,
        FaultRule,
        GuestMemory,
        Inbox,
        Lu,
        Nexus,
        Notice,
        Port,
        Queue,
        Space,
        Transfer,
        Worker,
    )

log = logging.getLogger(__name__)

BATCH: Final = 64
"""Inbox entries handled before the loop gets a turn."""


class PortOwner(Protocol):
    """What decides for a port: an HBA."""

    def on_command(self, command: Command) -> None: ...
    def on_control(self, control: Control) -> None: ...
    def on_event_buffers(self, queue: Queue) -> None: ...
    def on_fault(self, nexus: Nexus, until: int) -> None: ...
    def on_miss(self, queue: Queue, iova: int, access: int) -> None: ...
    def on_denied(self, queue: Queue, iova: int, access: int) -> None: ...
    def on_broken(self, queue: Queue, text: str) -> None: ...


def usable_cpus() -> int:
    return len(os.sched_getaffinity(0))


class Runtime:
    """One inbox, some workers, and the loop that answers them. Used from that loop's thread."""

    def __init__(self, workers: int, *, io_uring: bool = True) -> None:
        """`workers` threads are started at once. Needs a running event loop."""
        if workers < 1:
            raise ValueError(f"{workers} workers: at least one is needed")
        self._loop = asyncio.get_running_loop()
        self._tokens = itertools.count(1)
        self._calls: dict[int, asyncio.Future[int]] = {}
        self._reserved = 0
        self._inband: dict[int, Callable[[int], None]] = {}
        self._engines: dict[int, Callable[[Transfer], None]] = {}
        self._owners: dict[Port, PortOwner] = {}
        self._queues: dict[Queue, PortOwner] = {}
        self._parking = Parking()
        self.journal: Final = Journal()
        self.inbox: Inbox = _dataplane.Inbox()
        self.workers: tuple[Worker, ...] = tuple(
            _dataplane.Worker(self.inbox, f"vscsi-{index}", io_uring=io_uring)
            for index in range(workers)
        )
        if io_uring and self.workers[0].io_backend != "io_uring":
            log.warning("io_uring is refused here; a thread pool does the I/O instead")
        self._loop.add_reader(self.inbox.fileno(), self._drain)

    async def close(self) -> None:
        """Ends the workers, after their last I/O."""
        await asyncio.gather(*(asyncio.to_thread(worker.stop) for worker in self.workers))

    def close_inbox(self) -> None:
        """After the last use of an engine that Python answers for."""
        self._loop.remove_reader(self.inbox.fileno())

    def reserve(self, queues: int) -> int:
        """Index of the worker for the first of an HBA's `queues`; the others follow it in turn,
        so that several HBAs spread over all workers."""
        first, self._reserved = self._reserved, self._reserved + queues
        return first

    # ── Who owns what ──────────────────────────────────────────────────────────────────────────

    def add_port(self, port: Port, owner: PortOwner) -> None:
        self._owners[port] = owner

    def remove_port(self, port: Port) -> None:
        self._owners.pop(port, None)

    def add_queue(self, queue: Queue, owner: PortOwner) -> None:
        self._queues[queue] = owner

    async def end_queue(self, queue: Queue, end: Callable[[int], None]) -> int:
        """Drains a queue by a call of the data plane; its next available index. Commands that wait
        for a paused unit do not hold it up. The queue is gone then."""
        try:
            ended = self._start(end)
            self._parking.end(queue)
            return await ended
        finally:
            self._parking.ended(queue)
            self._queues.pop(queue, None)

    def has_queue(self, queue: Queue) -> bool:
        """Whether it was started and has not ended."""
        return queue in self._queues

    def add_inband(self, handler: Callable[[int], None]) -> int:
        """A token for `Notifier.inband`; `handler` gets the index of each queue to notify."""
        token = next(self._tokens)
        self._inband[token] = handler
        return token

    def remove_inband(self, token: int) -> None:
        self._inband.pop(token, None)

    def add_engine(self, handler: Callable[[Transfer], None]) -> int:
        """A token for `Engine.python`; `handler` gets each of its calls, and must not block."""
        token = next(self._tokens)
        self._engines[token] = handler
        return token

    def remove_engine(self, token: int) -> None:
        """Calls that come all the same fail."""
        self._engines.pop(token, None)

    # ── Calls that end later ───────────────────────────────────────────────────────────────────

    async def call(self, start: Callable[[int], None]) -> int:
        """Starts an asynchronous call of the data plane with a fresh token; its result."""
        return await self._start(start)

    def _start(self, start: Callable[[int], None]) -> asyncio.Future[int]:
        token = next(self._tokens)
        future: asyncio.Future[int] = self._loop.create_future()
        self._calls[token] = future
        try:
            start(token)
        except BaseException:
            del self._calls[token]
            raise
        return future

    def abort(
        self,
        response: Response,
        *,
        status: int = 0,
        port: Port | None = None,
        lu: Lu | None = None,
        nexus: Nexus | None = None,
        tag: int | None = None,
        until: int | None = None,
    ) -> Awaitable[int]:
        """Ends matching commands on every worker (`_dataplane.Worker.abort`); how many there were,
        once all are complete. On return nothing that is hit begins any more."""
        unit = nexus.lu if nexus else lu
        parked = self._parking.take(port, unit, nexus, tag) if until is None else []
        # No worker may let go of the task set before the last one has hold of it.
        with unit.hold() if unit and tag is None else nullcontext():
            calls = [
                self._start(
                    partial(
                        worker.abort,
                        response=response,
                        status=status,
                        port=port,
                        lu=lu,
                        nexus=nexus,
                        tag=tag,
                        until=until,
                    )
                )
                for worker in self.workers
            ]
        return _total(calls, parked)

    def query(
        self, *, port: Port, nexus: Nexus, tag: int | None = None, opcodes: bytes = b""
    ) -> Awaitable[int]:
        """How many matching commands are in the task set. `opcodes`: of these only, or of all."""
        calls = [
            self._start(partial(worker.query, port=port, nexus=nexus, tag=tag, opcodes=opcodes))
            for worker in self.workers
        ]
        return _total(calls)

    def release(self, lu: Lu, rule: FaultRule | None = None) -> None:
        """Commands that `rule` keeps go on; None: those that wait for the unit's limits ask again
        (`_dataplane.Worker.release`)."""
        for worker in self.workers:
            worker.release(lu, rule)

    async def quiesce(self, lu: Lu | None = None) -> None:
        """Returns when the commands of `lu` that run now are done."""
        await asyncio.gather(*(self.call(_bind_quiesce(worker, lu)) for worker in self.workers))

    def watch(
        self, space: Space, level: int, rising: bool, reached: Callable[[], None]
    ) -> Callable[[], None]:
        """A `scsi.provisioning.Watcher`."""
        token = next(self._tokens)
        future: asyncio.Future[int] = self._loop.create_future()
        future.add_done_callback(lambda done: None if done.cancelled() else reached())
        self._calls[token] = future
        space.watch(self.inbox, token, level, rising=rising)

        def cancel() -> None:
            space.unwatch(token)
            self._calls.pop(token, None)
            future.cancel()

        return cancel

    async def quiesce_range(self, memory: GuestMemory, iova: int, size: int) -> None:
        """After `GuestMemory.iotlb_invalidate`: returns when nothing uses a translation of these
        I/O addresses that was found before it."""
        await asyncio.gather(
            *(self.call(_bind_quiesce_range(worker, memory, iova, size)) for worker in self.workers)
        )

    # ── Paused units ───────────────────────────────────────────────────────────────────────────

    def pause(self, lu: Lu) -> None:
        """Commands that come to Python wait from now on; close the gates for the others."""
        self._parking.pause(lu)

    def resume(self, lu: Lu) -> None:
        """Decides the commands that waited, in the order they came. Open the gates before: they
        stay closed until the last of these is decided, so that nothing overtakes."""
        for command in self._parking.resume(lu):
            self._try(command)

    # ── The inbox ──────────────────────────────────────────────────────────────────────────────

    def _drain(self) -> None:
        entries = self.inbox.take(BATCH)
        for entry in entries:
            self._try(entry)
        if len(entries) == BATCH:
            self._loop.call_soon(self._drain)

    def _try(self, entry: Command | Control | Notice | Transfer) -> None:
        try:
            self._dispatch(entry)
        except Exception:
            # One command's mishap: its dropped handle answers FAILURE, the rest goes on.
            log.exception("internal error while handling %s", type(entry).__name__)

    def _dispatch(self, entry: Command | Control | Notice | Transfer) -> None:
        if isinstance(entry, _dataplane.Notice):
            self._notice(entry)
            return
        if isinstance(entry, _dataplane.Transfer):
            if handler := self._engines.get(entry.token):
                handler(entry)
            return
        owner = self._owners.get(entry.port)
        if isinstance(entry, _dataplane.Control):
            if owner:
                owner.on_control(entry)
        elif owner:
            if not self._parking.park(entry):
                owner.on_command(entry)
        else:
            entry.fail(Response.FAILURE)

    def _notice(self, notice: Notice) -> None:
        queue = notice.queue
        match notice.kind:
            case "done":
                future = self._calls.pop(notice.token, None)
                if future and not future.done():
                    future.set_result(notice.value)
            case "call":
                if handler := self._inband.get(notice.token):
                    handler(notice.value)
            case "event" if queue is not None and queue in self._queues:
                self._queues[queue].on_event_buffers(queue)
            case "miss" if queue is not None and queue in self._queues:
                self._queues[queue].on_miss(queue, notice.value, notice.token)
            case "denied" if queue is not None and queue in self._queues:
                self._queues[queue].on_denied(queue, notice.value, notice.token)
            case "fault" if notice.nexus is not None and notice.port in self._owners:
                self._owners[notice.port].on_fault(notice.nexus, notice.value)
            case "broken" if queue is not None and queue in self._queues:
                self._queues[queue].on_broken(queue, notice.text)
            case "warning":
                log.warning("%s", notice.text)


async def _total(calls: list[asyncio.Future[int]], kept: Iterable[Command] = ()) -> int:
    """Their sum. `kept` have their answers only then: a handle that is dropped answers FAILURE."""
    total = sum(await asyncio.gather(*calls))
    del kept
    return total


def _bind_quiesce(worker: Worker, lu: Lu | None) -> Callable[[int], None]:
    return lambda token: worker.quiesce(token, lu=lu)


def _bind_quiesce_range(
    worker: Worker, memory: GuestMemory, iova: int, size: int
) -> Callable[[int], None]:
    return lambda token: worker.quiesce_range(token, memory, iova, size)
