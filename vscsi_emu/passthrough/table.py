"""The commands of a unit that is a device of the host: the filter as a command table."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from types import MappingProxyType
from typing import Final

from vscsi_emu.host import block_limits
from vscsi_emu.passthrough.commands import (
    SUPPORTED_PAGES,
    Ask,
    report_supported_operation_codes,
    vital_product_data,
    write_protected,
)
from vscsi_emu.scsi.cdb import VARIABLE_LENGTH, CommandType, Field, Flag, Route
from vscsi_emu.scsi.commands.report import report_luns
from vscsi_emu.scsi.passing import (
    INQUIRY,
    MAINTENANCE_IN,
    MULTIMEDIA,
    REPORT_LUNS,
    Level,
    Passing,
    passing,
)
from vscsi_emu.scsi.sense import Asc, ScsiError, SenseKey, invalid_field_in_cdb
from vscsi_emu.scsi.table import CommandTable

log = logging.getLogger(__name__)

_REQUEST_SENSE: Final = 0x03
_REPORT_OPCODES: Final = 0x0C
"""Service action of REPORT SUPPORTED OPERATION CODES."""
_EVPD: Final = 0x01
_WITH_WP: Final = frozenset({0x00, 0x01, 0x04, 0x07, 0x0E, 0x14})
"""Peripheral device types whose mode parameter headers say whether they are write-protected."""
_VENDOR: Final = 0xC0
_LENGTHS: Final = (6, 10, 10, 10, 16, 12, 16, 16)
"""Of CDBs, by the upper three bits of the operation code (SPC-6 4.2.2)."""
_VARIABLE_BYTES: Final = 32


class PassthroughTable(CommandTable):
    """What passes to a device of `device_type` at `level`; the rest is refused, and counted."""

    def __init__(
        self,
        device_type: int,
        level: Level,
        ask: Ask,
        *,
        most_bytes: Callable[[], int],
        most_blocks: Callable[[], int] | None,
    ) -> None:
        """Both of one transfer; `most_blocks` is None where the device has no blocks."""
        self.level: Final = level
        self.refused: Final[Counter[int]] = Counter()
        """How often, by operation code."""
        rows = passing(device_type).items()
        self._rows: dict[int, tuple[Passing, ...]] = {
            opcode: kept
            for opcode, every in rows
            if (kept := tuple(row for row in every if row.level <= level))
        }
        passed = range(256) if level is Level.ALL else self._rows
        self._passed = {opcode: _passed(opcode) for opcode in passed if opcode != REPORT_LUNS}
        self._inquiry = vital_product_data(ask, most_blocks) if most_blocks else None
        self._modes: dict[int, CommandType] = {}
        if level is Level.READONLY and device_type in _WITH_WP:
            self._modes = {entry.opcode: entry for entry in write_protected(ask, most_bytes)}
        self._report = None
        if device_type != MULTIMEDIA:  # whose A3h is another command
            self._report = report_supported_operation_codes(ask, self.passes, most_bytes)
        super().__init__(iter([*self._passed.values(), report_luns]))

    def passes(self, cdb: bytes) -> bool:
        """Whether a command passes, or is answered here."""
        if self.level is Level.ALL or cdb[0] == REPORT_LUNS:
            return True
        return any(row.covers(cdb) for row in self._rows.get(cdb[0], ()))

    def find(self, cdb: bytes) -> CommandType:
        """What answers a CDB; `ScsiError` for one that does not pass."""
        cdb = cdb.ljust(16, b"\0")
        opcode, action = cdb[0], cdb[1] & 0x1F
        if opcode == REPORT_LUNS:
            return report_luns
        if opcode not in self._passed:
            self._count(opcode)
            raise ScsiError(SenseKey.ILLEGAL_REQUEST, Asc.INVALID_COMMAND_OPERATION_CODE, field=0)
        if not self.passes(cdb):
            self._count(opcode)
            raise invalid_field_in_cdb(*((8, 7) if opcode == VARIABLE_LENGTH else (1, 4)))
        page = cdb[2] if opcode == INQUIRY and cdb[1] & _EVPD else None
        if self._inquiry and page in (SUPPORTED_PAGES, block_limits.PAGE):
            return self._inquiry
        if self._report and opcode == MAINTENANCE_IN and action == _REPORT_OPCODES:
            return self._report
        return self._modes.get(opcode) or self._passed[opcode]

    @property
    def routes(self) -> bytes:
        """Python sees what it may have to refuse or to answer."""
        routes = bytearray(256)
        everything = self.level is Level.ALL
        for opcode in self._passed:
            partly = not everything and any(
                row.actions is not None for row in self._rows.get(opcode, ())
            )
            ours = opcode in self._modes or (self._report and opcode == MAINTENANCE_IN)
            routes[opcode] = Route.PYTHON if partly or ours else Route.MEDIA
        return bytes(routes)

    @property
    def usage_maps(self) -> dict[int, bytes]:
        maps = {opcode: bytearray(entry.accepted) for opcode, entry in self._passed.items()}
        if self._inquiry:
            maps[INQUIRY][1] &= ~_EVPD
        return {opcode: bytes(usage) for opcode, usage in maps.items()}

    def _count(self, opcode: int) -> None:
        if not self.refused[opcode]:
            level = self.level.name.lower()
            log.warning("operation code %02Xh does not pass at level %s", opcode, level)
        self.refused[opcode] += 1


def _passed(opcode: int) -> CommandType:
    """With any field as it is, but not NACA: the allegiance would be the host's as well."""
    length = _VARIABLE_BYTES if opcode == VARIABLE_LENGTH else _LENGTHS[opcode >> 5]
    control = 1 if opcode == VARIABLE_LENGTH else length - 1
    fields = {"any": Field(1, length - 1)}
    if opcode < _VENDOR:
        fields = {f"byte {byte}": Field(byte) for byte in range(1, length) if byte != control} | {
            "vendor": Field(control, high=7, low=3),
            "obsolete": Field(control, high=1),
        }
    skips = opcode in (INQUIRY, _REQUEST_SENSE)
    return CommandType(
        f"operation code {opcode:02X}h",
        opcode,
        length,
        MappingProxyType(fields),
        route=Route.MEDIA,
        flags=Flag.SKIPS_ATTENTION if skips else Flag.NONE,
    )
