"""Commands whose answers a guest must not see as the device gives them."""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable, Iterator
from typing import Final

from vscsi_emu.host import block_limits
from vscsi_emu.passthrough.device import Answer
from vscsi_emu.scsi.cdb import CommandType, Field, Flag, bit, command, service_action_field
from vscsi_emu.scsi.passing import REPORT_LUNS
from vscsi_emu.scsi.request import Request
from vscsi_emu.scsi.sense import SenseKey

Ask = Callable[[bytes, int], Awaitable[Answer]]
"""(CDB, most bytes of data-in) → the device's answer."""
Passes = Callable[[bytes], bool]
"""Whether the filter lets a CDB pass."""

SUPPORTED_PAGES: Final = 0x00
_PAGE_BYTES: Final = 512
_HEADER: Final = 4


def vital_product_data(ask: Ask, most_blocks: Callable[[], int]) -> CommandType:
    """INQUIRY for the two pages that speak of limits: Block Limits, which the host's bound, and the
    list of pages, where it stands even if it is of our making. `most_blocks()`: a transfer's."""

    @command(
        "INQUIRY",
        0x12,
        6,
        flags=Flag.SKIPS_ATTENTION,
        evpd=bit(1, 0),
        page_code=Field(2),
        allocation_length=Field(3, 2),
    )
    async def inquiry(request: Request) -> bytes:
        code = request.cdb["page_code"]
        answer = await ask(struct.pack(">BBBHB", 0x12, 1, code, _PAGE_BYTES, 0), _PAGE_BYTES)
        if code == SUPPORTED_PAGES:
            if not answer.good:
                request.reply.relay(answer.response, answer.status, answer.sense)
                return b""
            return _with_block_limits(answer.data)
        if answer.good and len(answer.data) > 1 and answer.data[1] == code:
            return block_limits.for_guest(answer.data, answer.data[0], most_blocks())
        if answer.key == SenseKey.ILLEGAL_REQUEST:
            return block_limits.for_guest(None, 0, most_blocks())
        request.reply.relay(answer.response, answer.status, answer.sense)
        return b""

    return inquiry


def _with_block_limits(page: bytes) -> bytes:
    end = _HEADER + int.from_bytes(page[2:_HEADER])
    codes = sorted({*page[_HEADER:end], SUPPORTED_PAGES, block_limits.PAGE})
    return page[:2] + len(codes).to_bytes(2) + bytes(codes)


# ── MODE SENSE ─────────────────────────────────────────────────────────────────────────────────

_WP: Final = 0x80
"""Of the mode parameter header's DEVICE-SPECIFIC PARAMETER, of disks (SBC) and tapes (SSC)."""


def write_protected(ask: Ask, most_bytes: Callable[[], int]) -> tuple[CommandType, CommandType]:
    """MODE SENSE(6) and (10) of a device that is write-protected for its guest. `most_bytes()`: of
    a transfer."""

    async def protect(request: Request, allocation: slice, parameter: int) -> bytes:
        cdb = bytearray(request.cdb.raw[: request.cdb.command.length])
        length = min(request.cdb["allocation_length"], most_bytes())
        cdb[allocation] = length.to_bytes(allocation.stop - allocation.start)
        answer = await ask(bytes(cdb), length)
        if not answer.good:
            request.reply.relay(answer.response, answer.status, answer.sense)
            return b""
        data = bytearray(answer.data)
        if len(data) > parameter:
            data[parameter] |= _WP
        return bytes(data)

    @command(
        "MODE SENSE(6)",
        0x1A,
        6,
        dbd=bit(1, 3),
        page=Field(2),
        subpage=Field(3),
        allocation_length=Field(4),
    )
    async def mode_sense_6(request: Request) -> bytes:
        return await protect(request, slice(4, 5), 2)

    @command(
        "MODE SENSE(10)",
        0x5A,
        10,
        llbaa=bit(1, 4),
        dbd=bit(1, 3),
        page=Field(2),
        subpage=Field(3),
        allocation_length=Field(7, 2),
    )
    async def mode_sense_10(request: Request) -> bytes:
        return await protect(request, slice(7, 9), 3)

    return mode_sense_6, mode_sense_10


# ── REPORT SUPPORTED OPERATION CODES (SPC-6 6.39) ──────────────────────────────────────────────

_SERVACTV: Final = 0x01
_CTDP: Final = 0x02
_DESCRIPTOR: Final = struct.Struct(">BxHxBH")
_TIMEOUTS_BYTES: Final = 12
_ALL_BYTES: Final = 0xFFF0
"""More than all commands take; some devices do not like more."""
_NOT_SUPPORTED: Final = struct.pack(">xBH", 0x01, 0)
_OURS: Final = _DESCRIPTOR.pack(REPORT_LUNS, 0, 0, 12)


def report_supported_operation_codes(
    ask: Ask, passes: Passes, most_bytes: Callable[[], int]
) -> CommandType:
    """The device's answer, without what does not pass. `most_bytes()`: of a transfer."""

    @command(
        "REPORT SUPPORTED OPERATION CODES",
        0xA3,
        12,
        service_action=0x0C,
        rctd=bit(2, 7),
        reporting_options=Field(2, high=2),
        requested_operation_code=Field(3),
        requested_service_action=Field(4, 2),
        allocation_length=Field(6, 4),
    )
    async def report(request: Request) -> bytes:
        options = request.cdb["reporting_options"]
        if options and not passes(_requested(request)):
            return _NOT_SUPPORTED
        length = min(_ALL_BYTES, most_bytes())
        cdb = bytearray(request.cdb.raw)
        cdb[6:10] = length.to_bytes(4)
        answer = await ask(bytes(cdb), length)
        if not answer.good:
            request.reply.relay(answer.response, answer.status, answer.sense)
            return b""
        return answer.data if options else _only(answer.data, passes)

    return report


def _requested(request: Request) -> bytes:
    """A CDB of the command that one of the one-command formats asks for."""
    opcode = request.cdb["requested_operation_code"]
    # Formats 010b and 011b name the service action, the first only of what has one.
    action = request.cdb["requested_service_action"]
    return _cdb(opcode, action if request.cdb["reporting_options"] > 1 else None)


def _cdb(opcode: int, action: int | None) -> bytes:
    cdb = bytearray(16)
    cdb[0] = opcode
    if action is not None:
        service_action_field(opcode).insert(cdb, action)
    return bytes(cdb)


def _only(data: bytes, passes: Passes) -> bytes:
    kept = [
        descriptor
        for descriptor, opcode, action in _descriptors(data)
        if opcode != REPORT_LUNS and passes(_cdb(opcode, action))
    ]
    body = b"".join([*kept, _OURS])
    return struct.pack(">I", len(body)) + body


def _descriptors(data: bytes) -> Iterator[tuple[bytes, int, int | None]]:
    """Each with its operation code, and its service action if it has one."""
    end = min(4 + int.from_bytes(data[:4]), len(data))
    at = 4
    while at + _DESCRIPTOR.size <= end:
        opcode, action, flags, _ = _DESCRIPTOR.unpack_from(data, at)
        size = _DESCRIPTOR.size + (_TIMEOUTS_BYTES if flags & _CTDP else 0)
        yield data[at : at + size], opcode, action if flags & _SERVACTV else None
        at += size
