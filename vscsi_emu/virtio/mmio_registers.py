"""Registers of a virtio-mmio device, by offset in bytes (virtio 1.4, 4.2.2 and 4.2.4).

Each is 32 bits wide, except the configuration space at its end.
"""

from enum import IntEnum, IntFlag
from typing import Final

MAGIC: Final = 0x74726976
"""MagicValue: "virt", little-endian."""
MODERN: Final = 2
LEGACY: Final = 1
"""Version."""
SCSI_HOST: Final = 8
"""DeviceID (virtio 1.4, 5.6.1)."""


class Register(IntEnum):
    """Names are those of the standard; GUEST_PAGE_SIZE, QUEUE_ALIGN and QUEUE_PFN are legacy."""

    MAGIC_VALUE = 0x000
    VERSION = 0x004
    DEVICE_ID = 0x008
    VENDOR_ID = 0x00C
    DEVICE_FEATURES = 0x010
    DEVICE_FEATURES_SEL = 0x014
    DRIVER_FEATURES = 0x020
    DRIVER_FEATURES_SEL = 0x024
    GUEST_PAGE_SIZE = 0x028
    QUEUE_SEL = 0x030
    QUEUE_SIZE_MAX = 0x034
    QUEUE_SIZE = 0x038
    QUEUE_ALIGN = 0x03C
    QUEUE_PFN = 0x040
    QUEUE_READY = 0x044
    QUEUE_NOTIFY = 0x050
    INTERRUPT_STATUS = 0x060
    INTERRUPT_ACK = 0x064
    STATUS = 0x070
    QUEUE_DESC_LOW = 0x080
    QUEUE_DESC_HIGH = 0x084
    QUEUE_DRIVER_LOW = 0x090
    QUEUE_DRIVER_HIGH = 0x094
    QUEUE_DEVICE_LOW = 0x0A0
    QUEUE_DEVICE_HIGH = 0x0A4
    SHM_SEL = 0x0AC
    SHM_LEN_LOW = 0x0B0
    SHM_LEN_HIGH = 0x0B4
    SHM_BASE_LOW = 0x0B8
    SHM_BASE_HIGH = 0x0BC
    QUEUE_RESET = 0x0C0
    CONFIG_GENERATION = 0x0FC
    CONFIG = 0x100


class InterruptBit(IntFlag):
    """InterruptStatus and InterruptACK."""

    USED_BUFFER = 1
    CONFIG_CHANGE = 2
