"""CDBs made from our own table: every command and service action, every field at its edges."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator, Mapping
from typing import Final

from tests.conformance.differential.cdbs.asking import Question
from tests.conformance.differential.cdbs.medium import BLOCK, BLOCKS, contents
from vscsi_emu.scsi.cdb import (
    SERVICE_ACTION_OPCODES,
    VARIABLE_LENGTH,
    CommandType,
    Feature,
    Field,
    Route,
)
from vscsi_emu.scsi.limits import Limits
from vscsi_emu.scsi.table import command_table

FEATURES: Final = Feature.THIN | Feature.COMPARE_AND_WRITE | Feature.ATOMIC_WRITES | Feature.CDB_32
"""Of the disk that we ask: thin, fixed."""
LIMITS: Final = Limits.default(BLOCK)
MOST_DATA: Final = 256 * BLOCK
"""Bytes that a question may move: what Linux's sg passes on in one piece."""
ROOM: Final = 4096
"""Bytes of data-in at most where ALLOCATION LENGTH asks for more."""
COMBINATIONS: Final = 24
"""Of several fields, for each command."""

# A service action or operation code of these would run for minutes, or is another disk's private
# matter: microcode, vendor specific codes.
_NOT_ASKED: Final = frozenset({0x3B, *range(0xC0, 0x100)})


def questions(seed: int) -> Iterator[Question]:
    """All of them, each under a name of its own; `seed` chooses the combinations."""
    table = command_table(FEATURES)
    seen: set[tuple[bytes, bytes]] = set()
    for command in table:
        for name, cdb in _cdbs(command, random.Random(f"{seed} {command.name}")):
            question = _question(command, name, cdb)
            if question is not None and (question.cdb, question.data_out) not in seen:
                seen.add((question.cdb, question.data_out))
                yield question
    for opcode in range(256):
        if opcode in _NOT_ASKED:
            continue
        if not table.supports_opcode(opcode):
            yield Question(f"opcode {opcode:02X}h", _unknown(opcode, 0), b"", 0, False)
        elif opcode in SERVICE_ACTION_OPCODES:
            for action in range(32):
                if table.get(opcode, action) is None:
                    name = f"opcode {opcode:02X}h, service action {action:02X}h"
                    yield Question(name, _unknown(opcode, action), b"", 0, False)


# ── CDBs ───────────────────────────────────────────────────────────────────────────────────────


def _cdbs(command: CommandType, chance: random.Random) -> Iterator[tuple[str, bytes]]:
    """Names and CDBs: plain, each field at each edge, some fields together, reserved bits."""
    yield command.name, _cdb(command, {})
    edges = {name: _edges(command, name, field) for name, field in command.fields.items()}
    for name, labels in edges.items():
        for label, value in labels.items():
            yield f"{command.name}, {name} {label}", _cdb(command, {name: value})
    if len(edges) > 1:
        for _ in range(COMBINATIONS):
            chosen = chance.sample(sorted(edges), chance.choice((2, 2, 3)) if len(edges) > 2 else 2)
            picked = {name: chance.choice(sorted(edges[name].items())) for name in chosen}
            words = ", ".join(f"{name} {label}" for name, (label, _) in picked.items())
            values = {name: value for name, (_, value) in picked.items()}
            yield f"{command.name}, {words}", _cdb(command, values)
    for byte, number in _reserved(command):
        cdb = bytearray(_cdb(command, {}))
        cdb[byte] ^= 1 << number
        where = "CONTROL" if byte == command.control_byte else "reserved"
        yield f"{command.name}, {where} bit {byte}.{number}", bytes(cdb)


def _cdb(command: CommandType, values: Mapping[str, int]) -> bytes:
    """The CDB with these values, the others as in a plain command."""
    cdb = bytearray(command.length)
    for name, field in command.fields.items():
        field.insert(cdb, values.get(name, _plain(command, name)))
    return command.named(bytes(cdb))


def _plain(command: CommandType, name: str) -> int:
    """A value with which a command does what it is for."""
    if name == "parameter_list_length":
        return _PLAIN_LISTS.get(command.name.split(",")[0], 32)
    return {"blocks": 1, "allocation_length": 252}.get(name, 0)


_PLAIN_LISTS: Final = {"PERSISTENT RESERVE OUT": 24, "UNMAP": 24, "SANITIZE": 5}
"""PARAMETER LIST LENGTH by what a command's name begins with."""


def _edges(command: CommandType, name: str, field: Field) -> dict[str, int]:
    """Values of a field worth asking about, by what to call them."""
    most = int.from_bytes(field.mask) >> field.low
    if most < 8:
        return {str(value): value for value in range(most + 1)}
    values = {"0": 0, "1": 1, "most": most, **_SPECIAL.get(name, {})}
    if name == "blocks" and (limit := _limit(command)):
        values |= {"limit": limit, "limit + 1": limit + 1}
    return {label: value for label, value in values.items() if value <= most}


