"""Asymmetric logical unit access: the state of each target port group's way to a unit (SPC-4 5.16).

Resets and I_T nexus losses leave the states as they are. After power on all are active/optimized:
only a unit without implicit management has to preserve them (SPC-4 5.16.2.9).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from vscsi_emu.scsi.cdb import Flag
from vscsi_emu.scsi.sense import Asc, ScsiError, SenseKey

if TYPE_CHECKING:
    from vscsi_emu.scsi.nexus import Nexus
    from vscsi_emu.scsi.unit import LogicalUnit

MAX_PORT_GROUP: Final = 0xFFFF


class AccessState(enum.IntEnum):
    """ASYMMETRIC ACCESS STATE, of a primary target port group (SPC-4 5.16.2.4)."""

    ACTIVE_OPTIMIZED = 0x0
    ACTIVE_NON_OPTIMIZED = 0x1
    STANDBY = 0x2
    UNAVAILABLE = 0x3

    @property
    def active(self) -> bool:
        """Every command is processed."""
        return self <= AccessState.ACTIVE_NON_OPTIMIZED

    def refusal(self, flags: Flag) -> ScsiError | None:
        """Why a command with these flags is not processed through such a port."""
        if self.active or _PROCESSED[self] in flags:
            return None
        return ScsiError(SenseKey.NOT_READY, _REFUSAL[self])


_PROCESSED: Final = MappingProxyType(
    {AccessState.STANDBY: Flag.IN_STANDBY, AccessState.UNAVAILABLE: Flag.WHEN_UNAVAILABLE}
)
_REFUSAL: Final = MappingProxyType(
    {
        AccessState.STANDBY: Asc.TARGET_PORT_IN_STANDBY_STATE,
        AccessState.UNAVAILABLE: Asc.TARGET_PORT_IN_UNAVAILABLE_STATE,
    }
)


class Cause(enum.IntEnum):
    """STATUS CODE of a target port group descriptor (SPC-4 6.37)."""

    NONE = 0x00
    EXPLICIT = 0x01
    """SET TARGET PORT GROUPS."""
    IMPLICIT = 0x02


@dataclass(frozen=True, slots=True)
class GroupStatus:
    state: AccessState = AccessState.ACTIVE_OPTIMIZED
    cause: Cause = Cause.NONE


class PortGroups:
    """The access states of one unit. Its groups are those of the target ports that reach it."""

    def __init__(self, unit: LogicalUnit) -> None:
        self._unit = unit
        self._statuses: dict[int, GroupStatus] = {}

    def status(self, group: int) -> GroupStatus:
        return self._statuses.get(group, GroupStatus())

    @property
    def ports(self) -> dict[int, list[int]]:
        """Relative target port identifiers by group, both sorted."""
        ports: dict[int, set[int]] = {}
        for nexus in self._unit.nexuses:
            ports.setdefault(nexus.port_group, set()).add(nexus.id.relative_port)
        return {group: sorted(ports[group]) for group in sorted(ports)}

    async def change(self, states: Mapping[int, AccessState], *, by: Nexus | None = None) -> None:
        """Puts groups into states, all at once; `by` the nexus of SET TARGET PORT GROUPS, or
        implicitly. When it returns, no command runs any more that a state rules out."""
        changed = {group: s for group, s in states.items() if s is not self.status(group).state}
        if not changed:
            return
        cause = Cause.EXPLICIT if by is not None else Cause.IMPLICIT
        for group, state in changed.items():
            self._statuses[group] = GroupStatus(state, cause)
        self._unit.update_gates()
        self._unit.establish(Asc.ASYMMETRIC_ACCESS_STATE_CHANGED, but=by)
        await self._unit.quiesce()
