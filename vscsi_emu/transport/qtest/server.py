"""Speaks qtest on a Unix socket, with one client after another."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING

from vscsi_emu.transport.qtest.commands import MAX_LINE, Commands

if TYPE_CHECKING:
    from vscsi_emu._dataplane import Interrupt

log = logging.getLogger(__name__)


class QtestServer:
    """Commands in, replies and changes of interrupt lines out.

    The machine goes on as it is when a client leaves; the next one finds it so.
    """

    def __init__(self, commands: Commands, interrupts: Mapping[int, Interrupt]) -> None:
        """`interrupts`: by the number of the line that each drives."""
        self._commands = commands
        self._interrupts = interrupts
        self._levels: dict[int, bool] = {}

    async def listen(self, listener: socket.socket) -> None:
        """Serves who connects, until cancelled."""
        listener.setblocking(False)
        loop = asyncio.get_running_loop()
        while True:
            connection, _ = await loop.sock_accept(listener)
            await self.converse(connection)

    async def converse(self, connection: socket.socket) -> None:
        """Serves one client until it leaves. Takes over the connection."""
        reader, writer = await asyncio.open_unix_connection(sock=connection, limit=MAX_LINE)
        self._commands.connected()
        self._levels = dict.fromkeys(self._interrupts, False)
        loop = asyncio.get_running_loop()
        for interrupt in self._interrupts.values():
            loop.add_reader(interrupt.fileno(), self._rise, interrupt, writer)
        try:
            await self._serve(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # The client left.
        finally:
            for interrupt in self._interrupts.values():
                loop.remove_reader(interrupt.fileno())
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                line = await reader.readuntil(b"\n")
            except asyncio.LimitOverrunError:
                log.warning("qtest: a line of more than %d bytes; connection closed", MAX_LINE)
                writer.write(f"FAIL a line has at most {MAX_LINE} bytes\n".encode())
                return
            reply = self._commands.answer(line.decode("ascii", "replace").rstrip("\r\n"))
            # QEMU reports the lines that a command changed before it answers.
            self._report(writer)
            writer.write(reply.encode("ascii") + b"\n")
            await writer.drain()
            # Commands may be waiting already, but the HBA needs its turns too.
            await asyncio.sleep(0)

    def _rise(self, interrupt: Interrupt, writer: asyncio.StreamWriter) -> None:
        interrupt.clear()
        self._report(writer)

    def _report(self, writer: asyncio.StreamWriter) -> None:
        if not self._commands.intercepting:
            return
        for number, interrupt in self._interrupts.items():
            level = interrupt.level
            if level != self._levels[number]:
                self._levels[number] = level
                writer.write(f"IRQ {'raise' if level else 'lower'} {number}\n".encode())
