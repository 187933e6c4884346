"""Logical unit numbers on the wire: 8 bytes, single level (SAM-6)."""

from __future__ import annotations

import struct
from typing import Final

MAX_LUN: Final = 0x3FFF
REPORT_LUNS_WLUN: Final = 0xC101
"""The REPORT LUNS well known logical unit (SPC-6), as LUN numbers are passed around here."""

_PERIPHERAL: Final = 0b00
_FLAT: Final = 0b01
_WIRE: Final = struct.Struct(">HHI")


def encode_lun(lun: int) -> bytes:
    """8 bytes: peripheral device addressing to 255, flat space addressing above.

    A well known unit's number is encoded as it is (extended addressing).
    """
    if lun <= 0xFF or lun == REPORT_LUNS_WLUN:
        first = lun
    elif lun <= MAX_LUN:
        first = _FLAT << 14 | lun
    else:
        raise ValueError(f"LUN {lun} is above {MAX_LUN}")
    return _WIRE.pack(first, 0, 0)


def decode_lun(wire: bytes) -> int | None:
    """The LUN of 8 bytes; None for one with more levels, a bus, or another addressing method."""
    first: int
    first, second, rest = _WIRE.unpack(wire)
    if second or rest:
        return None
    if first == REPORT_LUNS_WLUN:
        return REPORT_LUNS_WLUN
    method, number = first >> 14, first & MAX_LUN
    if method == _FLAT or (method == _PERIPHERAL and number <= 0xFF):
        return number
    return None
