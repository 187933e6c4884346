"""Host devices that go, come back and change while they are served."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
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
    from vscsi_emu.hba import Address, Hba
    from vscsi_emu.host.devices import ScsiDevice
    from vscsi_emu.runtime import Runtime
    from vscsi_emu.scsi.unit import LogicalUnit

log = logging.getLogger(__name__)

_CAPACITY: Final = Asc.CAPACITY_DATA_HAS_CHANGED.name
_ATTEMPTS: Final = 20
_PAUSE_SECONDS: Final = 0.25
"""A device is told of before its nodes are there."""


@dataclass(slots=True)
class Followed:
    """A device and the unit that it is, at these places."""

    backend: SgBackend
    unit: PassthroughUnit
    places: tuple[tuple[Hba, Address], ...]
    there: bool = True

    def is_it(self, device: ScsiDevice) -> bool:
        """By name where it has one: addresses are given anew."""
        own = self.backend.device
        if own.wwid or device.wwid:
            return own.wwid == device.wwid
        return (own.address, own.vendor, own.model) == (
            device.address,
            device.vendor,
            device.model,
        )


class Follower:
    """Unplugs units whose devices are gone, and plugs them in again when the same come back."""

    def __init__(
        self,
        runtime: Runtime,
        followed: Iterable[Followed],
        opened: ExitStack,
    ) -> None:
        """What is opened is closed with `opened`, after the last I/O."""
        self._runtime = runtime
        self._followed = list(followed)
        self._opened = opened
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
            for one in self._followed:
                if one.is_it(change.device):
                    try:
                        await self._apply(one, change)
                    except Exception:
                        log.exception("internal error while following %s", one.backend.spec)

    async def _apply(self, one: Followed, change: Change) -> None:
        address = change.device.address
        match change.kind:
            case "removed" if one.there and address == one.backend.device.address:
                await self._gone(one)
            case "added" if not one.there:
                await self._back(one, change.device)
            case "changed" if one.there and {"size", "block_size"} & {*change.changed}:
                await self._resized(one, change.device)
            case "attention" if one.there and change.attention == _CAPACITY:
                await self._resized(one, change.device)

    async def _gone(self, one: Followed) -> None:
        """The host ends the commands in flight; new ones find no target."""
        log.warning("%s is gone from the host", one.backend.spec)
        one.there = False
        one.backend.passthrough.close()
        await self._runtime.quiesce(one.unit.data_plane)
        for hba, address in one.places:
            if (nexus := hba.nexus(address)) is not None and nexus.unit is one.unit:
                await hba.remove_lun(address)
        one.backend.close()

    async def _back(self, one: Followed, device: ScsiDevice) -> None:
        backend = await self._reopened(one, device)
        if backend is None:
            return
        self._opened.callback(backend.close)
        log.warning("%s is back, at %s", one.backend.spec, device)
        one.backend, one.unit, one.there = backend, passthrough_unit(self._runtime, backend), True
        for hba, address in one.places:
            if hba.nexus(address) is None:
                hba.add_lun(address, one.unit)

    async def _reopened(self, one: Followed, device: ScsiDevice) -> SgBackend | None:
        error: Exception | None = None
        for _ in range(_ATTEMPTS):
            # Its drivers come one after the other.
            device = at(device.address) or device
            node = one.backend.like_node(device) or device.address
            spec = replace(one.backend.spec, location=str(node))
            try:
                return await asyncio.to_thread(SgBackend, spec, one.backend.name, serving=True)
            except (BackendError, SpecError) as found:
                error = found
            await asyncio.sleep(_PAUSE_SECONDS)
        log.error("%s is back, but cannot be served: %s", one.backend.spec, error)
        return None

    async def _resized(self, one: Followed, device: ScsiDevice) -> None:
        if device.state != "running" or device.size is None:
            return  # on its way out: sizes vanish first
        found = await asyncio.to_thread(read_capacity, one.backend.passthrough)
        if found in (NONE, one.unit.capacity):
            return
        log.warning("%s has %d blocks of %d bytes now", one.backend.spec, *reversed(found))
        one.unit.resized(found)


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


def followed(
    backends: Mapping[str, Backend],
    units: Mapping[str, LogicalUnit],
    places: Iterable[tuple[Hba, Mapping[Address, str]]],
) -> list[Followed]:
    """The devices among them; all by the names of units."""
    where = [(hba, address, name) for hba, luns in places for address, name in luns.items()]
    found = []
    for name, backend in backends.items():
        unit = units[name]
        if isinstance(backend, SgBackend) and isinstance(unit, PassthroughUnit):
            here = tuple((hba, address) for hba, address, at in where if at == name)
            found.append(Followed(backend, unit, here))
    return found
