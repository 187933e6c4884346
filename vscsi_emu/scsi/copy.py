"""The parameter list of EXTENDED COPY(LID1): what it asks for, checked (SPC-4).

Block device to block device is what is copied; descriptors of other kinds are refused.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from vscsi_emu.scsi.sense import (
    Asc,
    ScsiError,
    SenseKey,
    invalid_field_in_parameter_list,
)

MAX_TARGETS: Final = 16
MAX_SEGMENTS: Final = 16
MAX_SEGMENT_BYTES: Final = 256 << 20
"""65535 blocks of 4096 bytes, rounded up."""
CONCURRENT_COPIES: Final = 256
"""Of one nexus: as many as there are list identifiers."""
GRANULARITY: Final = 9
"""Of segments, as a power of two: the smallest block."""
BLOCK_TO_BLOCK: Final = 0x02
IDENTIFICATION: Final = 0xE4
DESCRIPTOR_TYPES: Final = bytes([BLOCK_TO_BLOCK, IDENTIFICATION])
THIS_UNIT: Final = 0xFFFF
"""The CSCD descriptor ID of the unit that the command was sent to."""

_HEADER: Final = struct.Struct(">BBH4xII")
_TARGET: Final = struct.Struct(">BB2xBBxB20sI")
_SEGMENT: Final = struct.Struct(">BBHHH2xHQQ")
MAX_DESCRIPTORS_BYTES: Final = MAX_TARGETS * _TARGET.size + MAX_SEGMENTS * _SEGMENT.size


@dataclass(frozen=True, slots=True)
class CopyTarget:
    """An identification descriptor: a designator as VPD page 83h has it, and the block size."""

    designator: bytes
    """CODE SET, ASSOCIATION and DESIGNATOR TYPE, a reserved byte, length, designator."""
    block_size: int


@dataclass(frozen=True, slots=True)
class Segment:
    """`source` and `target` are indices into the targets, or `THIS_UNIT`."""

    source: int
    target: int
    counts_target_blocks: bool
    """DC: `blocks` are of the size of the target's."""
    blocks: int
    source_lba: int
    target_lba: int


@dataclass(frozen=True, slots=True)
class CopyList:
    list_id: int | None
    """None: LIST ID USAGE says that there is none."""
    hold: bool
    """Whether the result of a copy without error is held for RECEIVE COPY RESULTS."""
    targets: tuple[CopyTarget, ...]
    segments: tuple[Segment, ...]


def parse(data: bytes) -> CopyList:
    """`data`: the whole parameter list, at least a byte. `ScsiError` ILLEGAL REQUEST."""
    if len(data) < _HEADER.size:
        raise _length_error()
    list_id, flags, target_bytes, segment_bytes, inline_bytes = _HEADER.unpack_from(data)
    if flags & 0xC0:
        raise invalid_field_in_parameter_list(1, 7 if flags & 0x80 else 6)
    usage = flags >> 3 & 3
    if usage == 1:
        raise invalid_field_in_parameter_list(1, 4)
    if usage == 3 and list_id:
        raise invalid_field_in_parameter_list(0)
    if inline_bytes:
        raise ScsiError(SenseKey.ILLEGAL_REQUEST, Asc.INLINE_DATA_LENGTH_EXCEEDED)
    if target_bytes + segment_bytes > MAX_DESCRIPTORS_BYTES:
        raise _length_error()
    first = _HEADER.size + target_bytes
    end = first + segment_bytes
    if end > len(data):
        raise _length_error()
    return CopyList(
        None if usage == 3 else list_id,
        usage == 0,
        tuple(_targets(data, first)),
        tuple(_segments(data, first, end)),
    )


def _targets(data: bytes, end: int) -> Iterator[CopyTarget]:
    if (end - _HEADER.size) % _TARGET.size:
        raise invalid_field_in_parameter_list(2)
    if (end - _HEADER.size) // _TARGET.size > MAX_TARGETS:
        raise ScsiError(SenseKey.ILLEGAL_REQUEST, Asc.TOO_MANY_TARGET_DESCRIPTORS)
    for start in range(_HEADER.size, end, _TARGET.size):
        kind, device, codes, names, length, designator, tail = _TARGET.unpack_from(data, start)
        if kind != IDENTIFICATION:
            raise ScsiError(SenseKey.ILLEGAL_REQUEST, Asc.UNSUPPORTED_TARGET_DESCRIPTOR_TYPE_CODE)
        # LU ID TYPE and NUL, the bits above, say nothing here any more.
        if device & 0x1F:
            raise ScsiError(SenseKey.COPY_ABORTED, Asc.INCORRECT_COPY_TARGET_DEVICE_TYPE)
        if not 1 <= length <= len(designator):
            raise invalid_field_in_parameter_list(start + 7)
        name = bytes([codes & 0x0F, names & 0x3F, 0, length]) + designator[:length]
        yield CopyTarget(name, tail & 0xFF_FFFF)


def _segments(data: bytes, start: int, end: int) -> Iterator[Segment]:
    count = 0
    while start < end:
        if data[start] != BLOCK_TO_BLOCK:
            raise ScsiError(SenseKey.ILLEGAL_REQUEST, Asc.UNSUPPORTED_SEGMENT_DESCRIPTOR_TYPE_CODE)
        if start + _SEGMENT.size > end:
            raise invalid_field_in_parameter_list(8)
        _, flags, length, source, target, blocks, from_lba, to_lba = _SEGMENT.unpack_from(
            data, start
        )
        if length != _SEGMENT.size - 4:
            raise invalid_field_in_parameter_list(start + 2)
        count += 1
        if count > MAX_SEGMENTS:
            raise ScsiError(SenseKey.ILLEGAL_REQUEST, Asc.TOO_MANY_SEGMENT_DESCRIPTORS)
        yield Segment(source, target, bool(flags & 0x02), blocks, from_lba, to_lba)
        start += _SEGMENT.size


def _length_error() -> ScsiError:
    return ScsiError(SenseKey.ILLEGAL_REQUEST, Asc.PARAMETER_LIST_LENGTH_ERROR)
