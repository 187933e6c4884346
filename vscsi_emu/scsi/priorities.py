"""The priority of each I_T_L nexus (SPC-4 6.44).

It orders nothing here: SAM-5 leaves it to the device server whether commands obey it.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from vscsi_emu.scsi.persistent import NexusId


class Priorities:
    """Of one unit's nexuses. I_T nexus losses leave them alone, resets do not."""

    def __init__(self) -> None:
        self._values: dict[NexusId, int] = {}

    @property
    def assigned(self) -> Mapping[NexusId, int]:
        """Those that SET PRIORITY took from the initial command priority, never 0."""
        return MappingProxyType(self._values)

    def set(self, nexus: NexusId, priority: int) -> None:
        """0: the initial command priority."""
        if priority:
            self._values[nexus] = priority
        else:
            self._values.pop(nexus, None)

    def clear(self) -> None:
        """The initial command priority for all."""
        self._values.clear()
