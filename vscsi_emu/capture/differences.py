"""What reads gave when they were recorded, and what they give now, block by block."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import groupby
from typing import Final

from vscsi_emu.control.decode import cdb_length, find
from vscsi_emu.control.trace import TracedCommand
from vscsi_emu.scsi.cdb import Cdb

_READ_6: Final = 0x08
_READ_6_BLOCKS: Final = 256
"""What a TRANSFER LENGTH of 0 stands for there (SBC)."""
_SMALLEST: Final = 512


@dataclass(frozen=True, slots=True)
class Blocks:
    """LBAs in a row."""

    lba: int
    count: int

    def __str__(self) -> str:
        return str(self.lba) if self.count == 1 else f"{self.lba} to {self.lba + self.count - 1}"


@dataclass(frozen=True, slots=True, kw_only=True)
class DataComparison:
    """Blocks of reads whose data was captured, as far as it was."""

    compared: int
    """A block counts as often as it was read."""
    different: list[Blocks]
    """Those that had other data at least once, in order."""


@dataclass
class Differences:
    """Grows with each command that is added."""

    _compared: int = 0
    _different: set[int] = field(default_factory=set)

    def add(self, recorded: TracedCommand, data: bytes) -> None:
        """A command that ended with GOOD both times; `data` is what it read now."""
        before = bytes.fromhex(recorded.data)
        place = _place(recorded)
        if place is None or not before:
            return
        lba, size = place
        for number, start in enumerate(range(0, len(before), size)):
            end = min(start + size, len(before))
            self._compared += 1
            if before[start:end] != data[start:end]:
                self._different.add(lba + number)

    @property
    def found(self) -> DataComparison:
        return DataComparison(compared=self._compared, different=list(_rows(self._different)))


def _place(recorded: TracedCommand) -> tuple[int, int] | None:
    """First LBA and bytes of a block of a READ; None for another command, or one cut short."""
    cdb = bytes.fromhex(recorded.cdb)
    known = find(cdb)
    if known is None or not known.name.startswith("READ(") or not recorded.data_in_moved:
        return None
    fields = Cdb(known, cdb[: cdb_length(cdb)])
    blocks = fields["blocks"] or (_READ_6_BLOCKS if cdb[0] == _READ_6 else 0)
    size, rest = divmod(recorded.data_in_moved, blocks) if blocks else (0, 0)
    if rest or size < _SMALLEST or size & (size - 1):
        return None
    return fields["lba"], size


def _rows(lbas: Iterable[int]) -> Iterable[Blocks]:
    for _, numbered in groupby(enumerate(sorted(lbas)), lambda pair: pair[1] - pair[0]):
        row = [lba for _, lba in numbered]
        yield Blocks(row[0], len(row))
