"""Units that are unplugged: their driver hears of it first, and has time to let go of them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from vscsi_emu.journal import Kind
from vscsi_emu.virtio.scsi import ResetReason, show_address

if TYPE_CHECKING:
    from vscsi_emu.hba.device import Hba
    from vscsi_emu.hba.lun_map import Address
    from vscsi_emu.scsi.nexus import Nexus
    from vscsi_emu.scsi.unit import LogicalUnit

_SILENCE: Final = 0.5
"""Seconds without a command after which a driver that was told of a removal is done with a unit."""


class LunBusyError(Exception):
    """A unit that its driver still uses at the deadline of its removal."""

    def __init__(self, hba: Hba, address: Address, deadline: float) -> None:
        super().__init__(
            f"{hba.name}: {show_address(address)} is still in use after {deadline:g} s"
        )


class LunAbsentError(KeyError):
    """An address that has no unit, or one that is leaving. `text` says so."""

    def __init__(self, hba: Hba, address: Address) -> None:
        super().__init__(address)
        self.text = f"{hba.name} has no unit at {show_address(address)}, or it is leaving"


class Removal:
    """Units of one HBA that are to go, or to stay after all. `LunAbsentError`."""

    def __init__(self, hba: Hba, addresses: Iterable[Address]) -> None:
        self.hba: Final = hba
        self._nexuses: Final = {address: self._present(address) for address in addresses}
        self._told = False
        self._last: dict[Nexus, float] = {}
        """When the last command came."""

    def _present(self, address: Address) -> Nexus:
        nexus = self.hba.nexus(address)
        if nexus is None or self.hba.is_leaving(nexus):
            raise LunAbsentError(self.hba, address)
        return nexus

    def __contains__(self, nexus: Nexus | None) -> bool:
        return nexus in self._last

    def saw_command(self, nexus: Nexus) -> None:
        self._last[nexus] = asyncio.get_running_loop().time()

    def begin(self) -> None:
        """No other removal takes these units until `end`."""
        now = asyncio.get_running_loop().time()
        self._last = dict.fromkeys(self._nexuses.values(), now)
        self.hba.removals.append(self)

    def end(self) -> None:
        self.hba.removals.remove(self)
        for nexus in self._nexuses.values():
            nexus.observe(False)

    async def silence(self, deadline: float) -> Address | None:
        """Tells the driver, and waits until no command came for some time and none runs; a unit
        that is not silent at the deadline. A driver that goes away is silent."""
        if not self.hba.connected:
            return None
        self._told = True
        self.hba.tell(self._nexuses, ResetReason.REMOVED)
        loop = asyncio.get_running_loop()
        end = loop.time() + deadline
        for nexus in self._nexuses.values():
            nexus.observe(True)
        waiting = dict(self._nexuses)
        while waiting and self.hba.connected:
            if loop.time() >= end:
                return next(iter(waiting))
            await asyncio.sleep(min(_SILENCE / 10, deadline))
            since = loop.time() - min(_SILENCE, deadline)
            for address, nexus in list(waiting.items()):
                if self._last[nexus] <= since and not await self.hba.runtime.query(
                    port=self.hba.port, nexus=nexus.data_plane
                ):
                    del waiting[address]
        return None

    def stay(self) -> None:
        """A driver that was told is told to look again."""
        if self._told:
            self.hba.tell(self._nexuses, ResetReason.RESCAN)

    def detach(self) -> None:
        self.hba.detach(self._nexuses)

    async def finish(self) -> list[LogicalUnit]:
        """Of what is detached: commands that are left end with FAILURE."""
        await asyncio.gather(*(self.hba.fail_commands(n) for n in self._nexuses.values()))
        if not self._told:
            self.hba.tell(self._nexuses, ResetReason.REMOVED)
        for address in self._nexuses:
            self.hba.note(Kind.LUN_REMOVED, "is gone", address)
        return [nexus.unit for nexus in self._nexuses.values()]


async def remove(removals: Sequence[Removal], *, deadline: float, force: bool) -> list[LogicalUnit]:
    """All of them, or none: what `Hba.remove_luns` does, of several HBAs at once."""
    for removal in removals:
        removal.begin()
    try:
        if deadline > 0:
            await _silence(removals, deadline, force)
        # At once: a unit that several HBAs have is with all of them, or with none.
        for removal in removals:
            removal.detach()
        units = await asyncio.gather(*(removal.finish() for removal in removals))
    finally:
        for removal in removals:
            removal.end()
    return [unit for some in units for unit in some]


async def _silence(removals: Sequence[Removal], deadline: float, force: bool) -> None:
    try:
        busy = await asyncio.gather(*(removal.silence(deadline) for removal in removals))
        for removal, address in zip(removals, busy, strict=True):
            if address is not None and not force:
                raise LunBusyError(removal.hba, address, deadline)
    except BaseException:
        for removal in removals:
            removal.stay()
        raise
