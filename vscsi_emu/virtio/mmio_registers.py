"""The registers of a virtio-mmio device, declared once (virtio 1.4, 4.2.2 and 4.2.4)."""

from __future__ import annotations

from enum import Enum, IntEnum, IntFlag, auto
from typing import Final, Self

MAGIC: Final = 0x74726976
"""MagicValue: "virt", little-endian."""
MODERN: Final = 2
LEGACY: Final = 1
"""Version."""
SCSI_HOST: Final = 8
"""DeviceID (virtio 1.4, 5.6.1)."""

_BOTH: Final = frozenset({MODERN, LEGACY})
_MODERN: Final = frozenset({MODERN})
_LEGACY: Final = frozenset({LEGACY})


class Access(IntFlag):
    READ = 1
    WRITE = 2


_R: Final = Access.READ
_W: Final = Access.WRITE
_RW: Final = Access.READ | Access.WRITE


class When(Enum):
    """When a register may be written. Apart from ALWAYS, never while a device reset is under way:
    it would undo what is written."""

    ALWAYS = auto()
    INITIALIZED = auto()
    """Not while a device reset is under way."""
    NEGOTIATING = auto()
    """Until the features are settled (3.1.1 step 5; legacy: until they are first used)."""
    QUEUE_PRESENT = auto()
    """QueueSel names a queue that there is."""
    QUEUE_UNUSED = auto()
    """And it is not in use: QueueReady, or QueuePFN, is 0 (4.2.2.2)."""
    RING_RESET = auto()
    """As QUEUE_PRESENT, with VIRTIO_F_RING_RESET negotiated."""


class Register(IntEnum):
    """Offset in bytes, access, when it may be written, versions of the device that have it.

    Names are those of the standard. Each is 32 bits wide and accessed as such, aligned, except the
    configuration space from `CONFIG` on, which takes any width at any offset.
    """

    access: Access
    when: When
    versions: frozenset[int]

    def __new__(
        cls,
        offset: int,
        access: Access,
        when: When = When.ALWAYS,
        versions: frozenset[int] = _BOTH,
    ) -> Self:
        register = int.__new__(cls, offset)
        register._value_ = offset
        register.access, register.when, register.versions = access, when, versions
        return register

    MAGIC_VALUE = 0x000, _R
    VERSION = 0x004, _R
    DEVICE_ID = 0x008, _R
    VENDOR_ID = 0x00C, _R
    DEVICE_FEATURES = 0x010, _R
    DEVICE_FEATURES_SEL = 0x014, _W
    DRIVER_FEATURES = 0x020, _W, When.NEGOTIATING
    DRIVER_FEATURES_SEL = 0x024, _W
    GUEST_PAGE_SIZE = 0x028, _W, When.INITIALIZED, _LEGACY
    QUEUE_SEL = 0x030, _W
    QUEUE_SIZE_MAX = 0x034, _R
    QUEUE_SIZE = 0x038, _W, When.QUEUE_UNUSED
    QUEUE_ALIGN = 0x03C, _W, When.QUEUE_UNUSED, _LEGACY
    QUEUE_PFN = 0x040, _RW, When.QUEUE_PRESENT, _LEGACY
    QUEUE_READY = 0x044, _RW, When.QUEUE_PRESENT, _MODERN
    QUEUE_NOTIFY = 0x050, _W, When.INITIALIZED
    INTERRUPT_STATUS = 0x060, _R
    INTERRUPT_ACK = 0x064, _W
    STATUS = 0x070, _RW, When.INITIALIZED
    QUEUE_DESC_LOW = 0x080, _W, When.QUEUE_UNUSED, _MODERN
    QUEUE_DESC_HIGH = 0x084, _W, When.QUEUE_UNUSED, _MODERN
    QUEUE_DRIVER_LOW = 0x090, _W, When.QUEUE_UNUSED, _MODERN
    QUEUE_DRIVER_HIGH = 0x094, _W, When.QUEUE_UNUSED, _MODERN
    QUEUE_DEVICE_LOW = 0x0A0, _W, When.QUEUE_UNUSED, _MODERN
    QUEUE_DEVICE_HIGH = 0x0A4, _W, When.QUEUE_UNUSED, _MODERN
    SHM_SEL = 0x0AC, _W, When.ALWAYS, _MODERN
    SHM_LEN_LOW = 0x0B0, _R, When.ALWAYS, _MODERN
    SHM_LEN_HIGH = 0x0B4, _R, When.ALWAYS, _MODERN
    SHM_BASE_LOW = 0x0B8, _R, When.ALWAYS, _MODERN
    SHM_BASE_HIGH = 0x0BC, _R, When.ALWAYS, _MODERN
    QUEUE_RESET = 0x0C0, _RW, When.RING_RESET, _MODERN
    CONFIG_GENERATION = 0x0FC, _R, When.ALWAYS, _MODERN
    CONFIG = 0x100, _RW, When.INITIALIZED


class InterruptBit(IntFlag):
    """InterruptStatus and InterruptACK."""

    USED_BUFFER = 1
    CONFIG_CHANGE = 2
