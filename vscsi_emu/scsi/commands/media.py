"""SBC-5 commands on the medium: declared here, executed by the data plane."""

from collections.abc import Awaitable
from typing import Final

from vscsi_emu.scsi.cdb import (
    VARIABLE_LENGTH,
    Allowed,
    CommandType,
    Feature,
    Field,
    Route,
    bit,
    media_command,
)
from vscsi_emu.scsi.request import Request
from vscsi_emu.scsi.sense import Asc, ScsiError, SenseKey

_DPO = bit(1, 4)
_FUA = bit(1, 3)
_IMMED = bit(1, 1)
_BYTCHK = Field(1, high=2, low=1)
_SYNC_NV = Field(1, high=2, low=2, ignored=True)
"""Obsolete, and still sent: a cache that keeps its contents without power is none to us."""
_LBA_6 = Field(1, 3, high=4)
_LBA_10 = Field(2, 4)
_LBA_16 = Field(2, 8)
_BLOCKS_6 = Field(4)
_BLOCKS_10 = Field(7, 2)
_BLOCKS_12 = Field(6, 4)
_BLOCKS_16 = Field(10, 4)

_DPO_32 = bit(10, 4)
_FUA_32 = bit(10, 3)
_BYTCHK_32 = Field(10, high=2, low=1)


def _command_32(
    name: str, action: int, route: Route, *, allowed: Allowed = Allowed.NONE, **flags: Field
) -> CommandType:
    """With a variable-length CDB. What it expects of protection information is ignored: no block
    has any, RDPROTECT and its like must be 0, and with them nothing is checked."""
    return media_command(
        name,
        VARIABLE_LENGTH,
        32,
        route,
        service_action=action,
        needs=Feature.CDB_32,
        allowed=allowed,
        handler=None,
        **flags,
        lba=Field(12, 8),
        reference_tag=Field(20, 4, ignored=True),
        application_tag=Field(24, 2, ignored=True),
        application_tag_mask=Field(26, 2, ignored=True),
        blocks=Field(28, 4),
    )


READ_6 = media_command("READ(6)", 0x08, 6, Route.READ, lba=_LBA_6, blocks=_BLOCKS_6)
READ_10 = media_command(
    "READ(10)", 0x28, 10, Route.READ, dpo=_DPO, fua=_FUA, lba=_LBA_10, blocks=_BLOCKS_10
)
READ_12 = media_command(
    "READ(12)", 0xA8, 12, Route.READ, dpo=_DPO, fua=_FUA, lba=_LBA_10, blocks=_BLOCKS_12
)
READ_16 = media_command(
    "READ(16)", 0x88, 16, Route.READ, dpo=_DPO, fua=_FUA, lba=_LBA_16, blocks=_BLOCKS_16
)
READ_32 = _command_32("READ(32)", 0x09, Route.READ, dpo=_DPO_32, fua=_FUA_32)

WRITE_6 = media_command("WRITE(6)", 0x0A, 6, Route.WRITE, lba=_LBA_6, blocks=_BLOCKS_6)
WRITE_10 = media_command(
    "WRITE(10)", 0x2A, 10, Route.WRITE, dpo=_DPO, fua=_FUA, lba=_LBA_10, blocks=_BLOCKS_10
)
WRITE_12 = media_command(
    "WRITE(12)", 0xAA, 12, Route.WRITE, dpo=_DPO, fua=_FUA, lba=_LBA_10, blocks=_BLOCKS_12
)
WRITE_16 = media_command(
    "WRITE(16)", 0x8A, 16, Route.WRITE, dpo=_DPO, fua=_FUA, lba=_LBA_16, blocks=_BLOCKS_16
)
WRITE_32 = _command_32("WRITE(32)", 0x0B, Route.WRITE, dpo=_DPO_32, fua=_FUA_32)

