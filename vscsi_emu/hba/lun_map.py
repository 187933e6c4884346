"""The map from (target, LUN) to logical units: the targets that an HBA's driver finds."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Final

from vscsi_emu.scsi.lun import decode_lun
from vscsi_emu.scsi.target import Target
from vscsi_emu.virtio.scsi import (
    MAX_TARGET,
    SINGLE_LEVEL,
    WELL_KNOWN,
    encode_lun,
    show_address,
)

if TYPE_CHECKING:
    from vscsi_emu._dataplane import Port
    from vscsi_emu.scsi.nexus import Nexus
    from vscsi_emu.scsi.unit import LogicalUnit

Address = tuple[int, int]
"""(target, LUN)."""


class LunMap:
    """Of one initiator port. `watch` is called with each nexus that is made.

    Targets stay, even without any LUN: commands to those that they have not end with LOGICAL
    UNIT NOT SUPPORTED.
    """

    def __init__(
        self,
        port: Port,
        watch: Callable[[Nexus, Address], None],
        *,
        initiator: str,
        number: int,
        port_group: int,
    ) -> None:
        """`initiator`, `number`, `port_group`: of the HBA."""
        self._port = port
        self._watch = watch
        self._initiator: Final = initiator
        self._number: Final = number
        self._port_group: Final = port_group
        self._targets: dict[int, Target] = {}
        self._down: dict[int, bool] = {}
        """Targets whose links are down, and whether the driver was told that their units are
        gone."""

    def close(self) -> None:
        for target in self._targets.values():
            target.close()
        self._targets.clear()
        self._port.set_luns({})

    # ── What is where ──────────────────────────────────────────────────────────────────────────

    @property
    def luns(self) -> dict[Address, LogicalUnit]:
        """In order."""
        return {
            (number, lun): target.nexuses[lun].unit
            for number, target in sorted(self._targets.items())
            for lun in target.luns
        }

    def nexus(self, address: Address) -> Nexus | None:
        target, lun = address
        return self._targets[target].find(lun) if target in self._targets else None

    def nexuses(self) -> Iterator[Nexus]:
        for target in self._targets.values():
            yield from target.nexuses.values()

    def find(self, field: bytes) -> tuple[Target, int | None] | None:
        """The target that a request's lun field names, with its LUN if that can be decoded."""
        if field[0] == WELL_KNOWN:
            # C1 01 names no target (5.6.6.1); the first one answers.
            target = self._targets[min(self._targets)] if self._targets else None
            level = field
        else:
            target = self._targets.get(field[1]) if field[0] == SINGLE_LEVEL else None
            level = field[2:] + bytes(2)
        return (target, decode_lun(level)) if target else None

    def reachable(self, number: int) -> Target | None:
        """The target of this number, if its link is up."""
        return None if number in self._down else self._targets.get(number)

    # ── Changes ────────────────────────────────────────────────────────────────────────────────

    def check_free(self, addresses: Iterable[Address]) -> None:
        """`ValueError` for an address out of range, or in use."""
        for address in addresses:
            encode_lun(*address)  # checks both numbers
            if self.nexus(address) is not None:
                raise ValueError(f"{show_address(address)} is taken")

    def attach(self, units: Mapping[Address, LogicalUnit]) -> None:
        """More logical units."""
        for number, luns in _by_target(units).items():
            added = {lun: units[number, lun] for lun in luns}
            if target := self._targets.get(number):
                target.attach(added)
            else:
                self._targets[number] = self._target(number, added)
            for lun in luns:
                self._watch(self._targets[number].nexuses[lun], (number, lun))
        self._publish()

    def detach(self, addresses: Iterable[Address]) -> None:
        """Some less. Their commands are the caller's."""
        for number, luns in _by_target(addresses).items():
            target = self._targets[number]
            for lun in luns:
                target.nexuses[lun].on_attention = None
            target.detach(luns)
        self._publish()

    def cut(self, number: int) -> Iterable[Nexus]:
        """The target cannot be reached any more; these have commands that are the caller's."""
        if number not in self._targets or number in self._down:
            return ()
        self._down[number] = False
        self._publish()
        return self._targets[number].nexuses.values()

    def lose(self, number: int) -> list[Address]:
        """Units of a target that cannot be reached, of which the driver is to be told now that they
        are gone."""
        if self._down.get(number) is not False:
            return []
        self._down[number] = True
        return self._addresses(number)

    def restore(self, number: int) -> list[Address]:
        """The target can be reached again, and reports an I_T nexus loss; its units, if the driver
        was told that they are gone."""
        if number not in self._down:
            return []
        lost = self._down.pop(number)
        self._targets[number].nexus_loss()
        self._publish()
        return self._addresses(number) if lost else []

    def _addresses(self, number: int) -> list[Address]:
        return [(number, lun) for lun in self._targets[number].luns]

    def nexus_loss(self) -> None:
        """For every target (SAM-6), once their commands are gone."""
        for target in self._targets.values():
            target.nexus_loss()

    def _target(self, number: int, units: Mapping[int, LogicalUnit]) -> Target:
        target = Target(
            units,
            naa=self._target_name(number),
            initiator=bytes.fromhex(self._initiator),
            relative_port=self._number * (MAX_TARGET + 1) + number + 1,
            port_group=self._port_group,
        )
        target.reachable = self.nexuses
        return target

    def _target_name(self, number: int) -> bytes:
        """A locally assigned NAA name (SPC-6) of a target port, stable over restarts."""
        digest = hashlib.sha256(f"target {self._initiator} {number}".encode()).digest()
        return bytes([0x30 | digest[0] & 0xF]) + digest[1:8]

    def _publish(self) -> None:
        """To the workers."""
        up = {number: target for number, target in self._targets.items() if self.reachable(number)}
        self._port.set_luns(
            {
                (number, lun): nexus.data_plane
                for number, target in up.items()
                for lun, nexus in target.nexuses.items()
            },
            targets=list(up),
        )


def _by_target(addresses: Iterable[Address]) -> dict[int, list[int]]:
    luns: dict[int, list[int]] = {}
    for target, lun in addresses:
        luns.setdefault(target, []).append(lun)
    return luns
