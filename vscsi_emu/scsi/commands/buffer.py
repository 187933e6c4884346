"""READ BUFFER and WRITE BUFFER (SPC-4 6.18, 6.49): data, descriptor and echo modes."""

import enum
import struct
from typing import Final

from vscsi_emu.scsi.cdb import Allowed, Field, Flag, command
from vscsi_emu.scsi.request import Request
from vscsi_emu.scsi.sense import Asc, ScsiError, SenseKey

_MODE: Final = Field(1, high=4)
_ECHO_CAPACITY: Final = 4096
"""Bytes, the most there may be."""
_EBOS: Final = 1
"""Each nexus reads back what it wrote itself."""
_ANY_OFFSET: Final = 0


class _Mode(enum.IntEnum):
    DATA = 0x02
    DESCRIPTOR = 0x03
    ECHO = 0x0A
    ECHO_DESCRIPTOR = 0x0B


def _read_buffer(request: Request) -> bytes:
    """The unit's one data buffer is shared by its nexuses; each has an echo buffer of its own."""
    cdb, buffer = request.cdb, request.unit.buffer
    number, offset = cdb["buffer_id"], cdb["buffer_offset"]
    mode = cdb["mode"]
    if mode == _Mode.ECHO:
        return _echo(request)
    if mode not in (_Mode.DATA, _Mode.DESCRIPTOR, _Mode.ECHO_DESCRIPTOR):
        raise cdb.invalid("mode")
    if number:
        raise cdb.invalid("buffer_id")
    if offset > (len(buffer) if mode == _Mode.DATA else 0):
        raise cdb.invalid("buffer_offset")
    match mode:
        case _Mode.DATA:
            return bytes(buffer[offset:])
        case _Mode.DESCRIPTOR:
            return struct.pack(">I", _ANY_OFFSET << 24 | len(buffer))
        case _:
            return struct.pack(">BxH", _EBOS, _ECHO_CAPACITY)


def _echo(request: Request) -> bytes:
    if request.nexus.echo is None:
        raise ScsiError(SenseKey.ILLEGAL_REQUEST, Asc.COMMAND_SEQUENCE_ERROR)
    return request.nexus.echo


read_buffer_10 = command(
    "READ BUFFER(10)",
    0x3C,
    10,
    flags=Flag.ANY_ACCESS_STATE,
    allowed=Allowed.WRITE_EXCLUSIVE,
    mode=_MODE,
    buffer_id=Field(2),
    buffer_offset=Field(3, 3),
    allocation_length=Field(6, 3),
)(_read_buffer)
read_buffer_16 = command(
    "READ BUFFER(16)",
    0x9B,
    16,
    flags=Flag.ANY_ACCESS_STATE,
    allowed=Allowed.WRITE_EXCLUSIVE,
    mode=_MODE,
    buffer_offset=Field(2, 8),
    allocation_length=Field(10, 4),
    buffer_id=Field(14),
)(_read_buffer)


@command(
    "WRITE BUFFER",
    0x3B,
    10,
    flags=Flag.ANY_ACCESS_STATE,
    mode=_MODE,
    buffer_id=Field(2),
    buffer_offset=Field(3, 3),
    parameter_list_length=Field(6, 3),
)
def write_buffer(request: Request) -> bytes:
    cdb, buffer = request.cdb, request.unit.buffer
    number, offset, length = cdb["buffer_id"], cdb["buffer_offset"], cdb["parameter_list_length"]
    match cdb["mode"]:
        case _Mode.ECHO:
            if length > _ECHO_CAPACITY:
                raise cdb.invalid("parameter_list_length")
            request.nexus.echo = request.parameter_list()
        case _Mode.DATA:
            if number:
                raise cdb.invalid("buffer_id")
            if offset > len(buffer):
                raise cdb.invalid("buffer_offset")
            if offset + length > len(buffer):
                raise cdb.invalid("parameter_list_length")
            buffer[offset : offset + length] = request.parameter_list()
        case _:
            # Microcode among them: this program is not changed by its guests.
            raise cdb.invalid("mode")
    return b""
