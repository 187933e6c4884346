"""The CDB table: what a logical unit supports, found by operation code and service action."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from importlib.metadata import entry_points
from typing import Final

from vscsi_emu.scsi.cdb import (
    SERVICE_ACTION_OPCODES,
    VARIABLE_LENGTH,
    CommandType,
    Feature,
    Flag,
    service_action_field,
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
            action = service_action_field(opcode)
            raise invalid_field_in_cdb(action.byte, action.high)
        return found

    @property
    def routes(self) -> bytes:
        """256 ``ROUTE_*`` values by operation code."""
        routes = bytearray(256)
        for entry in self._commands.values():
            if entry.opcode != VARIABLE_LENGTH:
                routes[entry.opcode] = entry.route
        return bytes(routes)

    @property
    def usage_maps(self) -> dict[int, bytes]:
        """What the data plane accepts in the CDBs that it executes, by operation code."""
        return {
            c.opcode: c.fast
            for c in self._commands.values()
            if c.route and c.opcode != VARIABLE_LENGTH
        }

    @property
    def variable_length(self) -> list[tuple[int, int, bytes]]:
        """The same of variable-length CDBs: service action, route and what the data plane
        accepts."""
        return [
            (action, entry.route, entry.fast)
            for (opcode, action), entry in self._commands.items()
            if opcode == VARIABLE_LENGTH and action is not None
        ]


def _service_action(cdb: bytes) -> int | None:
    if not cdb or cdb[0] not in SERVICE_ACTION_OPCODES:
        return None
    return service_action_field(cdb[0]).extract(cdb)


# ── Commands from outside ──────────────────────────────────────────────────────────────────────

GROUP: Final = "vscsi_emu.commands"
"""Entry points of other packages, each a `CommandType` that disks have besides ours."""

_added: Final[list[CommandType]] = []


def add_command(entry: CommandType) -> Callable[[], None]:
    """Gives all disks that are opened from now on a command more; call what is returned to take it
    back. `ValueError` for one that cannot be."""
    _check(entry, [*_ours(), *_installed(), *_added])
    _added.append(entry)
    _forget_tables()

    def remove() -> None:
        _added.remove(entry)
        _forget_tables()

    return remove


def _check(entry: CommandType, others: Iterable[CommandType]) -> None:
    if entry.handler is None:
        raise ValueError(f"{entry.name} has no handler: the data plane knows its own commands only")
    if (entry.opcode in SERVICE_ACTION_OPCODES) != (entry.service_action is not None):
        raise ValueError(
            f"{entry.name}: operation code {entry.opcode:#04x} "
            f"{'needs a' if entry.service_action is None else 'has no'} service action"
        )
    for other in others:
        if (other.opcode, other.service_action) == (entry.opcode, entry.service_action):
            raise ValueError(f"{entry.name} has the operation code of {other.name}")


def _forget_tables() -> None:
    for table in (command_table, well_known_table, absent_table):
        table.cache_clear()


def _ours() -> tuple[CommandType, ...]:
    # The handlers themselves report from the table.
    from vscsi_emu.scsi.commands import ALL

    return ALL


@cache
def _installed() -> tuple[CommandType, ...]:
    """A package whose command cannot be is an error of the installation: `ValueError`."""
    found: list[CommandType] = []
    for point in entry_points(group=GROUP):
        entry = point.load()
        if not isinstance(entry, CommandType):
            raise TypeError(f"entry point {GROUP}:{point.name} is no CommandType")
        _check(entry, [*_ours(), *found])
        found.append(entry)
    return tuple(found)


# ── Tables ─────────────────────────────────────────────────────────────────────────────────────


@cache
def command_table(features: Feature) -> CommandTable:
    """What a direct access block device with `features` supports."""
    supported = (entry.for_features(features) for entry in [*_ours(), *_installed(), *_added])
    return CommandTable(entry for entry in supported if entry is not None)


def device_table(features: Feature, own: Iterable[CommandType]) -> CommandTable:
    """What a device of another kind supports: its `own` commands, and those of SPC that devices of
    any type here have, where it has none in their place."""
    from vscsi_emu.scsi.commands import PRIMARY

    # Later ones take the place of earlier ones.
    supported = (entry.for_features(features) for entry in [*PRIMARY, *own])
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
