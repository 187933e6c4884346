"""CDBs and sense data as text, by the names of the CDB table."""

from __future__ import annotations

from functools import cache

from vscsi_emu.scsi.cdb import VARIABLE_LENGTH, Cdb, CommandType, Feature
from vscsi_emu.scsi.sense import Asc, ScsiError, SenseKey
from vscsi_emu.scsi.table import CommandTable, command_table

_GROUP_LENGTHS = (6, 10, 10, 0, 16, 12, 10, 10)
"""CDB lengths by the GROUP CODE, bits 7 to 5 of an operation code (SPC-4 4.2.5.1); 0: see there."""


@cache
def _table() -> CommandTable:
    return command_table(~Feature.NONE)


def find(cdb: bytes) -> CommandType | None:
    """The command that a CDB names, of those that some unit supports."""
    try:
        return _table().find(cdb)
    except ScsiError:
        return None


def opcode(name: str) -> int | None:
    """The `CommandType.code` of a command: READ(10), read10; or a number, an OPERATION CODE."""
    wanted = _plain(name)
    for command in _table():
        if _plain(command.name) == wanted:
            return command.code
    try:
        number = int(name, 0)
    except ValueError:
        return None
    return number if 0 <= number <= 0xFF else None


def opcodes(name: str) -> set[int]:
    """As `opcode`, and of all sizes where the name has none: read is READ(6) to READ(32)."""
    one = opcode(name)
    if one is not None:
        return {one}
    wanted = _plain(name)
    return {c.code for c in _table() if _plain(c.name.partition("(")[0]) == wanted}


def _plain(name: str) -> str:
    return "".join(char for char in name.lower() if char.isalnum())


def cdb_length(cdb: bytes) -> int:
    """Bytes of the command in a CDB that may have padding behind it."""
    command = find(cdb)
    if command is not None:
        return command.length
    if cdb[0] == VARIABLE_LENGTH:
        return min(8 + cdb[7], len(cdb))
    return _GROUP_LENGTHS[cdb[0] >> 5] or 16


def describe_cdb(cdb: bytes) -> str:
    """The command with its fields; those that are 0 are left out, but for LBA and length."""
    command = find(cdb)
    if command is None:
        return cdb[: cdb_length(cdb)].hex(" ")
    fields = Cdb(command, cdb[: command.length].ljust(command.length, b"\0"))
    shown = [
        f"{name}={fields[name]}"
        for name, field in command.fields.items()
        if name in ("lba", "blocks") or (not field.ignored and fields[name])
    ]
    return " ".join([command.name, *shown])


def describe_sense(sense: bytes) -> str:
    """Sense key, additional sense code and what else people look for (SPC-4 4.5)."""
    if len(sense) < 4:
        return sense.hex(" ")
    if sense[0] & 0x7F in (0x72, 0x73):
        key, code = sense[1] & 0xF, int.from_bytes(sense[2:4])
    elif len(sense) >= 14:
        key, code = sense[2] & 0xF, int.from_bytes(sense[12:14])
    else:
        return sense.hex(" ")
    deferred = "deferred " if sense[0] & 1 else ""
    key_name = SenseKey(key).name if key in list(SenseKey) else f"{key:#x}"
    name = f" {Asc(code).name}" if code in list(Asc) else ""
    return f"{deferred}{key_name} {code >> 8:02X}/{code & 0xFF:02X}{name}"
