"""A whole server: what a `Config` names, opened, connected and listening."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import signal
from contextlib import AsyncExitStack, ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from vscsi_emu.backends import BackendError, SpecError, open_backend
from vscsi_emu.hba import DEFAULTS, Hba
from vscsi_emu.runtime import Runtime, usable_cpus
from vscsi_emu.scsi.identity import Identity
from vscsi_emu.scsi.store import SavedStateError, StateStore
from vscsi_emu.scsi.unit import LogicalUnit
from vscsi_emu.state import StateError, StateFile
from vscsi_emu.transport.vhost_user.server import ListenError, VhostUserServer, adopt, listen

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vscsi_emu.backends import Backend
    from vscsi_emu.config import Config, HbaConfig, LunConfig

log = logging.getLogger(__name__)

_PASSTHROUGH: Final = "sg"
"""The scheme whose modules are imported only where it is used: servers are to start fast."""


class StartError(Exception):
    """Something that a configuration names cannot be served; one line for the user."""


def run(config: Config, *, workers: int | None = None, io_uring: bool = True) -> None:
    """Serves until SIGTERM or SIGINT. Raises `StartError`."""
    asyncio.run(_run(config, workers, io_uring))


async def _run(config: Config, workers: int | None, io_uring: bool) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with Service(config, workers=workers, io_uring=io_uring) as service:
        for line in service.how_to_attach():
            log.info("%s", line)
        await service.serve(stop)


class Service:
    """Backends, logical units, workers, HBAs and their sockets; listening once entered.

    On leaving, in this order: stop accepting, drain every queue, end the workers, flush and close
    the backends.
    """

    def __init__(
        self, config: Config, *, workers: int | None = None, io_uring: bool = True
    ) -> None:
        """`workers`: threads; by default one a request queue, at most one a CPU."""
        self._config = config
        queues = sum(hba.queues for hba in config.hbas)
        self._workers = workers or min(queues, usable_cpus())
        self._io_uring = io_uring
        self._stack = AsyncExitStack()
        self._servers: list[VhostUserServer] = []
        self.hbas: list[Hba] = []
        self.units: dict[str, LogicalUnit] = {}
        """By `LunConfig.name`."""

    async def __aenter__(self) -> Service:
        async with AsyncExitStack() as stack:
            self._open(stack)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self._stack.aclose()

    def _open(self, stack: AsyncExitStack) -> None:
        opened = stack.enter_context(ExitStack())
        backends = {lun.name: _open_backend(lun, stack) for lun in self._config.luns}
        runtime = Runtime(self._workers, io_uring=self._io_uring)
        stack.push_async_callback(runtime.close)
        self.units = {name: logical_unit(backends[name], runtime) for name in backends}
        for number, wanted in enumerate(self._config.hbas):
            hba = Hba(
                runtime,
                initiator=wanted.initiator or _initiator(wanted),
                queues=wanted.queues,
                luns={at: self.units[name] for at, name in wanted.luns.items()},
                number=number,
                **_caps(wanted, backends),
            )
            stack.push_async_callback(hba.close)
            self.hbas.append(hba)
        self._follow(stack, runtime, backends, opened)
        # Last: a socket that is there can be attached to.
        for wanted, hba in zip(self._config.hbas, self.hbas, strict=True):
            if wanted.socket is None and wanted.fd is None:
                continue
            server = _server(wanted, hba)
            stack.callback(server.close)
            self._servers.append(server)

    def _follow(
        self,
        stack: AsyncExitStack,
        runtime: Runtime,
        backends: Mapping[str, Backend],
        opened: ExitStack,
    ) -> None:
        if not any(lun.spec.scheme == _PASSTHROUGH for lun in self._config.luns):
            return

        from vscsi_emu.follow import Follower, followed

        places = [
            (hba, wanted.luns) for hba, wanted in zip(self.hbas, self._config.hbas, strict=True)
        ]
        follower = Follower(runtime, followed(backends, self.units, places), opened)
        stack.push_async_callback(follower.close)
        follower.start()

    async def serve(self, stop: asyncio.Event) -> None:
        """Until `stop` is set, or every socket that came connected was left by its front end."""
        serving = [asyncio.create_task(server.serve()) for server in self._servers]
        stopping = asyncio.create_task(stop.wait())
        try:
            pending: set[asyncio.Task[Any]] = {*serving}
            while pending and not stopping.done():
                done, pending = await asyncio.wait(
                    {*pending, stopping}, return_when=asyncio.FIRST_COMPLETED
                )
                pending.discard(stopping)
                for task in done - {stopping}:
                    task.result()
        finally:
            stopping.cancel()
            for task in serving:
                task.cancel()
            await asyncio.gather(*serving, return_exceptions=True)

    def how_to_attach(self) -> list[str]:
        """A line an HBA, ready to paste."""
        return [
            attach_line(config, hba)
            for config, hba in zip(self._config.hbas, self.hbas, strict=True)
        ]


def _open_backend(lun: LunConfig, stack: AsyncExitStack) -> Backend:
    try:
        backend = open_backend(lun.spec, name=lun.name)
    except (BackendError, SpecError) as error:
        raise StartError(str(error)) from None

    async def close() -> None:
        try:
            await asyncio.to_thread(backend.flush)
        except OSError as error:
            log.error("%s: cannot be flushed: %s", lun.spec, error.strerror)
        backend.close()

    stack.push_async_callback(close)
    return backend


def logical_unit(backend: Backend, runtime: Runtime) -> LogicalUnit:
    """The logical unit that a backend's options describe. Raises `StartError` for a state file
    that cannot be used."""
    path = backend.state_path
    try:
        store = StateFile(path) if path is not None else None
        return _logical_unit(backend, runtime, store)
    except StateError as error:
        raise StartError(str(error)) from None
    except SavedStateError as error:
        raise StartError(f"{path}: {error}; remove it, or name another with state=") from None


def _logical_unit(backend: Backend, runtime: Runtime, store: StateStore | None) -> LogicalUnit:
    spec = backend.spec
    if spec.scheme == _PASSTHROUGH:
        from vscsi_emu.follow import passthrough_unit

        return passthrough_unit(runtime, backend)
    names = {"vendor": spec.vendor, "product": spec.product}
    return LogicalUnit(
        backend.engine,
        Identity(
            backend.serial,
            bytes.fromhex(backend.naa),
            **{name: text for name, text in names.items() if text is not None},
        ),
        block_size=backend.block_size,
        physical_block_exponent=backend.physical_block_exponent,
        read_only=spec.read_only,
        removable=spec.removable,
        rotation_rate=backend.rotation_rate,
        discard=spec.discard,
        lbprz=spec.lbprz,
        write_cache=spec.write_cache,
        flush=partial(asyncio.to_thread, backend.flush),
        quiesce=runtime.quiesce,
        store=store,
    )


def _caps(hba: HbaConfig, backends: Mapping[str, Backend]) -> dict[str, int]:
    """What lowers the limits of an HBA. Raises `StartError` for what would raise one."""
    devices = [backends[name] for name in dict.fromkeys(hba.luns.values())]
    caps = {}
    for option, cap in hba.caps.items():
        name = option.replace("-", "_")
        figures = [(int(getattr(DEFAULTS, name)), "the most that is offered")]
        for device in devices:
            if (limit := device.limit(name)) is not None:
                figures.append(limit)
        most, source = min(figures)
        if cap > most:
            raise StartError(f"{option} {cap} is above {most}, {source}; it can only be lowered")
        caps[name] = cap
    return caps


def attach_line(config: HbaConfig, hba: Hba) -> str:
    """Says where the HBA listens, and how to attach QEMU and User-Mode Linux to it.

    QEMU's vhost-user-scsi never reads our configuration space: our limits are its properties.
    """
    if config.socket is None:
        return f"serving on fd {config.fd}"
    path, space = config.socket, hba.config
    limits = (
        f"num_queues={space.num_queues},max_sectors={space.max_sectors},"
        f"cmd_per_lun={space.cmd_per_lun}"
    )
    return (
        f"listening on {path}; attach QEMU: -m 1G "
        "-object memory-backend-memfd,id=mem,size=1G,share=on -machine memory-backend=mem "
        f"-chardev socket,id=hba,path={path.replace(',', ',,')} "
        f"-device vhost-user-scsi-pci,chardev=hba,{limits} "
        f"or User-Mode Linux: virtio_uml.device={path}:8"
    )


def _server(config: HbaConfig, hba: Hba) -> VhostUserServer:
    try:
        if config.socket is not None:
            sock = listen(config.socket)
        else:
            assert config.fd is not None
            sock = adopt(config.fd)
        return VhostUserServer(
            hba,
            sock,
            path=config.socket,
            in_band=config.in_band,
            access_platform=config.access_platform,
        )
    except ListenError as error:
        raise StartError(str(error)) from None


def _initiator(hba: HbaConfig) -> str:
    """A locally assigned NAA name (SPC-6 7.7.6.6.4), the same at every start."""
    return "3" + hashlib.sha256(f"initiator {hba.socket or 'fd'}".encode()).hexdigest()[:15]
