"""A whole server: what a `Config` names, opened, connected and listening."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import logging
import os
import resource
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from vscsi_emu.backends import BackendError, SpecError, open_backend
from vscsi_emu.backends.uri import ADDRESS
from vscsi_emu.caps import CapError, check, check_unit
from vscsi_emu.config import PASSTHROUGH, Config, ConfigError, LunConfig, default_id, place
from vscsi_emu.disk import Disk, OperationError
from vscsi_emu.hba import Address, Hba, LunAbsentError, LunBusyError, Removal, remove
from vscsi_emu.runtime import Runtime, usable_cpus
from vscsi_emu.scsi.device import DeviceUnit
from vscsi_emu.scsi.identity import Identity
from vscsi_emu.scsi.store import SavedStateError, StateStore
from vscsi_emu.scsi.tokens import Tokens
from vscsi_emu.scsi.unit import LogicalUnit
from vscsi_emu.state import StateError, StateFile
from vscsi_emu.transport.vhost_user.server import ListenError, VhostUserServer, adopt, listen
from vscsi_emu.virtio.scsi import show_address

if TYPE_CHECKING:
    from vscsi_emu._dataplane import Trace
    from vscsi_emu.backends import Backend, LunSpec
    from vscsi_emu.config import HbaConfig
    from vscsi_emu.faults.installed import FaultSet
    from vscsi_emu.follow import Follower
    from vscsi_emu.journal import Journal

log = logging.getLogger(__name__)


class StartError(Exception):
    """Something that a configuration names cannot be served; one line for the user."""


Beside = Callable[["Service", asyncio.Event], AbstractAsyncContextManager[object]]
"""What runs beside a service, and may end it by the event. It may raise `StartError`."""


def run(
    config: Config,
    *,
    workers: int | None = None,
    io_uring: bool = True,
    beside: Sequence[Beside] = (),
) -> None:
    """Serves until SIGTERM or SIGINT. Raises `StartError`."""
    _raise_fd_limit()
    asyncio.run(_run(config, workers, io_uring, beside))


async def _run(
    config: Config, workers: int | None, io_uring: bool, beside: Sequence[Beside]
) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with (
        Service(config, workers=workers, io_uring=io_uring) as service,
        AsyncExitStack() as stack,
    ):
        for start in beside:
            await stack.enter_async_context(start(service, stop))
        for line in service.how_to_attach():
            log.info("%s", line)
        await service.serve(stop)


def _raise_fd_limit() -> None:
    """Each disk takes some descriptors, and the usual limit is 1024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


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
        self._tokens = Tokens()
        self.disks: dict[str, Disk] = {}
        """By `LunConfig.id`."""
        self._disk_of: dict[LogicalUnit, Disk] = {}
        self._follower: Follower | None = None
        self._faults: FaultSet | None = None

    async def __aenter__(self) -> Service:
        async with AsyncExitStack() as stack:
            self._open(stack)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self._stack.aclose()

    def _open(self, stack: AsyncExitStack) -> None:
        opened = _Opened()
        stack.callback(opened.close)
        backends = [opened.open(lun) for lun in self._config.luns]
        self._runtime = runtime = Runtime(self._workers, io_uring=self._io_uring)
        stack.callback(runtime.close_inbox)
        stack.push_async_callback(self._close_disks)
        stack.push_async_callback(runtime.close)
        for lun, backend in zip(self._config.luns, backends, strict=True):
            self._add_disk(
                Disk(lun, backend, logical_unit(backend, runtime, tokens=self._tokens), runtime)
            )
            opened.hand_over(backend)
        units = self.units
        for number, wanted in enumerate(self._config.hbas):
            hba = Hba(
                runtime,
                initiator=wanted.initiator or _initiator(wanted),
                queues=wanted.queues,
                luns={at: units[name] for at, name in wanted.luns.items()},
                number=number,
                **self._caps(wanted),
                port_group=wanted.port_group,
                name=wanted.socket or (f"fd{wanted.fd}" if wanted.fd is not None else None),
            )
            stack.push_async_callback(hba.close)
            self.hbas.append(hba)
        self._follow(stack, self._config.luns)
        # Last: a socket that is there can be attached to.
        for wanted, hba in zip(self._config.hbas, self.hbas, strict=True):
            if wanted.socket is None and wanted.fd is None:
                continue
            server = _server(wanted, hba)
            stack.callback(server.close)
            self._servers.append(server)

    def _follow(self, stack: AsyncExitStack, luns: Iterable[LunConfig]) -> None:
        """Host devices among `luns`, and from then on all that are served."""
        if all(lun.spec.scheme != PASSTHROUGH for lun in luns):
            return
        if self._follower is not None:
            self._follower.look()
            return
        from vscsi_emu.follow import Follower

        self._follower = follower = Follower(self)
        stack.push_async_callback(follower.close)
        follower.start()

    def _caps(self, hba: HbaConfig) -> dict[str, int]:
        """What lowers the limits of an HBA. Raises `StartError` for what would raise one."""
        disks = [disk for disk in self.disks.values() if disk.config.name in hba.luns.values()]
        caps = {name.replace("-", "_"): cap for name, cap in hba.caps.items()}
        try:
            for field, cap in caps.items():
                check(field, cap, [disk.backend for disk in disks])
        except CapError as error:
            raise StartError(str(error)) from None
        return caps

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

    # ── Changes while it runs ──────────────────────────────────────────────────────────────────

    @property
    def units(self) -> dict[str, LogicalUnit]:
        """By `LunConfig.name`."""
        return {disk.config.name: disk.unit for disk in self.disks.values()}

    @property
    def runtime(self) -> Runtime:
        return self._runtime

    @property
    def journal(self) -> Journal:
        """What happens here."""
        return self._runtime.journal

    def trace(self, trace: Trace) -> None:
        """Has all workers feed a trace, until it is ended."""
        for worker in self._runtime.workers:
            worker.trace(trace)

    @property
    def faults(self) -> FaultSet:
        """What goes wrong here to order."""
        from vscsi_emu.faults.installed import FaultSet

        if self._faults is None:
            self._faults = FaultSet(self._runtime, self.hbas)
            for hba in self.hbas:
                hba.refuse_tmf = self._faults.refuse_tmf
        return self._faults

    @property
    def config(self) -> Config:
        """What is served now: a service made from it has the same disks, by the same names."""
        return Config(
            tuple(_with_identity(disk) for disk in self.disks.values()),
            tuple(
                replace(
                    wanted,
                    initiator=hba.initiator,
                    luns={at: self.disk_of(unit).config.name for at, unit in hba.luns.items()},
                )
                for wanted, hba in zip(self._config.hbas, self.hbas, strict=True)
            ),
        )

    def disk_of(self, unit: LogicalUnit) -> Disk:
        """The disk that a logical unit of an HBA is."""
        return self._disk_of[unit]

    async def add_luns(
        self, hba: Hba, luns: Sequence[tuple[Address | None, LunSpec]], *, id: str | None = None
    ) -> dict[Address, Disk]:
        """Opens disks and hot-plugs them, all or none. One without an address becomes LUN 0 of
        the first target that has none. `id`: of a single disk; made from its address by default.
        `OperationError`."""
        try:
            placed = place(luns, taken=hba.luns)
        except ConfigError as error:
            raise OperationError(str(error), "luns") from None
        if id is not None and (len(placed) != 1 or id in self.disks or ADDRESS.fullmatch(id)):
            fault = "is in use" if id in self.disks else "must be of one disk, and no address"
            raise OperationError(f"id {id!r} {fault}", "id")
        configs = self._named(hba, placed, id)
        opened = _Opened()
        try:
            backends = await asyncio.to_thread(lambda: [opened.open(lun) for lun in configs])
            disks = []
            for lun, backend in zip(configs, backends, strict=True):
                unit = logical_unit(backend, self._runtime, tokens=self._tokens)
                disks.append(Disk(lun, backend, unit, self._runtime))
                # There may be a thousand, and guests that wait for an answer.
                await asyncio.sleep(0)
            added = dict(zip(placed, disks, strict=True))
            # Another call may have been faster meanwhile.
            if not self.disks.keys().isdisjoint(lun.id for lun in configs):
                raise OperationError("another call adds disks of the same name; try again", "luns")
            hba.add_luns({at: disk.unit for at, disk in added.items()})
        except (StartError, ValueError) as error:
            opened.close()
            raise OperationError(str(error), "luns") from None
        except BaseException:
            opened.close()
            raise
        for disk in disks:
            self._add_disk(disk)
        self._follow(self._stack, configs)
        return added

    def renew(self, disk: Disk, backend: Backend, unit: LogicalUnit) -> None:
        """The same storage, opened again; no HBA has the old unit any more."""
        del self._disk_of[disk.unit]
        disk.renew(backend, unit)
        self._disk_of[unit] = disk
        if self._faults is not None:
            self._faults.renewed(disk)

    def map_lun(self, hba: Hba, disk: Disk, address: Address) -> None:
        """Hot-plugs a disk that is served already at one more address. `OperationError`."""
        try:
            hba.add_lun(address, disk.unit)
        except ValueError as error:
            raise OperationError(str(error), "at") from None

    async def lower(self, disk: Disk, **caps: int | None) -> None:
        """`Disk.lower`; the drivers of its HBAs hear of it. `OperationError`."""
        before = disk.unit.queue_limits
        await disk.lower(**caps)
        if disk.unit.queue_limits != before:
            for hba in self.hbas:
                hba.limits_changed(disk.unit)

    async def remove_luns(
        self, places: Mapping[Hba, Sequence[Address]], *, deadline: float = 0.0, force: bool = True
    ) -> None:
        """`Hba.remove_luns` of several HBAs: all or none. Disks that no HBA has any more are
        closed. `OperationError`."""
        try:
            removals = [Removal(hba, addresses) for hba, addresses in places.items()]
            units = await remove(removals, deadline=deadline, force=force)
        except LunBusyError as error:
            raise OperationError(f"{error}; all stay (force would remove them)") from None
        except LunAbsentError as error:
            raise OperationError(error.text, "lun") from None
        used = {unit for other in self.hbas for unit in other.luns.values()}
        gone = [self._disk_of.pop(unit) for unit in set(units) - used]
        for disk in gone:
            del self.disks[disk.id]
            if self._faults is not None:
                self._faults.forget(disk)
        await asyncio.gather(*(_retire(disk) for disk in gone))

    def _add_disk(self, disk: Disk) -> None:
        self.disks[disk.id] = disk
        self._disk_of[disk.unit] = disk

    async def _close_disks(self) -> None:
        for disk in self.disks.values():
            await disk.close()

    def _named(
        self, hba: Hba, placed: Mapping[Address, LunSpec], id: str | None
    ) -> list[LunConfig]:
        """Names that no other disk has: memory disks derive their identities from them."""
        ids, names = set(self.disks), {disk.config.name for disk in self.disks.values()}
        origin = os.path.abspath(hba.name)
        configs = []
        for address, spec in placed.items():
            name = _unused(f"{origin}#{show_address(address)}", names)
            configs.append(LunConfig(name, spec, id or _unused(default_id(address), ids)))
        return configs

    def how_to_attach(self) -> list[str]:
        """A line an HBA, ready to paste."""
        return [
            attach_line(config, hba)
            for config, hba in zip(self._config.hbas, self.hbas, strict=True)
        ]


