"""One device of the host while it is served."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vscsi_emu._dataplane import DEVICE_GONE, LIMIT_REFUSED
from vscsi_emu.backends import BackendError, SpecError
from vscsi_emu.backends.sg import SgBackend
from vscsi_emu.host.devices import at, devices
from vscsi_emu.host.limits import attributes
from vscsi_emu.passthrough import PassthroughUnit
from vscsi_emu.passthrough.capacity import NONE, read_capacity
from vscsi_emu.scsi.identity import Identity

if TYPE_CHECKING:
    from vscsi_emu.backends import Backend
    from vscsi_emu.disk import Disk
    from vscsi_emu.hba import Address, Hba
    from vscsi_emu.host.devices import ScsiDevice
    from vscsi_emu.host.monitor import Change
    from vscsi_emu.runtime import Runtime
    from vscsi_emu.service import Service

log = logging.getLogger(__name__)

Watch = Callable[[Iterable[Path], Callable[[], None]], Callable[[], None]]
"""`host.attributes.Attributes.watch`."""

_CAPACITY: Final = "CAPACITY_DATA_HAS_CHANGED"
"""As the kernel calls it."""
_ATTEMPTS: Final = 20
_PAUSE_SECONDS: Final = 0.25


class Followed:
    """Makes what is served agree with what the host has.

    Whatever hints at a difference (an event of the kernel, a command that found no device or a
    limit that is not known, a write to sysfs) has the host looked at: no hint says what to do, and
    one that is lost is made up for by the next.
    """

    def __init__(
        self,
        service: Service,
        disk: Disk,
        watch: Watch,
        over: Callable[[], None],
    ) -> None:
        """`over` is called when the disk is not served any more."""
        self._service, self._disk, self._watch, self._over = service, disk, watch, over
        self._away: list[tuple[Hba, Address]] | None = None
        """Where it was, while its device is not there."""
        self._place, self._limits, self._capacity = (asyncio.Event() for _ in range(3))
        # Side by side: a device that is about to go may never answer.
        self._tasks = [
            asyncio.create_task(self._whenever(due, work))
            for due, work in (
                (self._place, self._settle),
                (self._limits, self._reread),
                (self._capacity, self._ask),
            )
        ]
        self._listen(self._backend)

    async def close(self) -> None:
        self._unwatch()
        tasks = [*self._tasks, self._hearing]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def look(self) -> None:
        """Something may have happened that nobody told of."""
        self._place.set()
        self._limits.set()

    def hear(self, change: Change) -> None:
        """Of any device."""
        backend = self._backend
        if change.device.address == backend.device.address or backend.is_it(change.device):
            self._place.set()
            if change.kind in ("changed", "missed"):
                self._limits.set()
            resized = not {"size", "block_size"}.isdisjoint(change.changed)
            if resized or change.kind == "missed" or change.attention == _CAPACITY:
                self._capacity.set()

    @property
    def _backend(self) -> SgBackend:
        backend = self._disk.backend
        assert isinstance(backend, SgBackend)
        return backend

    @property
    def _unit(self) -> PassthroughUnit:
        unit = self._disk.unit
        assert isinstance(unit, PassthroughUnit)
        return unit

    @property
    def _is_served(self) -> bool:
        return self._service.disks.get(self._disk.id) is self._disk

    async def _whenever(self, due: asyncio.Event, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            await due.wait()
            due.clear()
            try:
                await work()
            except Exception:
                log.exception("internal error while following %s", self._backend.spec)

    def _listen(self, backend: SgBackend) -> None:
        self._hearing = asyncio.create_task(self._hear_commands(backend))
        self._unwatch = self._watch(attributes(backend.device), self._limits.set)

    async def _hear_commands(self, backend: SgBackend) -> None:
        """What commands show of their device, until that is closed."""
        runtime, device = self._service.runtime, backend.passthrough
        while told := await runtime.call(partial(device.watch, runtime.inbox)):
            if told & DEVICE_GONE:
                self._place.set()
            if told & LIMIT_REFUSED:
                self._limits.set()
            # They may fail by the thousand.
            await asyncio.sleep(_PAUSE_SECONDS)
        if not self._is_served:
            self._over()

    # ── Whether it is there ────────────────────────────────────────────────────────────────────

    async def _settle(self) -> None:
        backend = self._backend
        if self._away is None and self._is_served and not backend.is_there:
            await self._leave(backend)
        if self._away is not None:
            back = (device for device in devices() if backend.is_it(device) and device.stays)
            if device := next(back, None):
                await self._return(backend, device, self._away)

    async def _leave(self, backend: SgBackend) -> None:
        """The host ends the commands in flight; new ones find no target."""
        log.warning("%s is gone from the host", backend.spec)
        unit = self._unit
        self._away = places = [
            (hba, address)
            for hba in self._service.hbas
            for address, there in hba.luns.items()
            if there is unit
        ]
        backend.passthrough.close()
        await unit.quiesce()
        for hba, address in places:
            with suppress(KeyError):  # somebody else has removed it meanwhile
                await hba.remove_lun(address)
        backend.close()

    async def _return(
        self, old: SgBackend, device: ScsiDevice, places: list[tuple[Hba, Address]]
    ) -> None:
        backend = await _reopened(old, device)
        if backend is None:
            return
        if not self._is_served:
            backend.close()
            return
        log.warning("%s is back, at %s", old.spec, device)
        self._away = None
        unit = passthrough_unit(self._service.runtime, backend)
        self._service.renew(self._disk, backend, unit)
        self._unwatch()
        self._listen(backend)
        for hba, address in places:
            if hba.nexus(address) is None:
                hba.add_lun(address, unit)
        self.look()  # it may have gone again before anybody listened

    # ── What it is like ────────────────────────────────────────────────────────────────────────

    async def _reread(self) -> None:
        backend, unit = self._backend, self._unit
        changed = await asyncio.to_thread(backend.reread_limits)
        if changed and self._away is None:
            log.warning("%s has other limits: %s", backend.spec, _shown(backend))
            unit.limited(
                backend.transfer_limits,
                max_segments=backend.limits.seg_max.value,
                commands=backend.limits.cmd_per_lun.value,
            )
            for hba in self._service.hbas:
                hba.limits_changed(unit)

    async def _ask(self) -> None:
        backend, unit = self._backend, self._unit
        device = at(backend.device.address)
        if device is None or device.state != "running" or device.size is None:
            return  # on its way out: sizes vanish first
        found = await asyncio.to_thread(read_capacity, backend.passthrough)
        if found in (NONE, unit.capacity) or self._away is not None:
            return
        log.warning("%s has %d blocks of %d bytes now", backend.spec, *reversed(found))
        unit.resized(found)


def _shown(backend: SgBackend) -> str:
    limits = backend.limits
    shown = (limits.max_sectors, limits.seg_max, limits.cmd_per_lun)
    return ", ".join(f"{limit.name} {limit.value} ({limit.source})" for limit in shown)


async def _reopened(old: SgBackend, device: ScsiDevice) -> SgBackend | None:
    error: Exception | None = None
    for left in reversed(range(_ATTEMPTS)):
        # Its drivers come one after the other: for a while only the same kind of node will do.
        device = at(device.address) or device
        node = old.like_node(device)
        if node is not None or not left:
            spec = replace(old.spec, location=str(node or device.address))
            try:
                return await asyncio.to_thread(SgBackend, spec, old.name, serving=True)
            except (BackendError, SpecError) as found:
                error = found
        await asyncio.sleep(_PAUSE_SECONDS)
    log.error("%s is back, but cannot be served: %s", old.spec, error)
    return None


def passthrough_unit(runtime: Runtime, backend: Backend) -> PassthroughUnit:
    """The unit that a device is. `backend` is an `SgBackend`."""
    assert isinstance(backend, SgBackend)
    return PassthroughUnit(
        backend.passthrough,
        backend.transfer_limits,
        device_type=backend.device.type,
        level=backend.level,
        capacity=backend.capacity,
        max_segments=backend.limits.seg_max.value,
        commands=backend.limits.cmd_per_lun.value,
        identity=Identity(backend.serial, bytes.fromhex(backend.naa)),
        quiesce=runtime.quiesce,
    )
