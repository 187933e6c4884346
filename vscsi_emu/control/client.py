"""Clients of a monitor's socket."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import time
from collections import deque
from types import TracebackType
from typing import Any, Final, Self

from vscsi_emu.control import rpc, schema
from vscsi_emu.control.faces import AsyncFace, SyncFace
from vscsi_emu.control.method import Method
from vscsi_emu.control.trace import TracedCommand
from vscsi_emu.journal import Record

MAX_REPLY: Final = 64 << 20
"""Bytes of one line from the server."""


class Client(SyncFace):
    """A connection to the monitor at `path`. A context manager.

    A call raises `rpc.RpcError`, or `TimeoutError` after `timeout` seconds (None: never); the
    connection is of no use then. `ConnectionError` when the server is gone.
    """

    def __init__(self, path: str, *, timeout: float | None = 60.0) -> None:
        self._timeout = timeout
        self._ids = itertools.count(1)
        self._buffer = bytearray()
        self._kept: dict[str, deque[dict[str, Any]]] = {"event": deque(), "trace": deque()}
        self.missed = 0
        """Events that were lost since this connection reads too slowly."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.settimeout(timeout)
            self._socket.connect(path)
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection; its events too."""
        self._socket.close()

    def invoke(self, method: Method[Any, Any], params: dict[str, Any]) -> Any:
        id = next(self._ids)
        self._socket.settimeout(self._timeout)
        self._socket.sendall(_request(id, method, params))
        deadline = None if self._timeout is None else time.monotonic() + self._timeout
        while True:
            message = self._receive(deadline)
            if "method" in message:
                self._keep(message)
            elif message.get("id") in (id, None):
                return _result(method, message)

    def next_event(self, timeout: float | None = None) -> Record | None:
        """The next event after `events_subscribe`; None after `timeout` seconds without one."""
        params = self._next("event", timeout)
        if params is None:
            return None
        record, missed = _record(params)
        self.missed += missed
        return record

    def next_trace(self, timeout: float | None = None) -> tuple[list[TracedCommand], int] | None:
        """The next commands after `trace_start`, and how many were lost after them; None after
        `timeout` seconds without any."""
        params = self._next("trace", timeout)
        if params is None:
            return None
        commands = schema.from_json(list[TracedCommand], params["commands"], "trace")
        return commands, params["lost"]

    def _next(self, name: str, timeout: float | None) -> dict[str, Any] | None:
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._kept[name]:
            try:
                self._keep(self._receive(deadline))
            except TimeoutError:
                return None
        return self._kept[name].popleft()

    def _keep(self, message: dict[str, Any]) -> None:
        if message.get("method") in self._kept:
            self._kept[message["method"]].append(message["params"])

    def _receive(self, deadline: float | None) -> dict[str, Any]:
        while b"\n" not in self._buffer:
            if deadline is not None:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError("the monitor does not answer")
                self._socket.settimeout(left)
            else:
                self._socket.settimeout(None)
            data = self._socket.recv(1 << 16)
            if not data or len(self._buffer) > MAX_REPLY:
                raise ConnectionError("the monitor closed the connection")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message


class AsyncClient(AsyncFace):
    """As `Client`, for asyncio: `async with AsyncClient(path) as client`. Calls may overlap; the
    server answers one after the other."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._ids = itertools.count(1)
        self._calls: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._events: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self._traces: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self.missed = 0
        """As `Client.missed`."""

    async def __aenter__(self) -> Self:
        reader, self._writer = await asyncio.open_unix_connection(self._path, limit=MAX_REPLY)
        self._reading = asyncio.create_task(self._read(reader))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
        self._writer.close()

    async def invoke(self, method: Method[Any, Any], params: dict[str, Any]) -> Any:
        if self._reading.done():
            raise ConnectionError("the monitor closed the connection")
        id = next(self._ids)
        future = self._calls[id] = asyncio.get_running_loop().create_future()
        try:
            self._writer.write(_request(id, method, params))
            await self._writer.drain()
            return _result(method, await future)
        finally:
            del self._calls[id]

    async def next_event(self) -> Record:
        """The next event after `events_subscribe`. `ConnectionError` when the server is gone."""
        record, missed = _record(await _next(self._events))
        self.missed += missed
        return record

    async def next_trace(self) -> tuple[list[TracedCommand], int]:
        """As `Client.next_trace`. `ConnectionError` when the server is gone."""
        params = await _next(self._traces)
        commands = schema.from_json(list[TracedCommand], params["commands"], "trace")
        return commands, params["lost"]

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while line := await reader.readline():
                message = json.loads(line)
                if message.get("method") == "event":
                    self._events.put_nowait(message["params"])
                elif message.get("method") == "trace":
                    self._traces.put_nowait(message["params"])
                elif future := self._calls.get(message.get("id")):
                    future.set_result(message)
        finally:
            self._events.put_nowait(None)
            self._traces.put_nowait(None)
            for future in self._calls.values():
                if not future.done():
                    future.set_exception(ConnectionError("the monitor closed the connection"))


async def _next(queue: asyncio.Queue[dict[str, Any] | None]) -> dict[str, Any]:
    params = await queue.get()
    if params is None:
        queue.put_nowait(None)
        raise ConnectionError("the monitor closed the connection")
    return params


def _request(id: int, method: Method[Any, Any], params: dict[str, Any]) -> bytes:
    return rpc.encode({"jsonrpc": "2.0", "id": id, "method": method.name, "params": params})


def _result(method: Method[Any, Any], message: dict[str, Any]) -> Any:
    if error := message.get("error"):
        raise rpc.RpcError(error["code"], error["message"], error.get("data"))
    return schema.from_json(method.result, message["result"], "result")


def _record(params: dict[str, Any]) -> tuple[Record, int]:
    missed = params.pop("missed")
    record: Record = schema.from_json(Record, params, "event")
    return record, missed
