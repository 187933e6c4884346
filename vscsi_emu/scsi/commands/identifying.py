"""REPORT and SET IDENTIFYING INFORMATION (SPC-4 6.32, 6.43)."""

import struct
from typing import Final

from vscsi_emu.scsi.cdb import Allowed, Field, Flag, command
from vscsi_emu.scsi.identifying import MAX_BYTES
from vscsi_emu.scsi.request import Request
from vscsi_emu.scsi.sense import invalid_field_in_cdb

_INFORMATION_TYPE: Final = Field(10, high=7, low=1)
_SUPPORTED_TYPES: Final = 0b1111111


@command(
    "REPORT IDENTIFYING INFORMATION",
    0xA3,
    12,
    service_action=0x05,
    flags=Flag.IN_STANDBY,
    allowed=Allowed.PERSISTENT,
    allocation_length=Field(6, 4),
    information_type=_INFORMATION_TYPE,
)
def report_identifying_information(request: Request) -> bytes:
    kind = request.cdb["information_type"]
    if kind == _SUPPORTED_TYPES:
        body = b"".join(struct.pack(">BxH", k << 1, most) for k, most in MAX_BYTES.items())
    elif kind in MAX_BYTES:
        body = request.unit.identifying[kind]
    else:
        raise invalid_field_in_cdb(10, 7)
    return struct.pack(">2xH", len(body)) + body


@command(
    "SET IDENTIFYING INFORMATION",
    0xA4,
    12,
    service_action=0x06,
    parameter_list_length=Field(6, 4),
    information_type=_INFORMATION_TYPE,
)
async def set_identifying_information(request: Request) -> bytes:
    kind = request.cdb["information_type"]
    if kind not in MAX_BYTES:
        raise invalid_field_in_cdb(10, 7)
    if request.cdb["parameter_list_length"] > MAX_BYTES[kind]:
        raise invalid_field_in_cdb(6)
    await request.unit.identifying.set(kind, request.parameter_list(), by=request.nexus)
    return b""
