"""Feature bits and device status (virtio 1.4, 2.1, 2.2, 5.6.3 and 6)."""

from enum import IntFlag


class Feature(IntFlag):
    """Feature bits of a virtio-scsi device, its rings and the transport-independent part."""

    SCSI_INOUT = 1 << 0
    SCSI_HOTPLUG = 1 << 1
    SCSI_CHANGE = 1 << 2
    SCSI_T10_PI = 1 << 3
    NOTIFY_ON_EMPTY = 1 << 24
    ANY_LAYOUT = 1 << 27
    INDIRECT_DESC = 1 << 28
    EVENT_IDX = 1 << 29
    VERSION_1 = 1 << 32
    ACCESS_PLATFORM = 1 << 33
    RING_PACKED = 1 << 34
    IN_ORDER = 1 << 35
    ORDER_PLATFORM = 1 << 36
    SR_IOV = 1 << 37
    NOTIFICATION_DATA = 1 << 38
    NOTIF_CONFIG_DATA = 1 << 39
    RING_RESET = 1 << 40


class Status(IntFlag):
    """Device status bits (2.1); 0 is a reset device."""

    ACKNOWLEDGE = 1
    DRIVER = 2
    DRIVER_OK = 4
    FEATURES_OK = 8
    NEEDS_RESET = 64
    FAILED = 128
