"""POPULATE TOKEN, WRITE USING TOKEN, and what is told of them (SBC-5 5.12, 5.25, 5.59)."""

from __future__ import annotations

from collections.abc import Awaitable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from vscsi_emu import _dataplane
from vscsi_emu.scsi import tokens
from vscsi_emu.scsi.cdb import Allowed, Field, Flag, command
from vscsi_emu.scsi.copy_operations import Operation, State
from vscsi_emu.scsi.nexus import Nexus
from vscsi_emu.scsi.request import Request
from vscsi_emu.scsi.sense import (
    Asc,
    ScsiError,
    SenseKey,
    invalid_field_in_cdb,
    invalid_field_in_parameter_list,
)
from vscsi_emu.scsi.token_lists import WriteList, parse_populate, parse_write
from vscsi_emu.scsi.tokens import Range, Token
from vscsi_emu.scsi.unit import LogicalUnit
from vscsi_emu.scsi.vpd import unit_designators

_POPULATE_TOKEN: Final = 0x10
_WRITE_USING_TOKEN: Final = 0x11
_LIST_IDENTIFIER: Final = Field(6, 4)
_PARAMETER_LIST_LENGTH: Final = Field(10, 4)
_GROUP_NUMBER: Final = Field(14, high=5, ignored=True)


@command(
    "POPULATE TOKEN",
    0x83,
    16,
    service_action=_POPULATE_TOKEN,
    flags=Flag.NEEDS_READY,
    allowed=Allowed.WRITE_EXCLUSIVE,
    list_identifier=_LIST_IDENTIFIER,
    parameter_list_length=_PARAMETER_LIST_LENGTH,
    group_number=_GROUP_NUMBER,
)
def populate_token(request: Request) -> bytes | Awaitable[bytes]:
    data = request.parameter_list()
    if not data:
        return b""
    _check_identifier(request)
    unit = request.unit
    wanted = parse_populate(data, unit.block_size, unit.blocks)
    operation = _begin(request, _POPULATE_TOKEN, immed=wanted.immed)
    return _populate(unit, wanted.ranges, wanted.timeout, operation)


async def _populate(
    unit: LogicalUnit, ranges: Sequence[Range], timeout: int, operation: Operation
) -> bytes:
    """No block is read: that is for whoever uses the token."""
    token = unit.tokens.make(unit, ranges, timeout, unit_designators(unit)[0])
    try:
        # A write that was under way before it was watched for may have changed a block since.
        await unit.quiesce()
    except BaseException:
        operation.end(State.FAILED, ScsiError(SenseKey.ABORTED_COMMAND, Asc.NO_ADDITIONAL_SENSE))
        raise
    blocks = sum(extent.blocks for extent in ranges)
    operation.token = token.raw
    operation.transferred = lambda: blocks
    operation.end(State.COMPLETED)
    return b""


@command(
    "WRITE USING TOKEN",
    0x83,
    16,
    service_action=_WRITE_USING_TOKEN,
    flags=Flag.NEEDS_READY,
    list_identifier=_LIST_IDENTIFIER,
    parameter_list_length=_PARAMETER_LIST_LENGTH,
    group_number=_GROUP_NUMBER,
)
def write_using_token(request: Request) -> bytes | Awaitable[bytes]:
    data = request.parameter_list()
    if not data:
        return b""
    _check_identifier(request)
    unit = request.unit
    wanted = parse_write(data, unit.block_size, unit.blocks)
    if unit.write_protected:
        raise ScsiError(SenseKey.DATA_PROTECT, Asc.WRITE_PROTECTED)
    if tokens.is_zero(wanted.token):
        work = _work(unit, None, [(0, to, length) for to, length in _bytes(unit, wanted.ranges)])
        operation = _begin(request, _WRITE_USING_TOKEN, immed=wanted.immed)
        return _write(request.nexus, work, operation, asked=sum(e.blocks for e in wanted.ranges))
    token = unit.tokens.find(wanted.token)
    if token.unit.unready is not None:
        raise ScsiError(SenseKey.COPY_ABORTED, Asc.COPY_TARGET_DEVICE_NOT_REACHABLE)
    if wanted.offset * unit.block_size >= token.size:
        raise invalid_field_in_parameter_list(8)
    operation = _begin(request, _WRITE_USING_TOKEN, immed=wanted.immed)
    return _write_from(request.nexus, token, wanted, operation)


