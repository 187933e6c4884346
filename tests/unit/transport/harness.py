"""A whole server in this process: its loop in one thread, front ends and drivers in the test's."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from vscsi_emu._dataplane import GuestMemory
from vscsi_emu.config import Config
from vscsi_emu.driver.dma import DmaAllocator
from vscsi_emu.driver.front_end import FrontEnd
from vscsi_emu.driver.vhost_user import Notify, VhostUserBus
from vscsi_emu.driver.virtio_scsi import Options, VirtioScsi
from vscsi_emu.hba import Hba
from vscsi_emu.service import Service

TIMEOUT = 60.0
GUEST_BASE = 0x4000_0000
GUEST_SIZE = 16 << 20

T = TypeVar("T")


@dataclass(frozen=True)
class Server:
    service: Service
    loop: asyncio.AbstractEventLoop
    sockets: list[str]
    stop: asyncio.Event

    @property
    def hba(self) -> Hba:
        return self.service.hbas[0]

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of a coroutine that runs on the server's loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(TIMEOUT)

    def do(self, function: Callable[[], T]) -> T:
        """The result of a function that runs on the server's loop."""

        async def call() -> T:
            return function()

        return self.run(call())


@contextmanager
def serving(config: Config, *, workers: int | None = None) -> Iterator[Server]:
    """Serves `config`; when left, the server must end by itself and without an error."""
    ready = threading.Event()
    servers: list[Server] = []
    failures: list[BaseException] = []
    stop = asyncio.Event()

    async def main() -> None:
        async with Service(config, workers=workers) as service:
            sockets = [hba.socket for hba in config.hbas if hba.socket]
            servers.append(Server(service, asyncio.get_running_loop(), sockets, stop))
            ready.set()
            await service.serve(stop)

    def thread() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:
            failures.append(error)
        finally:
            ready.set()

    runner = threading.Thread(target=thread)
    runner.start()
    assert ready.wait(TIMEOUT)
    try:
        if failures:
            raise failures[0]
        yield servers[0]
    finally:
        if servers and runner.is_alive():
            servers[0].loop.call_soon_threadsafe(stop.set)
        runner.join(TIMEOUT)
        assert not runner.is_alive(), "the server does not end"
    assert not failures, failures


@contextmanager
def attached(
    socket: str | Path,
    options: Options | None = None,
    *,
    kick: Notify = Notify.EVENTFD,
    call: Notify = Notify.EVENTFD,
    timeout: float = TIMEOUT,
) -> Iterator[VirtioScsi]:
    """A probed device over the socket of a server."""
    memory = GuestMemory.anonymous(GUEST_SIZE, GUEST_BASE)
    allocator = DmaAllocator(GUEST_BASE, GUEST_SIZE)
    front_end = FrontEnd.connect(str(socket), timeout=TIMEOUT)
    with VhostUserBus(front_end, memory, allocator, kick=kick, call=call) as bus:
        yield VirtioScsi(bus, options, timeout=timeout)
