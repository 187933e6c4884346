"""MODE SENSE and MODE SELECT (SPC-6; block descriptors SBC-4 6.5.2)."""

from __future__ import annotations

import struct
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Final

from vscsi_emu.scsi.cdb import OBSOLETE_LUN, Allowed, Feature, Field, Flag, bit, command
from vscsi_emu.scsi.mode_pages import ALL_PAGES, PageControl, page_header_size, page_key
from vscsi_emu.scsi.request import Request
from vscsi_emu.scsi.sense import (
    Asc,
    ScsiError,
    SenseKey,
    invalid_field_in_cdb,
    invalid_field_in_parameter_list,
)
from vscsi_emu.scsi.unit import LogicalUnit

_WP: Final = 0x80
_DPOFUA: Final = 0x10
_LONGLBA: Final = 0x01
_SHORT_DESCRIPTOR: Final = struct.Struct(">II")
_LONG_DESCRIPTOR: Final = struct.Struct(">Q4xI")

# ── MODE SENSE ─────────────────────────────────────────────────────────────────────────────────


@command(
    "MODE SENSE(6)",
    0x1A,
    6,
    flags=Flag.IN_STANDBY,
    allowed=Allowed.WRITE_EXCLUSIVE,
    lun=OBSOLETE_LUN,
    dbd=bit(1, 3),
    page_control=Field(2, high=7, low=6),
    page_code=Field(2, high=5),
    subpage_code=Field(3),
    allocation_length=Field(4),
)
def mode_sense_6(request: Request) -> bytes:
    descriptor = b"" if request.cdb["dbd"] else _block_descriptor(request.unit, long=False)
    body = descriptor + _pages(request)
    header = struct.pack(">BBBB", 3 + len(body), 0, _device_specific(request.unit), len(descriptor))
    return header + body


@command(
    "MODE SENSE(10)",
    0x5A,
    10,
    flags=Flag.IN_STANDBY,
    allowed=Allowed.WRITE_EXCLUSIVE,
    llbaa=bit(1, 4),
    lun=OBSOLETE_LUN,
    dbd=bit(1, 3),
    page_control=Field(2, high=7, low=6),
    page_code=Field(2, high=5),
    subpage_code=Field(3),
    allocation_length=Field(7, 2),
)
def mode_sense_10(request: Request) -> bytes:
    long = bool(request.cdb["llbaa"]) and not request.cdb["dbd"]
    descriptor = b"" if request.cdb["dbd"] else _block_descriptor(request.unit, long=long)
    body = descriptor + _pages(request)
    header = struct.pack(
        ">HBBBxH",
        6 + len(body),
        0,
        _device_specific(request.unit),
        _LONGLBA if long else 0,
        len(descriptor),
    )
    return header + body


def _device_specific(unit: LogicalUnit) -> int:
    """DEVICE-SPECIFIC PARAMETER (SBC-4 6.5.1): READ and WRITE have DPO and FUA."""
    return (_WP if unit.write_protected else 0) | _DPOFUA


def _block_descriptor(unit: LogicalUnit, *, long: bool) -> bytes:
    if long:
        return _LONG_DESCRIPTOR.pack(_blocks(unit), unit.block_size)
    return _SHORT_DESCRIPTOR.pack(min(_blocks(unit), 0xFFFF_FFFF), unit.block_size)


def _blocks(unit: LogicalUnit) -> int:
    """0 while there is no medium."""
    return unit.blocks if unit.readiness.loaded else 0


def _pages(request: Request) -> bytes:
    control = PageControl(request.cdb["page_control"])
    if control is PageControl.SAVED and not request.unit.mode_pages.savable:
        raise ScsiError(
            SenseKey.ILLEGAL_REQUEST, Asc.SAVING_PARAMETERS_NOT_SUPPORTED, field=2, bit=7
        )
    code, subpage = request.cdb["page_code"], request.cdb["subpage_code"]
    mode_pages = request.unit.mode_pages
    keys = mode_pages.select(code, subpage)
    if not keys:
        known = code == ALL_PAGES or any(key[0] == code for key in mode_pages.pages)
        raise invalid_field_in_cdb(*((3, 7) if known else (2, 5)))
    return b"".join(mode_pages.sense(key, control) for key in keys)


# ── MODE SELECT ────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class _Header:
    """A mode parameter header, as far as MODE SELECT looks at it."""

    size: int
    long: bool
    descriptor_offset: int
    """Where BLOCK DESCRIPTOR LENGTH is."""
    descriptor_length: int


