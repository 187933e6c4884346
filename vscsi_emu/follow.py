"""Host devices that go, come back and change while they are served."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from vscsi_emu.backends import BackendError, SpecError
from vscsi_emu.backends.sg import SgBackend
from vscsi_emu.host.devices import at
from vscsi_emu.host.errors import HostError
from vscsi_emu.host.monitor import Change, Monitor
from vscsi_emu.passthrough import PassthroughUnit
from vscsi_emu.passthrough.capacity import NONE, read_capacity
from vscsi_emu.scsi.identity import Identity
from vscsi_emu.scsi.sense import Asc

if TYPE_CHECKING:
    from vscsi_emu.backends import Backend
    from vscsi_emu.disk import Disk
    from vscsi_emu.hba import Address, Hba
    from vscsi_emu.host.devices import ScsiDevice
    from vscsi_emu.runtime import Runtime
    from vscsi_emu.service import Service

log = logging.getLogger(__name__)

_CAPACITY: Final = Asc.CAPACITY_DATA_HAS_CHANGED.name
_ATTEMPTS: Final = 20
_PAUSE_SECONDS: Final = 0.25
"""A device is told of before its nodes are there."""


class Follower:
    """Unplugs units whose devices are gone, and plugs them in again when the same come back."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._away: dict[Disk, list[tuple[Hba, Address]]] = {}
        """Disks whose devices are gone, and where they were."""
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Without the kernel's events, where these cannot be had, nothing is followed."""
        try:
            monitor = Monitor()
        except HostError as error:
            log.warning("host devices that go or change are not noticed: %s", error)
            return
        self._task = asyncio.create_task(self._follow(monitor))

    async def close(self) -> None:
        """Before the HBAs are closed."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _follow(self, monitor: Monitor) -> None:
        async for change in monitor:
            for disk in list(self._service.disks.values()):
                backend, unit = disk.backend, disk.unit
                if (
                    isinstance(backend, SgBackend)
                    and isinstance(unit, PassthroughUnit)
                    and backend.is_it(change.device)
                ):
                    try:
                        await self._apply(disk, backend, unit, change)
                    except Exception:
                        log.exception("internal error while following %s", backend.spec)

    async def _apply(
        self, disk: Disk, backend: SgBackend, unit: PassthroughUnit, change: Change
    ) -> None:
        device, there = change.device, disk not in self._away
        match change.kind:
            case "removed" if there and device.address == backend.device.address:
                await self._gone(disk, backend)
            case "added" if not there:
                await self._back(disk, backend, device)
            case "changed" if there and {"size", "block_size"} & {*change.changed}:
                await self._resized(backend, unit, device)
            case "attention" if there and change.attention == _CAPACITY:
                await self._resized(backend, unit, device)

    async def _gone(self, disk: Disk, backend: SgBackend) -> None:
        """The host ends the commands in flight; new ones find no target."""
        log.warning("%s is gone from the host", backend.spec)
        places = [
            (hba, address)
            for hba in self._service.hbas
            for address, unit in hba.luns.items()
            if unit is disk.unit
        ]
        self._away[disk] = places
        backend.passthrough.close()
        await disk.unit.quiesce()
        for hba, address in places:
            await hba.remove_lun(address)
        backend.close()

    async def _back(self, disk: Disk, old: SgBackend, device: ScsiDevice) -> None:
        backend = await _reopened(old, device)
        if backend is None:
            return
        places = self._away.pop(disk)
        if self._service.disks.get(disk.id) is not disk:
            backend.close()
            return
        log.warning("%s is back, at %s", old.spec, device)
        unit = passthrough_unit(self._service.runtime, backend)
        self._service.renew(disk, backend, unit)
        for hba, address in places:
            if hba.nexus(address) is None:
                hba.add_lun(address, unit)

    async def _resized(self, backend: SgBackend, unit: PassthroughUnit, device: ScsiDevice) -> None:
        if device.state != "running" or device.size is None:
            return  # on its way out: sizes vanish first
        found = await asyncio.to_thread(read_capacity, backend.passthrough)
        if found in (NONE, unit.capacity):
            return
        log.warning("%s has %d blocks of %d bytes now", backend.spec, *reversed(found))
        unit.resized(found)


async def _reopened(old: SgBackend, device: ScsiDevice) -> SgBackend | None:
    error: Exception | None = None
    for _ in range(_ATTEMPTS):
        # Its drivers come one after the other.
        device = at(device.address) or device
        node = old.like_node(device) or device.address
        spec = replace(old.spec, location=str(node))
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
