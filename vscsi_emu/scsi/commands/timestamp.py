"""REPORT and SET TIMESTAMP (SPC-4 6.38, 6.46)."""

import struct
from typing import Final

from vscsi_emu.scsi.cdb import Allowed, Field, Flag, command
from vscsi_emu.scsi.request import Request
from vscsi_emu.scsi.sense import Asc, ScsiError, SenseKey, invalid_field_in_parameter_list

_SIZE: Final = 12
_TIMESTAMP: Final = slice(4, 10)
_MOST_IN_FIRST_BYTE: Final = 0xF0


@command(
    "REPORT TIMESTAMP",
    0xA3,
    12,
    service_action=0x0F,
    flags=Flag.IN_STANDBY,
    allowed=Allowed.PERSISTENT,
    allocation_length=Field(6, 4),
)
def report_timestamp(request: Request) -> bytes:
    timestamp = request.unit.timestamp
    return struct.pack(">HBx", _SIZE - 2, timestamp.origin) + timestamp.now().to_bytes(6) + bytes(2)


@command("SET TIMESTAMP", 0xA4, 12, service_action=0x0F, parameter_list_length=Field(6, 4))
def set_timestamp(request: Request) -> bytes:
    data = request.parameter_list()
    if not data:
        return b""
    if len(data) < _SIZE:
        raise ScsiError(SenseKey.ILLEGAL_REQUEST, Asc.PARAMETER_LIST_LENGTH_ERROR)
    value = data[_TIMESTAMP]
    if value[0] > _MOST_IN_FIRST_BYTE:
        raise invalid_field_in_parameter_list(_TIMESTAMP.start)
    request.unit.timestamp.set(int.from_bytes(value))
    request.unit.establish(Asc.TIMESTAMP_CHANGED, but=request.nexus)
    return b""
