"""The parameter lists of POPULATE TOKEN and WRITE USING TOKEN, checked (SBC-5 5.12, 5.59)."""

from __future__ import annotations

import itertools
import struct
from dataclasses import dataclass
from typing import Final

from vscsi_emu.scsi.sense import Asc, ScsiError, SenseKey, invalid_field_in_parameter_list
from vscsi_emu.scsi.tokens import (
    CHANGE_VULNERABLE,
    DEFAULT_TIMEOUT,
    MAX_TIMEOUT,
    POINT_IN_TIME_ANY,
    TOKEN_SIZE,
    Range,
)

MAX_RANGES: Final = 256
MAX_TRANSFER_BYTES: Final = 64 << 30
"""Of all ranges together: MAXIMUM TOKEN TRANSFER SIZE, in blocks there."""
OPTIMAL_TRANSFER_BYTES: Final = 16 << 20

_POPULATE: Final = struct.Struct(">HBxII2xH")
_WRITE: Final = struct.Struct(f">HB5xQ{TOKEN_SIZE}s6xH")
_RANGE: Final = struct.Struct(">QI4x")
_IMMED: Final = 0x01
_RTV: Final = 0x02
_DEL_TKN: Final = 0x02
_RESERVED: Final = 0xFC
_TYPES: Final = (CHANGE_VULNERABLE, POINT_IN_TIME_ANY)


@dataclass(frozen=True, slots=True)
class PopulateList:
    immed: bool
    timeout: int
    ranges: tuple[Range, ...]


@dataclass(frozen=True, slots=True)
class WriteList:
    immed: bool
    delete: bool
    offset: int
    """Into the token's data, in blocks of the unit that is written to."""
    token: bytes
    ranges: tuple[Range, ...]


def parse_populate(data: bytes, block_size: int, blocks: int) -> PopulateList:
    """`data`: at least a byte. `ScsiError` ILLEGAL REQUEST."""
    if len(data) < _POPULATE.size:
        raise ScsiError(SenseKey.ILLEGAL_REQUEST, Asc.PARAMETER_LIST_LENGTH_ERROR)
    length, flags, timeout, kind, ranges_length = _POPULATE.unpack_from(data)
    if length < _POPULATE.size + _RANGE.size - 2:
        raise invalid_field_in_parameter_list(0)
    _check_flags(flags)
    if timeout > MAX_TIMEOUT:
        raise invalid_field_in_parameter_list(4)
    if flags & _RTV and kind not in _TYPES:
        raise invalid_field_in_parameter_list(8)
    ranges = _ranges(data, _POPULATE.size, ranges_length, block_size, blocks)
    return PopulateList(bool(flags & _IMMED), timeout or DEFAULT_TIMEOUT, ranges)


def parse_write(data: bytes, block_size: int, blocks: int) -> WriteList:
    """As `parse_populate`."""
    if len(data) < _WRITE.size:
        raise ScsiError(SenseKey.ILLEGAL_REQUEST, Asc.PARAMETER_LIST_LENGTH_ERROR)
    length, flags, offset, token, ranges_length = _WRITE.unpack_from(data)
    if length != _WRITE.size - 2 + ranges_length:
        raise invalid_field_in_parameter_list(0)
    _check_flags(flags)
    ranges = _ranges(data, _WRITE.size, ranges_length, block_size, blocks)
    return WriteList(bool(flags & _IMMED), bool(flags & _DEL_TKN), offset, token, ranges)


def _check_flags(flags: int) -> None:
    if wrong := flags & _RESERVED:
        raise invalid_field_in_parameter_list(2, wrong.bit_length() - 1)


def _ranges(
    data: bytes, start: int, length: int, block_size: int, blocks: int
) -> tuple[Range, ...]:
    """Incomplete descriptors at the end are ignored."""
    if length < _RANGE.size:
        raise invalid_field_in_parameter_list(start - 2)
    count = min(length, len(data) - start) // _RANGE.size
    if count > MAX_RANGES:
        raise ScsiError(SenseKey.ILLEGAL_REQUEST, Asc.TOO_MANY_SEGMENT_DESCRIPTORS)
    ranges = tuple(Range(*_RANGE.unpack_from(data, start + n * _RANGE.size)) for n in range(count))
    for number, extent in enumerate(ranges):
        if extent.lba + max(extent.blocks, 1) > blocks:
            raise ScsiError(
                SenseKey.ILLEGAL_REQUEST,
                Asc.LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE,
                field=start + number * _RANGE.size,
                in_cdb=False,
            )
    if sum(extent.blocks for extent in ranges) * block_size > MAX_TRANSFER_BYTES:
        raise invalid_field_in_parameter_list(start)
    taken = sorted((extent for extent in ranges if extent.blocks), key=lambda extent: extent.lba)
    if any(a.lba + a.blocks > b.lba for a, b in itertools.pairwise(taken)):
        raise invalid_field_in_parameter_list(start)
    return ranges