async def _write_from(nexus: Nexus, token: Token, wanted: WriteList, operation: Operation) -> bytes:
    """As much as the token stands for, in whole blocks."""
    unit = nexus.unit
    asked = sum(extent.blocks for extent in wanted.ranges)
    left = token.size - wanted.offset * unit.block_size
    length = min(asked, left // unit.block_size) * unit.block_size
    source = _cut(_bytes(token.unit, token.ranges), wanted.offset * unit.block_size, length)
    target = _cut(_bytes(unit, wanted.ranges), 0, length)
    work = _work(unit, token, list(_meet(source, target)))
    unit.tokens.use(token)
    try:
        return await _write(nexus, work, operation, asked=asked, source=token.unit)
    finally:
        unit.tokens.release(token, delete=wanted.delete)


_FAILURES: Final[Mapping[int, State]] = MappingProxyType(
    {
        Asc.COPY_TARGET_DEVICE_DATA_UNDERRUN: State.PARTIAL,
        Asc.COMMANDS_CLEARED_BY_DEVICE_SERVER: State.TERMINATED,
    }
)


async def _write(
    nexus: Nexus,
    work: _dataplane.Copy,
    operation: Operation,
    *,
    asked: int,
    source: LogicalUnit | None = None,
) -> bytes:
    """What goes wrong in the background is told by RECEIVE ROD TOKEN INFORMATION only."""
    background, unit = operation.state is State.IN_BACKGROUND, nexus.unit
    operation.transferred = lambda: work.copied // unit.block_size
    try:
        try:
            with operation.run.working(work):
                await unit.copy(work, source, by=nexus)
        except _dataplane.SourceChangedError:
            raise tokens.changed() from None
        moved = operation.transferred()
        if moved < asked:
            key = SenseKey.COPY_ABORTED if moved else SenseKey.ILLEGAL_REQUEST
            raise ScsiError(key, Asc.COPY_TARGET_DEVICE_DATA_UNDERRUN, information=moved)
    except ScsiError as error:
        operation.end(_FAILURES.get(error.code, State.FAILED), error)
        if not background:
            raise
    except BaseException:
        operation.end(State.FAILED, ScsiError(SenseKey.ABORTED_COMMAND, Asc.NO_ADDITIONAL_SENSE))
        raise
    else:
        operation.end(State.COMPLETED)
    return b""


def _check_identifier(request: Request) -> None:
    if request.cdb["list_identifier"] in request.nexus.running_copies():
        raise ScsiError(SenseKey.ILLEGAL_REQUEST, Asc.OPERATION_IN_PROGRESS)


def _begin(request: Request, service_action: int, *, immed: bool) -> Operation:
    state = State.IN_BACKGROUND if immed else State.IN_FOREGROUND
    operation = Operation(service_action, state)
    request.nexus.operations.start(request.cdb["list_identifier"], operation)
    if immed:
        request.reply.good()
    return operation


def _work(
    unit: LogicalUnit, token: Token | None, runs: list[tuple[int, int, int]]
) -> _dataplane.Copy:
    return _dataplane.Copy(
        unit.data_plane,
        token.unit.data_plane if token else None,
        runs,
        durable=not unit.mode_pages.write_cache,
        unless=token.watch if token else None,
    )


_Piece = tuple[int, int]
"""Offset and length in bytes."""


def _bytes(unit: LogicalUnit, ranges: Sequence[Range]) -> Iterator[_Piece]:
    for extent in ranges:
        yield extent.lba * unit.block_size, extent.blocks * unit.block_size


def _cut(pieces: Iterator[_Piece], skip: int, length: int) -> Iterator[_Piece]:
    """`length` bytes behind the first `skip` of them."""
    for offset, size in pieces:
        taken = min(max(size - skip, 0), length)
        if taken:
            yield offset + skip, taken
        skip, length = max(skip - size, 0), length - taken


def _meet(source: Iterator[_Piece], target: Iterator[_Piece]) -> Iterator[tuple[int, int, int]]:
    """(source offset, target offset, length): both sides are of one length, cut differently."""
    here, size = next(source, (0, 0))
    for there, room in target:
        while room:
            if not size:
                here, size = next(source)
            length = min(size, room)
            yield here, there, length
            here, size = here + length, size - length
            there, room = there + length, room - length


# ── What is told of them ───────────────────────────────────────────────────────────────────────


@command(
    "RECEIVE COPY STATUS(LID4)",
    0x84,
    16,
    service_action=0x05,
    allowed=Allowed.PERSISTENT,
    list_identifier=Field(2, 4),
    allocation_length=Field(10, 4),
)
def receive_copy_status(request: Request) -> bytes:
    return _with_length(_report(request))


@command(
    "RECEIVE ROD TOKEN INFORMATION",
    0x84,
    16,
    service_action=0x07,
    allowed=Allowed.PERSISTENT,
    list_identifier=Field(2, 4),
    allocation_length=Field(10, 4),
)
def receive_rod_token_information(request: Request) -> bytes:
    """A token may be asked for again, until a new operation takes its place."""
    operation = request.nexus.operations.find(request.cdb["list_identifier"])
    token = operation.token if operation is not None else None
    descriptor = bytes(2) + token if token is not None else b""
    return _with_length(_report(request) + len(descriptor).to_bytes(4) + descriptor)


def _report(request: Request) -> bytes:
    operation = request.nexus.operations.find(request.cdb["list_identifier"])
    if operation is None:
        raise invalid_field_in_cdb(2)
    return operation.report(descriptor=request.unit.descriptor_sense)


def _with_length(body: bytes) -> bytes:
    return len(body).to_bytes(4) + body
