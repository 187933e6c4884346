"""READ CAPACITY (SBC-4 5.20, 5.21)."""

import struct
from typing import Final

from vscsi_emu.scsi.cdb import OBSOLETE_LUN, Allowed, Field, Flag, command
from vscsi_emu.scsi.request import Request
from vscsi_emu.scsi.unit import LogicalUnit

_LBPME: Final = 0x80
_LBPRZ: Final = 0x40


@command(
    "READ CAPACITY(10)",
    0x25,
    10,
    flags=Flag.NEEDS_MEDIUM | Flag.IN_STANDBY,
    allowed=Allowed.ALWAYS,
    lun=OBSOLETE_LUN,
)
def read_capacity_10(request: Request) -> bytes:
    """FFFFFFFFh for a last LBA that only READ CAPACITY(16) can say."""
    unit = request.unit
    return struct.pack(">II", min(unit.blocks - 1, 0xFFFF_FFFF), unit.block_size)


@command(
    "READ CAPACITY(16)",
    0x9E,
    16,
    service_action=0x10,
    flags=Flag.NEEDS_MEDIUM | Flag.IN_STANDBY,
    allowed=Allowed.ALWAYS,
    allocation_length=Field(10, 4),
)
def read_capacity_16(request: Request) -> bytes:
    unit = request.unit
    return struct.pack(
        ">QIBBBB16x",
        unit.blocks - 1,
        unit.block_size,
        0,
        unit.physical_block_exponent,
        _provisioning(unit),
        0,
    )


def _provisioning(unit: LogicalUnit) -> int:
    if not unit.thin:
        return 0
    return _LBPME | (_LBPRZ if unit.lbprz else 0)
