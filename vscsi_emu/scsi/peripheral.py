"""Byte 0 of INQUIRY data: peripheral qualifier and device type (SPC-6)."""

from enum import IntEnum


class Peripheral(IntEnum):
    DIRECT_ACCESS = 0x00
    SEQUENTIAL_ACCESS = 0x01
    PRINTER = 0x02
    PROCESSOR = 0x03
    MULTIMEDIA = 0x05
    MEDIUM_CHANGER = 0x08
    ENCLOSURE_SERVICES = 0x0D
    WELL_KNOWN = 0x1E
    UNAVAILABLE = 0x20
    """001b: no device is accessible here now."""
    ABSENT = 0x7F
    """011b, 1Fh: no logical unit is here, nor could one be."""
