"""``vscsi-emu qtest``: a machine of RAM, an HBA's registers and no CPU, for a qtest client."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vscsi_emu import _dataplane
from vscsi_emu.inprocess import InProcess
from vscsi_emu.service import StartError
from vscsi_emu.transport.mmio import REGION_SIZE
from vscsi_emu.transport.qtest import AddressSpace, Commands, QtestServer
from vscsi_emu.transport.qtest.address_space import ADDRESSES
from vscsi_emu.transport.vhost_user.server import ListenError, listen

if TYPE_CHECKING:
    from vscsi_emu.config import Config

log = logging.getLogger(__name__)

MAX_MEMORY: Final = 1 << 40


def run(
    config: Config,
    path: str,
    *,
    connect: bool,
    version: int,
    base: int,
    irq: int,
    memory: int,
) -> None:
    """Serves the HBAs of `config` until SIGTERM or SIGINT; with `connect`, until the client that
    listens on `path` leaves. `memory`: bytes of RAM from address 0. Raises `StartError`."""
    _check_map(base, memory)
    ram = _dataplane.GuestMemory.anonymous(memory)
    with InProcess(config, version=version, memory=ram, base=base) as machine:
        lines = {irq + number: slot.interrupt for number, slot in enumerate(machine.slots)}
        server = QtestServer(Commands(AddressSpace(ram, machine.bus)), lines)
        connection = _connect(path) if connect else _listen(path)
        try:
            log.info(
                "version %d registers at %#x, interrupt line %d, %d bytes of RAM at 0",
                version,
                base,
                irq,
                memory,
            )
            log.info("qtest: %s %s", "connected to" if connect else "listening on", path)
            asyncio.run(_serve(server, connection, connect))
        finally:
            connection.close()
            if not connect:
                Path(path).unlink(missing_ok=True)


async def _serve(server: QtestServer, sock: socket.socket, connected: bool) -> None:
    serving = asyncio.ensure_future(server.converse(sock) if connected else server.listen(sock))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, serving.cancel)
    with suppress(asyncio.CancelledError):
        await serving


def _check_map(base: int, memory: int) -> None:
    if not 0 < memory <= MAX_MEMORY:
        raise StartError(f"--memory {memory}: use 1 byte to {MAX_MEMORY} bytes (1T)")
    if base % 4 or not 0 <= base <= ADDRESSES - REGION_SIZE:
        raise StartError(f"--base {base:#x}: use a multiple of 4 with {REGION_SIZE} bytes after it")
    if base < memory:
        raise StartError(
            f"--base {base:#x} lies in the {memory:#x} bytes of RAM; "
            "choose a higher base or less --memory"
        )


def _connect(path: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(path)
    except OSError as error:
        connection.close()
        raise StartError(f"{path}: cannot connect: {error.strerror}") from None
    return connection


def _listen(path: str) -> socket.socket:
    try:
        return listen(path)
    except ListenError as error:
        raise StartError(str(error)) from None
