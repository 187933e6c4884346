"""Block Limits VPD page of a device, and what a guest gets in its place (SBC-5)."""

from __future__ import annotations

import struct
from typing import Final

PAGE: Final = 0xB0
_SIZE: Final = 64
_HEADER: Final = struct.Struct(">BBH")
_CAW: Final = 5
"""MAXIMUM COMPARE AND WRITE LENGTH, one byte."""
_GRANULARITY: Final = slice(6, 8)
_MAX_TRANSFER: Final = slice(8, 12)
_OPTIMAL_TRANSFER: Final = slice(12, 16)
_MAX_ATOMIC: Final = (slice(44, 48), slice(56, 60))
"""MAXIMUM ATOMIC TRANSFER LENGTH, without and with boundaries."""


def max_transfer(page: bytes | bytearray) -> int:
    """MAXIMUM TRANSFER LENGTH in logical blocks; 0: the device reports none."""
    return int.from_bytes(page[_MAX_TRANSFER], "big")


def for_guest(page: bytes | None, peripheral: int, max_blocks: int) -> bytes:
    """The page with its header, no transfer in it longer than `max_blocks` logical blocks.

    Made, of nothing but that limit, where the device has no `page`; `peripheral` is its byte 0.
    """
    made = bytearray((page or bytes([peripheral, PAGE, 0, 0])).ljust(_SIZE, b"\0"))
    _HEADER.pack_into(made, 0, made[0], PAGE, len(made) - _HEADER.size)
    limit = min(max_transfer(made) or max_blocks, max_blocks)
    _put(made, _MAX_TRANSFER, limit)
    _put(made, _OPTIMAL_TRANSFER, _optimal(made, limit))
    # These cannot be split. COMPARE AND WRITE sends two blocks for each that it writes.
    made[_CAW] = min(made[_CAW], limit // 2)
    for atomic in _MAX_ATOMIC:
        _put(made, atomic, min(int.from_bytes(made[atomic], "big"), limit))
    return bytes(made)


def _optimal(page: bytearray, limit: int) -> int:
    """Whole granules of what the device likes best, within `limit`."""
    optimal = int.from_bytes(page[_OPTIMAL_TRANSFER], "big")
    if optimal <= limit:
        return optimal
    granule = int.from_bytes(page[_GRANULARITY], "big")
    return limit // granule * granule if 0 < granule <= limit else limit


def _put(page: bytearray, field: slice, value: int) -> None:
    page[field] = value.to_bytes(field.stop - field.start, "big")
