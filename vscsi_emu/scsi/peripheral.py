"""Byte 0 of INQUIRY data: peripheral qualifier and device type (SPC-6)."""

from enum import IntEnum


class Peripheral(IntEnum):
    DIRECT_ACCESS = 0x00
    WELL_KNOWN = 0x1E
    ABSENT = 0x7F
    """011b, 1Fh: no logical unit is here, nor could one be."""
