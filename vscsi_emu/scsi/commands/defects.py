"""READ DEFECT DATA (SBC-4 5.22, 5.23): the medium remaps nothing, so both lists are empty."""

import struct
from typing import Final

from vscsi_emu.scsi.cdb import Allowed, Cdb, Field, Flag, bit, command
from vscsi_emu.scsi.request import Request
from vscsi_emu.scsi.sense import invalid_field_in_cdb

_FORMATS: Final = frozenset({0b000, 0b001, 0b010, 0b011, 0b100, 0b101})
"""DEFECT LIST FORMAT: short and long block, (extended) bytes from index and physical sector."""


def _header(cdb: Cdb, byte: int) -> int:
    """PLISTV, GLISTV and DEFECT LIST FORMAT as asked for: an empty list is one in any format."""
    if cdb["defect_list_format"] not in _FORMATS:
        raise invalid_field_in_cdb(byte, 2)
    return cdb["req_plist"] << 4 | cdb["req_glist"] << 3 | cdb["defect_list_format"]


@command(
    "READ DEFECT DATA(10)",
    0x37,
    10,
    flags=Flag.NEEDS_READY,
    allowed=Allowed.WRITE_EXCLUSIVE,
    req_plist=bit(2, 4),
    req_glist=bit(2, 3),
    defect_list_format=Field(2, high=2),
    allocation_length=Field(7, 2),
)
def read_defect_data_10(request: Request) -> bytes:
    return struct.pack(">xBH", _header(request.cdb, 2), 0)


@command(
    "READ DEFECT DATA(12)",
    0xB7,
    12,
    flags=Flag.NEEDS_READY,
    allowed=Allowed.WRITE_EXCLUSIVE,
    req_plist=bit(1, 4),
    req_glist=bit(1, 3),
    defect_list_format=Field(1, high=2),
    # Beyond an empty list there is nothing, whatever the index.
    address_descriptor_index=Field(2, 4, ignored=True),
    allocation_length=Field(6, 4),
)
def read_defect_data_12(request: Request) -> bytes:
    """GENERATION CODE 0: the lists never change."""
    return struct.pack(">xBHI", _header(request.cdb, 1), 0, 0)