_SP: Final = bit(1, 0, needs=Feature.SAVED_STATE)


@command(
    "MODE SELECT(6)",
    0x15,
    6,
    flags=Flag.IN_STANDBY,
    pf=bit(1, 4),
    sp=_SP,
    parameter_list_length=Field(4),
)
def mode_select_6(request: Request) -> bytes | Awaitable[bytes]:
    data = request.parameter_list()
    if not data:
        return _changed(request, [])
    _need(len(data) >= 4)
    return _select(request, data, _Header(4, False, 3, data[3]))


@command(
    "MODE SELECT(10)",
    0x55,
    10,
    flags=Flag.IN_STANDBY,
    pf=bit(1, 4),
    sp=_SP,
    parameter_list_length=Field(7, 2),
)
def mode_select_10(request: Request) -> bytes | Awaitable[bytes]:
    data = request.parameter_list()
    if not data:
        return _changed(request, [])
    _need(len(data) >= 8)
    length = int.from_bytes(data[6:8])
    return _select(request, data, _Header(8, bool(data[4] & _LONGLBA), 6, length))


def _select(request: Request, data: bytes, header: _Header) -> bytes | Awaitable[bytes]:
    """Checks everything before it changes anything. MODE DATA LENGTH, MEDIUM TYPE and the
    device-specific parameter say nothing in MODE SELECT."""
    _check_block_descriptor(request.unit, data, header)
    return _changed(request, _checked_pages(request, data, header.size + header.descriptor_length))


def _changed(request: Request, pages: list[bytes]) -> bytes | Awaitable[bytes]:
    """SP saves all pages, also where none is sent (SPC-4 6.11)."""
    unit = request.unit
    save = unit.mode_pages.savable and bool(request.cdb["sp"])
    waiting = unit.select_mode_pages(pages, by=request.nexus, save=save)
    return _settled(waiting) if waiting is not None else b""


async def _settled(waiting: Awaitable[None]) -> bytes:
    await waiting
    return b""


def _check_block_descriptor(unit: LogicalUnit, data: bytes, header: _Header) -> None:
    """There may be one; it may not ask for another capacity or block length."""
    layout = _LONG_DESCRIPTOR if header.long else _SHORT_DESCRIPTOR
    if header.descriptor_length == 0:
        return
    if header.descriptor_length != layout.size:
        raise invalid_field_in_parameter_list(header.descriptor_offset)
    _need(len(data) >= header.size + layout.size)
    blocks, size = layout.unpack_from(data, header.size)
    # Byte 4 of the short descriptor is reserved; it lies on top of the 3-byte block length.
    most = 0xFFFF_FFFF if not header.long else 0xFFFF_FFFF_FFFF_FFFF
    if blocks not in (0, most, min(_blocks(unit), most)):
        raise invalid_field_in_parameter_list(header.size)
    if size != unit.block_size:
        raise invalid_field_in_parameter_list(header.size + (12 if header.long else 5))


def _checked_pages(request: Request, data: bytes, offset: int) -> list[bytes]:
    mode_pages = request.unit.mode_pages
    pages = []
    if offset < len(data) and not request.cdb["pf"]:
        # What follows would be in a vendor specific format.
        raise invalid_field_in_cdb(1, 4)
    while offset < len(data):
        size = page_header_size(data[offset])
        _need(len(data) >= offset + size)
        key = page_key(data[offset : offset + 2])
        if key not in mode_pages.pages:
            raise invalid_field_in_parameter_list(offset, 5)
        expected = mode_pages.value(key)
        # PS, which is reserved here, is ignored: initiators send back what they have sensed.
        if data[offset + 1 : offset + size] != expected[1:size]:
            raise invalid_field_in_parameter_list(offset + size - (2 if size == 4 else 1))
        _need(len(data) >= offset + len(expected))
        page = expected[:size] + data[offset + size : offset + len(expected)]
        if (wrong := mode_pages.wrong_bit(page)) is not None:
            raise invalid_field_in_parameter_list(offset + wrong[0], wrong[1])
        pages.append(page)
        offset += len(expected)
    return pages


def _need(enough: bool) -> None:
    """A parameter list that ends within a header, a descriptor or a page."""
    if not enough:
        raise ScsiError(SenseKey.ILLEGAL_REQUEST, Asc.PARAMETER_LIST_LENGTH_ERROR)