WRITE_AND_VERIFY_10 = media_command(
    "WRITE AND VERIFY(10)",
    0x2E,
    10,
    Route.WRITE,
    dpo=_DPO,
    bytchk=_BYTCHK,
    lba=_LBA_10,
    blocks=_BLOCKS_10,
)
WRITE_AND_VERIFY_12 = media_command(
    "WRITE AND VERIFY(12)",
    0xAE,
    12,
    Route.WRITE,
    dpo=_DPO,
    bytchk=_BYTCHK,
    lba=_LBA_10,
    blocks=_BLOCKS_12,
)
WRITE_AND_VERIFY_16 = media_command(
    "WRITE AND VERIFY(16)",
    0x8E,
    16,
    Route.WRITE,
    dpo=_DPO,
    bytchk=_BYTCHK,
    lba=_LBA_16,
    blocks=_BLOCKS_16,
)
WRITE_AND_VERIFY_32 = _command_32(
    "WRITE AND VERIFY(32)", 0x0C, Route.WRITE, dpo=_DPO_32, bytchk=_BYTCHK_32
)

VERIFY_10 = media_command(
    "VERIFY(10)",
    0x2F,
    10,
    Route.MEDIA,
    allowed=Allowed.WRITE_EXCLUSIVE,
    dpo=_DPO,
    bytchk=_BYTCHK,
    lba=_LBA_10,
    blocks=_BLOCKS_10,
)
VERIFY_12 = media_command(
    "VERIFY(12)",
    0xAF,
    12,
    Route.MEDIA,
    allowed=Allowed.WRITE_EXCLUSIVE,
    dpo=_DPO,
    bytchk=_BYTCHK,
    lba=_LBA_10,
    blocks=_BLOCKS_12,
)
VERIFY_16 = media_command(
    "VERIFY(16)",
    0x8F,
    16,
    Route.MEDIA,
    allowed=Allowed.WRITE_EXCLUSIVE,
    dpo=_DPO,
    bytchk=_BYTCHK,
    lba=_LBA_16,
    blocks=_BLOCKS_16,
)
VERIFY_32 = _command_32(
    "VERIFY(32)", 0x0A, Route.MEDIA, allowed=Allowed.WRITE_EXCLUSIVE, dpo=_DPO_32, bytchk=_BYTCHK_32
)

_IMMED_SYNC: Final = Field(1, high=1, low=1, slow=True)


def _synchronize_cache(request: Request) -> bytes | Awaitable[bytes]:
    """With IMMED the status comes first, and a failure is a deferred error (SBC-5)."""
    unit, cdb = request.unit, request.cdb
    unit.wake()
    if not cdb["immed"]:
        request.reply.execute()
        return b""
    if cdb["lba"] + max(cdb["blocks"], 1) > unit.blocks:
        raise ScsiError(SenseKey.ILLEGAL_REQUEST, Asc.LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE, field=2)
    request.reply.good()
    return _flush(request)


async def _flush(request: Request) -> bytes:
    await request.unit.flush(by=request.nexus)
    return b""


SYNCHRONIZE_CACHE_10 = media_command(
    "SYNCHRONIZE CACHE(10)",
    0x35,
    10,
    Route.MEDIA,
    handler=_synchronize_cache,
    immed=_IMMED_SYNC,
    sync_nv=_SYNC_NV,
    lba=_LBA_10,
    blocks=_BLOCKS_10,
)
SYNCHRONIZE_CACHE_16 = media_command(
    "SYNCHRONIZE CACHE(16)",
    0x91,
    16,
    Route.MEDIA,
    handler=_synchronize_cache,
    immed=_IMMED_SYNC,
    sync_nv=_SYNC_NV,
    lba=_LBA_16,
    blocks=_BLOCKS_16,
)

