"""A logical unit on memory, a target, and a command that records its one answer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

from vscsi_emu import _dataplane
from vscsi_emu.scsi import Asc, Identity, Limits, LogicalUnit, SenseKey, Status, Target, handle
from vscsi_emu.scsi.cdb import CommandType
from vscsi_emu.scsi.store import StateStore

BLOCKS: Final = 2048
UNIT_NAA: Final = bytes.fromhex("3000000000000001")
PORT_NAA: Final = bytes.fromhex("3000000000000002")
IDENTITY: Final = Identity("SERIAL-1", UNIT_NAA, vendor="ACME", product="Rocket disk")


async def _nothing(*_: object) -> None:
    pass


def make_unit(
    *,
    size: int | None = None,
    block_size: int = 512,
    discard: bool = True,
    lbprz: bool = False,
    cdb_32: bool = False,
    removable: bool = False,
    read_only: bool = False,
    write_cache: bool = True,
    rotation_rate: int = 1,
    physical_block_exponent: int = 0,
    limits: Limits | None = None,
    flush: Callable[[], Awaitable[None]] = _nothing,
    quiesce: Callable[[_dataplane.Lu], Awaitable[None]] = _nothing,
    store: StateStore | None = None,
) -> LogicalUnit:
    """A logical unit on memory, or on no memory at all beyond what one could have."""
    size = size or BLOCKS * block_size
    engine = _dataplane.Engine.memory(size) if size < 1 << 30 else _dataplane.Engine.null(size)
    return LogicalUnit(
        engine,
        IDENTITY,
        block_size=block_size,
        discard=discard,
        lbprz=lbprz,
        cdb_32=cdb_32,
        removable=removable,
        read_only=read_only,
        write_cache=write_cache,
        rotation_rate=rotation_rate,
        physical_block_exponent=physical_block_exponent,
        limits=limits,
        flush=flush,
        quiesce=quiesce,
        store=store,
    )


def make_target(unit: LogicalUnit, lun: int = 0, *, number: int = 0) -> Target:
    """A target whose power-on unit attention has been reported; of HBA `number`, 0 to 15. That
    there is another one, those before it know."""
    target = new_target(unit, lun, number=number)
    assert target.nexuses[lun].take() is not None
    for nexus in unit.nexuses:
        nexus.clear(Asc.INQUIRY_DATA_HAS_CHANGED)
    return target


def new_target(unit: LogicalUnit, lun: int = 0, *, number: int = 0) -> Target:
    return Target(
        {lun: unit},
        naa=PORT_NAA[:6] + bytes([number]) + PORT_NAA[7:],
        initiator=initiator_naa(number),
        relative_port=number + 1,
        port_group=number + 1,
    )


def initiator_naa(number: int) -> bytes:
    return bytes.fromhex("31000000000000") + bytes([number])


@dataclass
class Recorder:
    """A `Command` that checks that it is answered once."""

    cdb: bytes
    data_out: bytes = b""
    status: int | None = None
    data_in: bytes = b""
    sense: bytes = b""
    executed: bool = False
    response: int = 0
    answers: int = field(default=0)

    def finish(self, status: int, *, data_in: bytes = b"", sense: bytes = b"") -> None:
        self.status, self.data_in, self.sense = status, data_in, sense
        self.answers += 1
        assert self.answers == 1

    def fail(self, response: int) -> None:
        self.response = response
        self.answers += 1
        assert self.answers == 1

    def execute(self) -> None:
        self.executed = True
        self.answers += 1
        assert self.answers == 1


def send(
    target: Target, cdb: str | bytes, *, lun: int | None = 0, data_out: bytes = b""
) -> Recorder:
    """Sends a CDB (hex, or bytes; zero-padded to 32 bytes) and waits for its answer."""
    raw = bytes.fromhex(cdb) if isinstance(cdb, str) else cdb
    command = Recorder(raw.ljust(32, b"\0"), data_out)
    later = handle(command, target, lun)
    if later is not None:
        asyncio.run(_finish(later))
    assert command.answers == 1
    return command


async def _finish(later: Awaitable[None]) -> None:
    await asyncio.wait_for(later, 10)


def cdb_of(command: CommandType, **values: int) -> bytes:
    """A CDB with these fields, the rest 0."""
    cdb = bytearray(command.length)
    for name, value in values.items():
        command.fields[name].insert(cdb, value)
    return command.named(bytes(cdb))


def good(target: Target, cdb: str | bytes, *, lun: int | None = 0, data_out: bytes = b"") -> bytes:
    """Data-in of a command that must end with GOOD."""
    command = send(target, cdb, lun=lun, data_out=data_out)
    assert command.status == Status.GOOD, command.sense.hex()
    return command.data_in


@dataclass(frozen=True)
class Sense:
    """Fixed format sense data, read back."""

    key: int
    code: int
    pointer: tuple[int, int | None] | None = None
    """(byte, bit) of the field pointer."""
    in_cdb: bool = True
    deferred: bool = False


def parse_fixed(data: bytes) -> Sense:
    """By SPC-6, independent of what builds it."""
    assert len(data) == 18
    assert data[0] & 0x7E == 0x70
    assert data[7] == 10
    pointer = None
    in_cdb = True
    if data[15] & 0x80:
        pointer = (int.from_bytes(data[16:18]), data[15] & 7 if data[15] & 0x08 else None)
        in_cdb = bool(data[15] & 0x40)
    return Sense(data[2] & 0xF, data[12] << 8 | data[13], pointer, in_cdb, bool(data[0] & 1))


def refused(
    target: Target, cdb: str | bytes, *, lun: int | None = 0, data_out: bytes = b""
) -> Sense:
    """Sense data of a command that must end with CHECK CONDITION."""
    command = send(target, cdb, lun=lun, data_out=data_out)
    assert command.status == Status.CHECK_CONDITION, command.data_in.hex()
    assert not command.data_in
    return parse_fixed(command.sense)


def bad_cdb(byte: int, bit: int | None) -> Sense:
    """INVALID FIELD IN CDB there."""
    return Sense(SenseKey.ILLEGAL_REQUEST, Asc.INVALID_FIELD_IN_CDB, (byte, bit))


def bad_list(byte: int, bit: int | None = None) -> Sense:
    """INVALID FIELD IN PARAMETER LIST there."""
    return Sense(
        SenseKey.ILLEGAL_REQUEST, Asc.INVALID_FIELD_IN_PARAMETER_LIST, (byte, bit), in_cdb=False
    )


def attention(code: Asc) -> Sense:
    return Sense(SenseKey.UNIT_ATTENTION, code)


NOT_READY: Final = Sense(SenseKey.NOT_READY, Asc.INITIALIZING_COMMAND_REQUIRED)
NO_UNIT: Final = Sense(SenseKey.ILLEGAL_REQUEST, Asc.LOGICAL_UNIT_NOT_SUPPORTED)
