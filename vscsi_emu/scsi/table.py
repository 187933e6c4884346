"""The CDB table: what a logical unit supports, found by operation code and service action."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Final

from vscsi_emu.scsi.cdb import (
    SERVICE_ACTION_MASK,
    SERVICE_ACTION_OPCODES,
    CommandType,
    Feature,
    Flag,
)
from vscsi_emu.scsi.sense import Asc, ScsiError, SenseKey, invalid_field_in_cdb


class CommandTable:
    """The commands of one kind of logical unit."""

    def __init__(self, commands: Iterator[CommandType]) -> None:
        self._commands: Final[Mapping[tuple[int, int | None], CommandType]] = {
            (entry.opcode, entry.service_action): entry for entry in commands
        }
        self._opcodes = frozenset(opcode for opcode, _ in self._commands)

    def __iter__(self) -> Iterator[CommandType]:
        """In the order of operation code and service action."""
        return iter(
            sorted(self._commands.values(), key=lambda c: (c.opcode, c.service_action or 0))
        )

    def supports_opcode(self, opcode: int) -> bool:
        """With any service action."""
        return opcode in self._opcodes

    def get(self, opcode: int, service_action: int | None) -> CommandType | None:
        return self._commands.get((opcode, service_action))

    def find(self, cdb: bytes) -> CommandType:
        """The command that a CDB names. `ScsiError` 20/00 or, for a service action, 24/00."""
        opcode = cdb[0] if cdb else 0
        if opcode not in self._opcodes:
            raise ScsiError(SenseKey.ILLEGAL_REQUEST, Asc.INVALID_COMMAND_OPERATION_CODE, field=0)
        found = self._commands.get((opcode, _service_action(cdb)))
        if found is None:
            raise invalid_field_in_cdb(1, SERVICE_ACTION_MASK.bit_length() - 1)
        return found

    @property
    def routes(self) -> bytes:
        """256 ``ROUTE_*`` values by operation code."""
        routes = bytearray(256)
        for entry in self._commands.values():
            routes[entry.opcode] = entry.route
        return bytes(routes)

    @property
    def usage_maps(self) -> dict[int, bytes]:
        """What the data plane accepts in the CDBs that it executes, by operation code."""
        return {c.opcode: c.fast for c in self._commands.values() if c.route}


def _service_action(cdb: bytes) -> int | None:
    if not cdb or cdb[0] not in SERVICE_ACTION_OPCODES:
        return None
    return cdb[1] & SERVICE_ACTION_MASK if len(cdb) > 1 else 0


@cache
def command_table(features: Feature) -> CommandTable:
    """What a direct access block device with `features` supports."""
    # The handlers themselves report from the table.
    from vscsi_emu.scsi.commands import ALL

    supported = (entry.for_features(features) for entry in ALL)
    return CommandTable(entry for entry in supported if entry is not None)


def route_table(features: Feature = Feature.NONE) -> bytes:
    """256 ``ROUTE_*`` values, as `_dataplane.Lu` takes them."""
    return command_table(features).routes


@cache
def well_known_table() -> CommandTable:
    """What the REPORT LUNS well known logical unit supports (SPC-6)."""
    return _flagged(Flag.WELL_KNOWN)


@cache
def absent_table() -> CommandTable:
    """What is answered for a LUN that no logical unit has (SAM-6)."""
    return _flagged(Flag.ANY_LUN)


def _flagged(flag: Flag) -> CommandTable:
    return CommandTable(entry for entry in command_table(Feature.NONE) if flag in entry.flags)
