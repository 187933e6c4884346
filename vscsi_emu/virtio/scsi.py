"""Structures of virtio-scsi's control and event queues (virtio 1.4, 5.6.6; linux/virtio_scsi.h).

Each is packed in the byte order asked for: little-endian, or a legacy guest's own.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final, Self

from vscsi_emu.virtio.config import ByteOrder

LUN_SIZE: Final = 8
MAX_TARGET: Final = 255
MAX_LUN: Final = 16383
SINGLE_LEVEL: Final = 0x01
"""First byte of a lun field that goes on with a target and a single-level LUN."""
WELL_KNOWN: Final = 0xC1
"""First byte of the lun field of well-known logical units."""


class Response(IntEnum):
    """VIRTIO_SCSI_S_*: the virtio response of any request."""

    OK = 0
    OVERRUN = 1
    ABORTED = 2
    BAD_TARGET = 3
    RESET = 4
    BUSY = 5
    TRANSPORT_FAILURE = 6
    TARGET_FAILURE = 7
    NEXUS_FAILURE = 8
    FAILURE = 9
    FUNCTION_SUCCEEDED = 10
    FUNCTION_REJECTED = 11
    INCORRECT_LUN = 12


FUNCTION_COMPLETE: Final = Response.OK
"""FUNCTION COMPLETE shares its value with OK."""


class ControlType(IntEnum):
    """VIRTIO_SCSI_T_*: first field of a control request."""

    TMF = 0
    AN_QUERY = 1
    AN_SUBSCRIBE = 2


class TmfType(IntEnum):
    """VIRTIO_SCSI_T_TMF_*: the eight task management functions."""

    ABORT_TASK = 0
    ABORT_TASK_SET = 1
    CLEAR_ACA = 2
    CLEAR_TASK_SET = 3
    I_T_NEXUS_RESET = 4
    LOGICAL_UNIT_RESET = 5
    QUERY_TASK = 6
    QUERY_TASK_SET = 7


class EventType(IntEnum):
    """VIRTIO_SCSI_T_*: what an event says."""

    NO_EVENT = 0
    TRANSPORT_RESET = 1
    ASYNC_NOTIFY = 2
    PARAM_CHANGE = 3


EVENTS_MISSED: Final = 1 << 31
"""Set in `Event.event` once events were lost for want of a buffer."""


class ResetReason(IntEnum):
    """VIRTIO_SCSI_EVT_RESET_*: `Event.reason` of a TRANSPORT_RESET."""

    HARD = 0
    RESCAN = 1
    REMOVED = 2


def show_address(address: tuple[int, int]) -> str:
    """TARGET:LUN of (target, LUN), as people write it."""
    return f"{address[0]}:{address[1]}"


def encode_lun(target: int, lun: int) -> bytes:
    """The lun field of (target, LUN): 1, target, then a single-level LUN (5.6.6.1).

    A LUN below 256 is in peripheral addressing, as in REPORT LUNS: Linux compares the LUN of an
    event to those, bit for bit.
    """
    if not 0 <= target <= MAX_TARGET:
        raise ValueError(f"target {target} is not within 0 to {MAX_TARGET}")
    if not 0 <= lun <= MAX_LUN:
        raise ValueError(f"LUN {lun} is not within 0 to {MAX_LUN}")
    return struct.pack(">BBH4x", SINGLE_LEVEL, target, lun if lun <= 0xFF else 0x4000 | lun)


def decode_lun(field: bytes) -> tuple[int, int] | None:
    """(target, LUN) of a lun field; None for one that names no LU here, a well-known one included.

    The LUN may come in peripheral (00b, bus 0) or flat space (01b) addressing, as SAM-6
    lets an initiator send either.
    """
    first, target, level, rest = struct.unpack(">BBHI", field)
    method = level >> 14
    if first != SINGLE_LEVEL or rest or method > 1 or (method == 0 and level > 0xFF):
        return None
    return target, level & 0x3FFF


@dataclass(frozen=True, slots=True)
class TmfRequest:
    """struct virtio_scsi_ctrl_tmf_req: type, subtype, lun, id (24 bytes)."""

    subtype: int
    lun: bytes
    id: int

    SIZE = 24

    def pack(self, order: ByteOrder = "<") -> bytes:
        return struct.pack(order + "II8sQ", ControlType.TMF, self.subtype, self.lun, self.id)

    @classmethod
    def unpack(cls, data: bytes, order: ByteOrder = "<") -> Self:
        """Raises `ValueError` for fewer bytes than the struct has."""
        return cls(*_fields(order + "4xI8sQ", data))


@dataclass(frozen=True, slots=True)
class AsyncRequest:
    """struct virtio_scsi_ctrl_an_req: type, lun, event_requested (16 bytes)."""

    type: int
    lun: bytes
    event_requested: int

    SIZE = 16

    def pack(self, order: ByteOrder = "<") -> bytes:
        return struct.pack(order + "I8sI", self.type, self.lun, self.event_requested)

    @classmethod
    def unpack(cls, data: bytes, order: ByteOrder = "<") -> Self:
        """Raises `ValueError` for fewer bytes than the struct has."""
        return cls(*_fields(order + "I8sI", data))


@dataclass(frozen=True, slots=True)
class AsyncReply:
    """struct virtio_scsi_ctrl_an_resp: event_actual, response (5 bytes)."""

    event_actual: int
    response: int

    SIZE = 5

    def pack(self, order: ByteOrder = "<") -> bytes:
        return struct.pack(order + "IB", self.event_actual, self.response)

    @classmethod
    def unpack(cls, data: bytes, order: ByteOrder = "<") -> Self:
        """Raises `ValueError` for fewer bytes than the struct has."""
        return cls(*_fields(order + "IB", data))


@dataclass(frozen=True, slots=True)
class Event:
    """struct virtio_scsi_event: event, lun, reason (16 bytes)."""

    event: int
    lun: bytes
    reason: int

    SIZE = 16

    def pack(self, order: ByteOrder = "<") -> bytes:
        return struct.pack(order + "I8sI", self.event, self.lun, self.reason)

    @classmethod
    def unpack(cls, data: bytes, order: ByteOrder = "<") -> Self:
        """Raises `ValueError` for fewer bytes than the struct has."""
        return cls(*_fields(order + "I8sI", data))


def control_type(data: bytes, order: ByteOrder = "<") -> int:
    """The type of a control request; `ValueError` where it is cut short."""
    kind: int = _fields(order + "I", data)[0]
    return kind


def _fields(layout: str, data: bytes) -> tuple[Any, ...]:
    size = struct.calcsize(layout)
    if len(data) < size:
        raise ValueError(f"{len(data)} bytes where {size} are needed")
    return struct.unpack_from(layout, data)
