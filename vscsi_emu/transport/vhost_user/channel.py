"""A vhost-user socket on the event loop: whole messages in, whole messages out."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Final

from vscsi_emu.virtio.vhost_user import MAX_FDS, Assembler, Packet, WireError, close_fds

_RECEIVE_FLAGS: Final = socket.MSG_CMSG_CLOEXEC


class Channel:
    """Owns `connection`. One reader and one writer at a time; nothing is buffered beyond one
    message each way, so a slow front end only waits for itself."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._socket = connection
        self._loop = asyncio.get_running_loop()
        self._assembler = Assembler()

    async def receive(self) -> Packet | None:
        """The next message; None once the front end has closed between two messages."""
        while True:
            try:
                data, fds = self._read()
            except BlockingIOError:
                await self._ready(self._loop.add_reader, self._loop.remove_reader)
                continue
            except ConnectionResetError:
                data, fds = b"", []
            if not data:
                close_fds(fds)
                if self._assembler.midway:
                    raise WireError("the front end closed in the middle of a message")
                return None
            if packet := self._assembler.feed(data, fds):
                return packet

    def _read(self) -> tuple[bytes, list[int]]:
        # Room for one descriptor more than allowed: the kernel drops silently what does not fit.
        data, fds, flags, _ = socket.recv_fds(
            self._socket, self._assembler.wanted, MAX_FDS + 1, _RECEIVE_FLAGS
        )
        if flags & socket.MSG_CTRUNC:
            close_fds(fds)
            raise WireError(f"more than {MAX_FDS} file descriptors in one message")
        return data, fds

    async def send(self, message: bytes) -> None:
        """Raises `ConnectionError` when the front end is gone."""
        while message:
            try:
                message = message[self._socket.send(message, socket.MSG_NOSIGNAL) :]
            except BlockingIOError:
                await self._ready(self._loop.add_writer, self._loop.remove_writer)

    async def _ready(
        self, add: Callable[..., None], remove: Callable[[socket.socket], bool]
    ) -> None:
        ready: asyncio.Future[None] = self._loop.create_future()
        add(self._socket, _settle, ready)
        try:
            await ready
        finally:
            remove(self._socket)

    def close(self) -> None:
        self._assembler.close()
        self._socket.close()


def _settle(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