class _Opened:
    """Backends that no disk has taken over yet."""

    def __init__(self) -> None:
        self._backends: list[Backend] = []

    def open(self, lun: LunConfig) -> Backend:
        try:
            backend = open_backend(lun.spec, name=lun.name)
        except (BackendError, SpecError) as error:
            raise StartError(str(error)) from None
        self._backends.append(backend)
        try:
            check_unit(lun.spec, backend)
        except CapError as error:
            raise StartError(f"{lun.spec}: {error}") from None
        return backend

    def hand_over(self, backend: Backend) -> None:
        self._backends.remove(backend)

    def close(self) -> None:
        for backend in self._backends:
            backend.close()


def logical_unit(backend: Backend, runtime: Runtime, *, tokens: Tokens) -> LogicalUnit:
    """The logical unit that a backend's options describe. `tokens`: of all units that tokens may
    be carried between. Raises `StartError` for a state file
    that cannot be used."""
    backend.start(runtime)
    path = backend.state_path
    try:
        store = StateFile(path) if path is not None else None
        return _logical_unit(backend, runtime, tokens, store)
    except StateError as error:
        raise StartError(str(error)) from None
    except SavedStateError as error:
        raise StartError(f"{path}: {error}; remove it, or name another with state=") from None


def _logical_unit(
    backend: Backend, runtime: Runtime, tokens: Tokens, store: StateStore | None
) -> LogicalUnit:
    spec = backend.spec
    if spec.scheme == PASSTHROUGH:
        from vscsi_emu.followed import passthrough_unit

        return passthrough_unit(runtime, backend)
    if backend.python_device is not None:
        return DeviceUnit(
            backend.python_device,
            _identity(backend, product=backend.python_device.product),
            quiesce=runtime.quiesce,
        )
    return LogicalUnit(
        backend.engine,
        _identity(backend),
        block_size=backend.block_size,
        physical_block_exponent=backend.physical_block_exponent,
        read_only=spec.read_only,
        removable=spec.removable,
        rotation_rate=backend.rotation_rate,
        discard=spec.discard,
        lbprz=spec.lbprz,
        cdb_32=spec.cdb_32,
        write_cache=spec.write_cache,
        queue_depth=spec.queue_depth or 0,
        flush=partial(asyncio.to_thread, backend.sync),
        quiesce=runtime.quiesce,
        store=store,
        tokens=tokens,
        thin=backend.thin,
        watcher=runtime.watch,
    )


def _identity(backend: Backend, **names: str) -> Identity:
    """`names` are those that the user's take the place of."""
    given = {"vendor": backend.spec.vendor, "product": backend.spec.product}
    names |= {name: text for name, text in given.items() if text is not None}
    return Identity(backend.serial, bytes.fromhex(backend.naa), **names)


async def _retire(disk: Disk) -> None:
    disk.unit.end()
    await disk.unit.quiesce()
    await disk.close()


def _with_identity(disk: Disk) -> LunConfig:
    """An identity that came from a name is given, as the name will be another."""
    return replace(disk.config, spec=replace(disk.config.spec, naa=disk.backend.naa))


def _unused(name: str, used: set[str]) -> str:
    """`name`, or with a number behind it; used from now on."""
    candidates = itertools.chain([name], (f"{name}-{n}" for n in itertools.count(2)))
    found = next(candidate for candidate in candidates if candidate not in used)
    used.add(found)
    return found


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
    """A locally assigned NAA name (SPC-6), the same at every start."""
    return "3" + hashlib.sha256(f"initiator {hba.socket or 'fd'}".encode()).hexdigest()[:15]
