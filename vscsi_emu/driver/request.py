"""Request queue structures (virtio 1.4, 5.6.6.1) and how they are laid over descriptors."""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Self

from vscsi_emu.driver.host_byte import HostByte, host_byte, split_residual
from vscsi_emu.virtio.config import ByteOrder

_REQUEST: Final = "8sQBBB"  # lun, id, task_attr, prio, crn
_RESPONSE: Final = "IIHBB"  # sense_len, residual, status_qualifier, status, response

REQUEST_FIXED: Final = struct.calcsize("<" + _REQUEST)
"""Bytes of the request header before the CDB."""
RESPONSE_FIXED: Final = struct.calcsize("<" + _RESPONSE)
"""Bytes of the response header before the sense data."""

REPORT_LUNS_WLUN: Final = bytes([0xC1, 0x01, 0, 0, 0, 0, 0, 0])
"""lun field of the REPORT LUNS well-known logical unit."""


class TaskAttribute(IntEnum):
    """VIRTIO_SCSI_S_*: task_attr."""

    SIMPLE = 0
    ORDERED = 1
    HEAD = 2
    ACA = 3


class AnswerError(RuntimeError):
    """The device's answer is shorter than a response header, or contradicts itself."""


@dataclass(frozen=True, slots=True)
class Request:
    """struct virtio_scsi_req_cmd up to the CDB, and the data that follow. Lengths in bytes."""

    lun: bytes
    cdb: bytes
    tag: int
    data_out: bytes = b""
    data_in_length: int = 0
    task_attribute: int = TaskAttribute.SIMPLE
    priority: int = 0
    crn: int = 0

    def pack_header(self, cdb_size: int, order: ByteOrder = "<") -> bytes:
        """The header with the CDB padded to `cdb_size`; `ValueError` if it is longer."""
        if len(self.cdb) > cdb_size:
            raise ValueError(f"a CDB of {len(self.cdb)} bytes; cdb_size is {cdb_size}")
        fields = (self.lun, self.tag, self.task_attribute, self.priority, self.crn)
        fixed = struct.pack(order + _REQUEST, *fields)
        return fixed + self.cdb.ljust(cdb_size, b"\0")


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a command: virtio response, SAM status, and what came with them.

    `data`: the data-in bytes that were transferred; `residual`: bytes that were not, both ways
    together, `residual_out` and `residual_in` each way. `sense` is empty unless there is any.
    """

    response: int
    status: int
    status_qualifier: int
    sense: bytes
    residual: int
    data: bytes
    residual_out: int = 0
    residual_in: int = 0

    @classmethod
    def unpack(
        cls, reply: bytes, sense_size: int, request: Request, order: ByteOrder = "<"
    ) -> Self:
        if len(reply) < RESPONSE_FIXED:
            raise AnswerError(f"{len(reply)} bytes are no response header")
        fields = struct.unpack_from(order + _RESPONSE, reply)
        sense_length, residual, qualifier, status, response = fields
        sense = reply[RESPONSE_FIXED : RESPONSE_FIXED + min(sense_length, sense_size)]
        if len(sense) != sense_length:
            raise AnswerError(f"sense_len {sense_length}, but {len(sense)} bytes were written")
        out, left = split_residual(residual, len(request.data_out), request.data_in_length)
        start = RESPONSE_FIXED + sense_size
        data = reply[start : start + request.data_in_length - left]
        return cls(response, status, qualifier, sense, residual, data, out, left)

    @property
    def host_byte(self) -> HostByte:
        return host_byte(self.response)


Framing = Callable[[int, int], Sequence[int]]
"""(header bytes, data bytes) → lengths of the pieces that carry both, in order."""


def separate(header: int, data: int) -> Sequence[int]:
    """A descriptor each, as Linux does; the only one for legacy devices without ANY_LAYOUT."""
    return (header, data)


def joined(header: int, data: int) -> Sequence[int]:
    """Header and data in one descriptor."""
    return (header + data,)


def paged(size: int) -> Framing:
    """The header, then the data in pieces of `size` bytes."""
    return lambda header, data: (header, *_every(data, size))


def every(size: int) -> Framing:
    """Pieces of `size` bytes with no regard for where the header ends."""
    return lambda header, data: _every(header + data, size)


def cut_at(*points: int) -> Framing:
    """Cut at these offsets from the start of the header."""

    def framing(header: int, data: int) -> Sequence[int]:
        ends = [p for p in sorted(points) if p < header + data] + [header + data]
        return [end - start for start, end in zip([0, *ends], ends, strict=False)]

    return framing


def _every(total: int, size: int) -> Sequence[int]:
    return [min(size, total - start) for start in range(0, total, size)]
