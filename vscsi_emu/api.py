"""An HBA in a program of one's own: `Hba` for threads, `AsyncHba` for asyncio.

Each of `luns` is `[TARGET:LUN=]URI[,KEY=VALUE…]`, as for ``vscsi-emu serve --lun``.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self, TypeVar

from vscsi_emu.config import from_arguments
from vscsi_emu.control_thread import ControlThread
from vscsi_emu.leftovers import Leftovers
from vscsi_emu.service import Service

if TYPE_CHECKING:
    from vscsi_emu.config import Config
    from vscsi_emu.control.local import Local, LocalSync
    from vscsi_emu.driver.host import ScsiHost
    from vscsi_emu.driver.virtio_scsi import Options
    from vscsi_emu.hba import Hba as Device

T = TypeVar("T")


class AsyncHba:
    """An HBA on the running event loop, behind a vhost-user socket.

    async with AsyncHba("mem:64M", socket="/tmp/hba.sock") as hba:
        await hba.control.lun_add(luns=["0:1=disk.img"])

    Blocking the loop holds up commands that need a decision, and front ends that connect.
    """

    def __init__(
        self,
        *luns: str,
        socket: str | os.PathLike[str] | None = None,
        queues: int = 1,
        workers: int | None = None,
        io_uring: bool = True,
    ) -> None:
        """`socket` None: one in a private directory, which goes with the HBA. `queues`: request
        queues; `workers`: threads, by default one a queue, at most one a CPU. Raises
        `config.ConfigError`; `service.StartError` when entered."""
        self._luns = luns
        self._wanted = socket
        self._socket = Path(os.fspath(socket)) if socket is not None else None
        self._queues, self._workers, self._io_uring = queues, workers, io_uring
        self._stack = AsyncExitStack()
        self._config(self._socket)  # what is wrong with it is said at once
        self._service: Service | None = None

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            if self._wanted is None:
                leftovers = Leftovers("vscsi-emu")
                stack.callback(leftovers.clean)
                self._socket = leftovers.directory / "hba.sock"
            config = self._config(self._socket)
            service = Service(config, workers=self._workers, io_uring=self._io_uring)
            await stack.enter_async_context(service)
            self._service = service
            stop = asyncio.Event()
            serving = asyncio.create_task(service.serve(stop))

            async def end() -> None:
                stop.set()
                await serving

            stack.push_async_callback(end)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            await self._stack.aclose()
        finally:
            self._service = None

    def _config(self, socket: Path | None) -> Config:
        return from_arguments(
            self._luns, socket=str(socket) if socket else None, queues=self._queues
        )

    @property
    def socket(self) -> Path:
        """Where it listens."""
        if self._socket is None:
            raise RuntimeError("an HBA without a socket of your own has one when it is entered")
        return self._socket

    @property
    def service(self) -> Service:
        """The server that it is. `RuntimeError` where it is not entered."""
        if self._service is None:
            raise RuntimeError("this HBA does not run; use it within its `with`")
        return self._service

    @property
    def device(self) -> Device:
        """The virtio-scsi device itself."""
        return self.service.hbas[0]

    @property
    def control(self) -> Local:
        """What the monitor can do: `await hba.control.lun_add(luns=[…])` and so on."""
        from vscsi_emu.control.local import Local

        return Local(self.service)

    def how_to_attach(self) -> str:
        """A line that says how QEMU and User-Mode Linux attach to it, ready to paste."""
        (line,) = self.service.how_to_attach()
        return line


class Hba:
    """An HBA behind a vhost-user socket, served by threads of this process.

    with Hba("mem:64M", "3:2=disk.img,ro") as hba, hba.driver() as guest:
        guest.disks[0, 0].write(0, bytes(512))
    """

    def __init__(
        self,
        *luns: str,
        socket: str | os.PathLike[str] | None = None,
        queues: int = 1,
        workers: int | None = None,
        io_uring: bool = True,
    ) -> None:
        """As for `AsyncHba`."""
        self._hba: Final = AsyncHba(
            *luns, socket=socket, queues=queues, workers=workers, io_uring=io_uring
        )
        self._thread: Final = ControlThread(self._serve)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._thread.stop()

    async def _serve(self, ready: Callable[[], None], stop: asyncio.Event) -> None:
        async with self._hba:
            ready()
            await stop.wait()

    @property
    def socket(self) -> Path:
        """Where it listens."""
        return self._hba.socket

    @property
    def device(self) -> Device:
        """The virtio-scsi device itself, for what `call` runs."""
        return self._hba.device

    @property
    def control(self) -> LocalSync:
        """What the monitor can do: `hba.control.lun_add(luns=[…])` and so on."""
        from vscsi_emu.control.local import LocalSync

        return LocalSync(self._thread, self._hba.service)

    @property
    def service(self) -> Service:
        """All of it, for what `call` runs. `RuntimeError` where it is not entered."""
        return self._hba.service

    def call(self, work: Callable[[], Coroutine[object, object, T]], *, timeout: float = 10.0) -> T:
        """As `ControlThread.call`: runs `work()` on the HBA's event loop."""
        return self._thread.call(work, timeout=timeout)

    def how_to_attach(self) -> str:
        """A line that says how QEMU and User-Mode Linux attach to it, ready to paste."""
        return self._hba.how_to_attach()

    @contextmanager
    def driver(self, options: Options | None = None) -> Iterator[ScsiHost]:
        """Our own driver as its front end, its units found. There is one front end at a time: it
        waits for the one before to leave, at most 10 seconds."""
        from vscsi_emu.driver.attach import attach

        targets = [target for target, _ in self.device.luns]
        with attach(self.socket, options) as host:
            host.scan(range(max(targets, default=-1) + 1))
            yield host