_SPECIAL: Final[Mapping[str, Mapping[str, int]]] = {
    "lba": {"7": 7, "last": BLOCKS - 1, "capacity": BLOCKS},
    "blocks": {"2": 2, "capacity": BLOCKS, "capacity + 1": BLOCKS + 1},
    "allocation_length": {"3": 3, "4": 4, "8": 8, "15": 15, "16": 16, "96": 96},
    "parameter_list_length": {"3": 3, "4": 4, "7": 7, "8": 8, "23": 23, "24": 24},
    "page_code": {"02h": 2, "08h": 8, "0Ah": 0xA, "1Ch": 0x1C, "80h": 0x80, "83h": 0x83}
    | {"B0h": 0xB0, "B1h": 0xB1, "B2h": 0xB2},
    "requested_operation_code": {"INQUIRY": 0x12, "READ(10)": 0x28, "SERVICE ACTION IN": 0x9E},
    "requested_service_action": {"READ CAPACITY(16)": 0x10},
}
"""By field name, beside 0, 1 and the greatest."""


def _limit(command: CommandType) -> int:
    """Blocks that the Block Limits page allows it."""
    if command.name.startswith("WRITE SAME"):
        return LIMITS.max_write_same_blocks
    if command.name == "WRITE ATOMIC(16)":
        return LIMITS.max_atomic_blocks
    return LIMITS.max_transfer_blocks


def _reserved(command: CommandType) -> Iterator[tuple[int, int]]:
    """(byte, bit): the highest and the lowest reserved bit of each byte."""
    for byte, accepted in enumerate(command.accepted):
        numbers = [number for number in range(8) if not accepted >> number & 1]
        for number in {numbers[0], numbers[-1]} if numbers else ():
            yield byte, number


def _unknown(opcode: int, action: int) -> bytes:
    """A CDB of zeros as long as the operation code's group says (SPC-6, operation code)."""
    if opcode == VARIABLE_LENGTH:
        return bytes([opcode]).ljust(7, b"\0") + bytes([0x18, 0, action]) + bytes(22)
    length = {0: 6, 1: 10, 2: 10, 4: 16, 5: 12}.get(opcode >> 5, 16)
    return bytes([opcode, action]).ljust(length, b"\0")


# ── Data ───────────────────────────────────────────────────────────────────────────────────────


def _question(command: CommandType, name: str, cdb: bytes) -> Question | None:
    """With the data that the CDB asks for; None if that is more than can be moved."""
    values = {field: declared.extract(cdb) for field, declared in command.fields.items()}
    data_out, room = b"", 0
    if "allocation_length" in values:
        room = min(values["allocation_length"], ROOM)
    elif "parameter_list_length" in values:
        length = values["parameter_list_length"]
        if length > MOST_DATA:
            return None
        data_out = _parameters(command, length)
    elif "blocks" in values:
        out, into = _blocks(command, values)
        lba, count = values["lba"], values["blocks"]
        if max(out, into) > 1 and max(out, into) * BLOCK > MOST_DATA:
            if lba + count <= BLOCKS and count <= _limit(command):
                return None
            out, into = min(out, 1), min(into, 1)
        room = into * BLOCK
        data_out = _written(command, lba, out)
    elif command.name == "FORMAT UNIT" and values["fmtdata"]:
        data_out = bytes(8 if values["longlist"] else 4)
    elif command.name == "READ CAPACITY(10)":
        room = 8
    harmless = room > 0 or command.route is Route.READ or command.name in _HARMLESS
    return Question(name, cdb, data_out, room, harmless)


_HARMLESS: Final = frozenset(
    {
        "TEST UNIT READY",
        *("VERIFY(10)", "VERIFY(12)", "VERIFY(16)", "VERIFY(32)"),
        *("PRE-FETCH(10)", "PRE-FETCH(16)"),
    }
)


def _parameters(command: CommandType, length: int) -> bytes:
    """A parameter list of so many bytes: the start of one that is right, then zeros."""
    right = b""
    if command.name == "UNMAP" and length >= 8:
        # One that disagrees with its own lengths, scsi_debug answers with a panic of the kernel.
        header = struct.pack(">HHxxxx", length - 2, (length - 8) // 16 * 16)
        right = header + struct.pack(">QI4x", 8, 8)
    elif command.name == "SANITIZE, OVERWRITE":
        right = struct.pack(">BxHB", 1, 1, 0x5A)
    return right[:length].ljust(length, b"\0")


def _blocks(command: CommandType, values: Mapping[str, int]) -> tuple[int, int]:
    """Blocks of data-out and data-in."""
    count = values["blocks"]
    if command.length == 6 and not count:
        count = 256
    if command.route is Route.READ:
        return 0, count
    if command.name.startswith("WRITE SAME"):
        return (0 if values.get("ndob") else 1), 0
    if command.name.startswith("VERIFY"):
        return (0, count, 1, 1)[values["bytchk"]], 0
    if command.name == "COMPARE AND WRITE":
        return 2 * count, 0
    return (count if command.route is Route.WRITE else 0), 0


def _written(command: CommandType, lba: int, blocks: int) -> bytes:
    """What a command is given that writes or compares at `lba`; comparisons find it there."""
    if command.name.startswith("VERIFY"):
        return contents(lba, blocks)
    if command.name == "COMPARE AND WRITE":
        return contents(lba, blocks // 2) + _new(blocks // 2)
    return _new(blocks)


def _new(blocks: int) -> bytes:
    return bytes(range(1, 129)) * 4 * blocks
