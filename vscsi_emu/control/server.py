"""The monitor's socket: one JSON-RPC message a line, both ways."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections import deque
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from vscsi_emu.control import rpc, schema
from vscsi_emu.control.context import Context
from vscsi_emu.control.methods import METHODS
from vscsi_emu.control.trace import TracedCommand, Tracing
from vscsi_emu.journal import Record
from vscsi_emu.service import StartError
from vscsi_emu.transport.vhost_user.server import ListenError, listen, remove_socket

if TYPE_CHECKING:
    from vscsi_emu.service import Service

log = logging.getLogger(__name__)

MAX_LINE: Final = 1 << 20
"""Bytes of a request; a longer one ends the connection."""
MAX_CONNECTIONS: Final = 32
MAX_EVENTS: Final = 1024
"""Kept for a connection that reads slowly; the newest are lost."""
WRITE_SECONDS: Final = 30.0
"""A connection that reads nothing for so long is closed."""
_MODE: Final = 0o600
_TRACE_INTERVAL: Final = 0.05
"""Seconds between two looks for traced commands."""
_TRACE_BATCH: Final = 64
"""Traced commands of one notification."""


class Monitor:
    """Serves the methods on a Unix socket of the server's user only, while entered."""

    def __init__(self, service: Service, stop: asyncio.Event, *, path: str) -> None:
        """`stop` is set by the method `quit`. `StartError` when entered."""
        self._service = service
        self._stop = stop
        self._path = path
        self._connections: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        try:
            self._socket = listen(self._path, mode=_MODE)
        except ListenError as error:
            raise StartError(str(error)) from None
        self._inode = os.stat(self._path).st_ino
        self._socket.setblocking(False)
        self._accepting = asyncio.create_task(self._accept())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        tasks = [self._accepting, *self._connections]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._socket.close()
        remove_socket(self._path, self._inode)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            connection, _ = await loop.sock_accept(self._socket)
            if len(self._connections) >= MAX_CONNECTIONS:
                _turn_away(connection)
                continue
            task = asyncio.create_task(_Connection(self._service, self._stop).run(connection))
            self._connections.add(task)
            task.add_done_callback(partial(self._ended, connection))

    def _ended(self, connection: socket.socket, task: asyncio.Task[None]) -> None:
        self._connections.discard(task)
        if task.cancelled():
            connection.close()  # it may never have begun
        elif error := task.exception():
            log.error("internal error in the monitor", exc_info=error)


def _turn_away(connection: socket.socket) -> None:
    text = f"{MAX_CONNECTIONS} connections are open already"
    with connection:
        connection.setblocking(False)
        try:
            connection.send(rpc.refusal(rpc.RpcError(rpc.OPERATION_FAILED, text)))
        except OSError:
            return


class _Connection:
    """One client. Its requests are answered in order; events come in between."""

    def __init__(self, service: Service, stop: asyncio.Event) -> None:
        self._service = service
        self._stop = stop
        self._quitting = False
        self._events: deque[Record] = deque()
        self._missed = 0
        self._happened = asyncio.Event()
        self._unwatch: Callable[[], None] | None = None
        self._tracing: asyncio.Task[None] | None = None
        context = Context(service, self._subscribe, self._trace, self._quit)
        self._dispatcher = rpc.Dispatcher(METHODS, context)

    async def run(self, connection: socket.socket) -> None:
        reader, self._writer = await asyncio.open_unix_connection(sock=connection, limit=MAX_LINE)
        telling = asyncio.create_task(self._tell())
        try:
            await self._converse(reader)
        except (ConnectionError, TimeoutError) as error:
            log.info("monitor: connection lost: %s", error or "it does not read")
        finally:
            if self._unwatch:
                self._unwatch()
            self._trace(None)
            telling.cancel()
            await asyncio.gather(telling, return_exceptions=True)
            # What the client does not read any more is not waited for.
            self._writer.close() if self._quitting else self._writer.transport.abort()
            if self._quitting:
                self._stop.set()

    async def _converse(self, reader: asyncio.StreamReader) -> None:
        while not self._quitting:
            try:
                line = await reader.readuntil(b"\n")
            except asyncio.IncompleteReadError:
                return
            except asyncio.LimitOverrunError:
                text = f"a line has at most {MAX_LINE} bytes"
                await self._write(rpc.refusal(rpc.RpcError(rpc.INVALID_REQUEST, text)))
                return
            answer = await self._dispatcher.answer(line)
            if answer is not None:
                await self._write(answer)

    async def _write(self, line: bytes) -> None:
        self._writer.write(line)
        async with asyncio.timeout(WRITE_SECONDS):
            await self._writer.drain()

    # ── What methods ask for ───────────────────────────────────────────────────────────────────

    def _quit(self) -> None:
        self._quitting = True

    def _subscribe(self, wanted: Callable[[Record], bool]) -> None:
        if self._unwatch:
            self._unwatch()
        self._unwatch = self._service.journal.watch(
            lambda record: self._keep(record) if wanted(record) else None
        )

    def _keep(self, record: Record) -> None:
        if len(self._events) >= MAX_EVENTS:
            self._missed += 1
        else:
            self._events.append(record)
            self._happened.set()

    async def _tell(self) -> None:
        """Events, as fast as the client reads."""
        while await self._happened.wait():
            self._happened.clear()
            while self._events:
                record = self._events.popleft()
                missed, self._missed = self._missed, 0
                params = {**schema.to_json(record), "missed": missed}
                self._writer.write(rpc.notification("event", params))
                await self._writer.drain()

    def _trace(self, tracing: Tracing | None) -> None:
        if self._tracing:
            self._tracing.cancel()
        self._tracing = asyncio.create_task(self._tell_trace(tracing)) if tracing else None

    async def _tell_trace(self, tracing: Tracing) -> None:
        """What a client does not read in time is lost, and counted, where it is recorded."""
        try:
            while True:
                await self._tell_traced(*tracing.take())
                await asyncio.sleep(_TRACE_INTERVAL)
        except ConnectionError:
            return
        finally:
            tracing.end()

    async def _tell_traced(self, records: list[TracedCommand], lost: int) -> None:
        for batch in [
            records[at : at + _TRACE_BATCH] for at in range(0, len(records), _TRACE_BATCH)
        ]:
            params = {"commands": schema.to_json(batch), "lost": 0}
            self._writer.write(rpc.notification("trace", params))
            await self._writer.drain()
            await asyncio.sleep(0)  # others have their turn
        if lost:
            self._writer.write(rpc.notification("trace", {"commands": [], "lost": lost}))
            await self._writer.drain()
