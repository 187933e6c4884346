"""A SCSI target port as one initiator port sees it: an I_T nexus and its logical units."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from vscsi_emu.scsi.identity import check_naa
from vscsi_emu.scsi.lun import MAX_LUN
from vscsi_emu.scsi.nexus import Nexus
from vscsi_emu.scsi.persistent import NexusId
from vscsi_emu.scsi.port_groups import MAX_PORT_GROUP
from vscsi_emu.scsi.sense import Asc, ScsiError
from vscsi_emu.scsi.unit import LogicalUnit


class Target:
    """LUN → nexus. `naa` names the target port, `relative_port` numbers it (SPC-6), and
    `port_group` is its target port group, each 1 to 65535.

    `initiator` is the NAA name of the initiator port, 8 bytes. Both names together are what
    persistent reservations are kept for.
    """

    def __init__(
        self,
        luns: Mapping[int, LogicalUnit],
        *,
        naa: bytes | None = None,
        initiator: bytes = bytes(8),
        relative_port: int = 1,
        port_group: int = 1,
    ) -> None:
        if naa is not None:
            check_naa(naa)
        if not 1 <= relative_port <= 0xFFFF:
            raise ValueError(f"relative target port {relative_port} is not within 1 to 65535")
        if not 1 <= port_group <= MAX_PORT_GROUP:
            raise ValueError(f"target port group {port_group} is not within 1 to {MAX_PORT_GROUP}")
        self.naa: Final = naa
        self.port_group: Final = port_group
        self.relative_port: Final = relative_port
        self.name: Final = NexusId(initiator, naa or b"", relative_port)
        """Of the I_T nexus."""
        self.nexuses: Final[dict[int, Nexus]] = {}
        self.reachable: Callable[[], Iterable[Nexus]] = self.nexuses.values
        """All units that the initiator port reaches, through whatever target port."""
        for lun, unit in luns.items():
            self._connect(lun, unit)

    @property
    def luns(self) -> list[int]:
        """The LUN inventory, sorted, without well known logical units."""
        return sorted(self.nexuses)

    def find(self, lun: int | None) -> Nexus | None:
        """The nexus at a LUN; None for a LUN that no logical unit has."""
        return self.nexuses.get(lun) if lun is not None else None

    def attach(self, units: Mapping[int, LogicalUnit]) -> None:
        """More logical units; all report REPORTED LUNS DATA HAS CHANGED, the new ones too."""
        for lun, unit in units.items():
            self._connect(lun, unit)
        self._inventory_changed()

    def detach(self, luns: Iterable[int]) -> None:
        """Some logical units less; `KeyError` for one that is not there. Their commands are the
        caller's."""
        for lun in luns:
            nexus = self.nexuses.pop(lun)
            nexus.unit.disconnect(nexus)
        self._inventory_changed()

    def nexus_loss(self) -> None:
        """I_T nexus loss (SAM-6), once the commands of this nexus are aborted."""
        for nexus in self.nexuses.values():
            nexus.lost()
            nexus.establish(Asc.I_T_NEXUS_LOSS_OCCURRED)

    def close(self) -> None:
        """Gives all nexuses up, when the initiator port itself goes away."""
        for nexus in self.nexuses.values():
            nexus.unit.disconnect(nexus)
        self.nexuses.clear()

    def take(self, nexus: Nexus) -> ScsiError | None:
        """What a nexus has to report now; it is pending no more.

        That the inventory changed is reported once a target (LUICLR of VPD page 86h).
        """
        error = nexus.take()
        if error is not None and error.code is Asc.REPORTED_LUNS_DATA_HAS_CHANGED:
            self.inventory_reported()
        return error

    def inventory_reported(self) -> None:
        """The initiator port knows the inventory: no unit need tell it any more (SPC-6)."""
        for nexus in self.nexuses.values():
            nexus.clear(Asc.REPORTED_LUNS_DATA_HAS_CHANGED)

    def _inventory_changed(self) -> None:
        for nexus in self.nexuses.values():
            nexus.establish(Asc.REPORTED_LUNS_DATA_HAS_CHANGED)

    def _connect(self, lun: int, unit: LogicalUnit) -> Nexus:
        if not 0 <= lun <= MAX_LUN:
            raise ValueError(f"LUN {lun} is not within 0 to {MAX_LUN}")
        if lun in self.nexuses:
            raise ValueError(f"LUN {lun} is taken")
        nexus = self.nexuses[lun] = unit.connect(self.name, self.port_group)
        return nexus
