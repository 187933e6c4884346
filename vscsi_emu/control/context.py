"""What a method works on, and for whom."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vscsi_emu.disk import Disk, OperationError

if TYPE_CHECKING:
    from vscsi_emu.control.trace import Tracing
    from vscsi_emu.hba import Address, Hba
    from vscsi_emu.journal import Record
    from vscsi_emu.service import Service


@dataclass(slots=True)
class Context:
    """One caller's."""

    service: Service
    subscribe: Callable[[Callable[[Record], bool]], None]
    """From now on the caller hears of each record for which its argument is true; once more:
    instead of before."""
    trace: Callable[[Tracing | None], None]
    """From now on the caller gets what this trace records, instead of the one before."""
    quit: Callable[[], None]
    """Ends the server, once the caller has its answer."""

    def hba(self, name: str | None) -> Hba:
        """By socket or number; None: the only one. `OperationError`."""
        hbas = self.service.hbas
        if name is None and len(hbas) == 1:
            return hbas[0]
        for hba in hbas:
            if name in (hba.name, str(hba.number)):
                return hba
        known = ", ".join(hba.name for hba in hbas)
        text = "name one" if name is None else f"there is no HBA {name!r}"
        raise OperationError(f"{text}: {known}", "hba")

    def address(self, text: str, parameter: str) -> Address:
        """(target, LUN) of TARGET:LUN. `OperationError`."""
        from vscsi_emu.backends.uri import SpecError, parse_address

        try:
            return parse_address(text)
        except SpecError as error:
            raise OperationError(str(error), parameter) from None

    def disk(self, lun: str, hba: str | None, parameter: str = "lun") -> Disk:
        """By id, or by address in an HBA. `OperationError`."""
        from vscsi_emu.backends.uri import ADDRESS, did_you_mean

        disks = self.service.disks
        if lun in disks:
            return disks[lun]
        if ADDRESS.fullmatch(lun):
            port = self.hba(hba)
            nexus = port.nexus(self.address(lun, parameter))
            if nexus is not None:
                return self.service.disk_of(nexus.unit)
            raise OperationError(f"{port.name} has no unit at {lun}", parameter)
        raise OperationError(
            f"no unit has id {lun!r}{did_you_mean(lun, disks)}; write TARGET:LUN or an id of "
            "hba.query",
            parameter,
        )
