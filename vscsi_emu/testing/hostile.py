"""Hostile devices for tests of drivers: an HBA in this process that misbehaves on request.

    with InProcess(config) as machine:
        [slot] = machine.slots
        hostility = make_hostile(machine, slot, ["used-twice"], seed=7)
        …  # drive it
        assert hostility.done

For a server, the monitor's `hostile.set` does the same, apart from what lies in registers.
``python -m vscsi_emu.testing.hostile docs/hostile-device.md`` writes the table of that page.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from vscsi_emu.hostile import BEHAVIOURS, Behaviour, Hostility, Place
from vscsi_emu.inprocess import InProcess, Slot
from vscsi_emu.transport.mmio import RegisterModel
from vscsi_emu.virtio.mmio_registers import Register

__all__ = ["BEHAVIOURS", "Behaviour", "HostileRegisters", "Hostility", "Place", "make_hostile"]

_SLOW_READS: Final = 100
"""Reads of Status until a slow reset is over."""


def make_hostile(
    machine: InProcess,
    slot: Slot,
    names: Iterable[str],
    *,
    seed: int = 0,
    chance: int = 100,
    armed: bool = True,
) -> Hostility:
    """Has a device misbehave, from its driver's next probe on; see `Hostility`."""
    hostility = Hostility(names, seed=seed, chance=chance, armed=armed)

    async def choose() -> None:
        slot.hba.hostility = hostility

    machine.call(choose)
    machine.bus.unmap(slot.base)
    machine.bus.map(slot.base, HostileRegisters(slot.device, hostility))
    return hostility


class HostileRegisters:
    """Stands between a guest's loads and stores and honest registers."""

    def __init__(self, model: RegisterModel, hostility: Hostility) -> None:
        self._model = model
        self._hostility = hostility
        self._features_word = 0
        self._slow_reads = 0
        self._never = False
        self._pretends_reset = False

    def read(self, offset: int, size: int) -> int:
        """As `RegisterModel`."""
        value = self._model.read(offset, size)
        if offset >= Register.CONFIG:
            data = self._hostility.config(value.to_bytes(size, "little"))
            return int.from_bytes(data, "little")
        match offset:
            case Register.DEVICE_FEATURES:
                return self._hostility.features(value, self._features_word)
            case Register.STATUS:
                return self._status(value)
        return value

    def _status(self, value: int) -> int:
        if self._pretends_reset:
            return 0
        if self._never:
            return value or 1
        if self._slow_reads:
            self._slow_reads -= 1
            return value or 1
        return value

    def write(self, offset: int, size: int, value: int) -> None:
        """As `RegisterModel`."""
        match offset:
            case Register.DEVICE_FEATURES_SEL:
                self._features_word = value
            case Register.STATUS if value:
                self._pretends_reset = False
            case Register.STATUS if self._model.read(Register.STATUS, size):
                self._never = self._hostility.does("reset-never")
                if self._hostility.does("reset-slow"):
                    self._slow_reads = _SLOW_READS
                if self._hostility.does("reset-half-done"):
                    self._pretends_reset = True
                    return
        self._model.write(offset, size, value)


def table() -> str:
    """`BEHAVIOURS` in Markdown."""
    rows = ["| behaviour | where | the device | our driver | Linux 6.1 |", "|---|---|---|---|---|"]
    rows += [
        f"| `{each.name}` | {each.place} | {each.what} | {each.driver} | {each.linux} |"
        for each in BEHAVIOURS.values()
    ]
    return "\n".join(rows) + "\n"


def update(page: Path) -> None:
    """Writes the table between the page's comments ``behaviours`` and ``end``."""
    new = f"<!-- behaviours -->\n{table()}<!-- end -->"
    pattern = r"<!-- behaviours -->\n.*?<!-- end -->"
    page.write_text(re.sub(pattern, lambda _: new, page.read_text(), flags=re.DOTALL))


if __name__ == "__main__":
    update(Path(sys.argv[1]))