WRITE_SAME_10 = media_command(
    "WRITE SAME(10)",
    0x41,
    10,
    Route.WRITE,
    unmap=bit(1, 3, needs=Feature.THIN),
    lba=_LBA_10,
    blocks=_BLOCKS_10,
)
WRITE_SAME_16 = media_command(
    "WRITE SAME(16)",
    0x93,
    16,
    Route.WRITE,
    unmap=bit(1, 3, needs=Feature.THIN),
    ndob=bit(1, 0),
    lba=_LBA_16,
    blocks=_BLOCKS_16,
)
WRITE_SAME_32 = _command_32(
    "WRITE SAME(32)", 0x0D, Route.WRITE, unmap=bit(10, 3, needs=Feature.THIN), ndob=bit(10, 0)
)
UNMAP = media_command(
    "UNMAP", 0x42, 10, Route.WRITE, needs=Feature.THIN, parameter_list_length=Field(7, 2)
)

COMPARE_AND_WRITE = media_command(
    "COMPARE AND WRITE",
    0x89,
    16,
    Route.WRITE,
    needs=Feature.COMPARE_AND_WRITE,
    dpo=_DPO,
    fua=_FUA,
    lba=_LBA_16,
    blocks=Field(13),
)
ORWRITE_16 = media_command(
    "ORWRITE(16)", 0x8B, 16, Route.WRITE, dpo=_DPO, fua=_FUA, lba=_LBA_16, blocks=_BLOCKS_16
)
WRITE_ATOMIC_16 = media_command(
    "WRITE ATOMIC(16)",
    0x9C,
    16,
    Route.WRITE,
    needs=Feature.ATOMIC_WRITES,
    dpo=_DPO,
    fua=_FUA,
    lba=_LBA_16,
    blocks=Field(12, 2),
)

# A group collects attributes of commands (SBC-4 4.22), of which PRE-FETCH has none to collect.
PRE_FETCH_10 = media_command(
    "PRE-FETCH(10)",
    0x34,
    10,
    Route.MEDIA,
    allowed=Allowed.WRITE_EXCLUSIVE,
    immed=_IMMED,
    lba=_LBA_10,
    group=Field(6, high=5, ignored=True),
    blocks=_BLOCKS_10,
)
PRE_FETCH_16 = media_command(
    "PRE-FETCH(16)",
    0x90,
    16,
    Route.MEDIA,
    allowed=Allowed.WRITE_EXCLUSIVE,
    immed=_IMMED,
    lba=_LBA_16,
    group=Field(14, high=5, ignored=True),
    blocks=_BLOCKS_16,
)
GET_LBA_STATUS = media_command(
    "GET LBA STATUS",
    0x9E,
    16,
    Route.PYTHON,
    service_action=0x12,
    allowed=Allowed.WRITE_EXCLUSIVE,
    lba=_LBA_16,
    allocation_length=Field(10, 4),
)

_COR_DIS = bit(1, 7)
_WR_UNCOR = bit(1, 6)


def _write_long(request: Request) -> bytes | Awaitable[bytes]:
    """What is wrong with it, the data plane says."""
    unit, cdb = request.unit, request.cdb
    unit.wake()
    if cdb["wr_uncor"] and cdb["lba"] < unit.blocks and not unit.write_protected:
        return _mark(request, cdb["lba"])
    request.reply.execute()
    return b""


async def _mark(request: Request, lba: int) -> bytes:
    await request.unit.bad_blocks.mark(lba)
    request.reply.execute()
    return b""


# With WR_UNCOR no data is transferred, whatever BYTE TRANSFER LENGTH says.
WRITE_LONG_10 = media_command(
    "WRITE LONG(10)",
    0x3F,
    10,
    Route.PYTHON,
    handler=_write_long,
    cor_dis=_COR_DIS,
    wr_uncor=_WR_UNCOR,
    lba=_LBA_10,
    byte_transfer_length=Field(7, 2, ignored=True),
)
WRITE_LONG_16 = media_command(
    "WRITE LONG(16)",
    0x9F,
    16,
    Route.PYTHON,
    service_action=0x11,
    handler=_write_long,
    cor_dis=_COR_DIS,
    wr_uncor=_WR_UNCOR,
    lba=_LBA_16,
    byte_transfer_length=Field(12, 2, ignored=True),
)
