"""LOG SENSE and LOG SELECT (SPC-4 6.8, 6.7)."""

import enum
import struct
from typing import Final

from vscsi_emu.scsi import log_pages
from vscsi_emu.scsi.cdb import Allowed, Field, Flag, bit, command
from vscsi_emu.scsi.log_pages import PAGES, Key, LogParameter
from vscsi_emu.scsi.request import Request
from vscsi_emu.scsi.sense import Asc, ScsiError, SenseKey, invalid_field_in_parameter_list
from vscsi_emu.scsi.unit import LogicalUnit

_SUPPORTED_PAGES: Final = (0x00, 0x00)
_SUPPORTED_SUBPAGES: Final = (0x00, 0xFF)
_ALL_SUBPAGES: Final = 0xFF
_DS: Final = 0x80
_SPF: Final = 0x40
_PAGE_CODE: Final = Field(2, high=5)
_PAGE_CONTROL: Final = Field(2, high=7, low=6)
_HEADER: Final = struct.Struct(">BBH")


class _Values(enum.IntEnum):
    """PC. Counters have a threshold too, the largest value they could have."""

    THRESHOLD = 0b00
    CUMULATIVE = 0b01
    DEFAULT_THRESHOLD = 0b10
    DEFAULT_CUMULATIVE = 0b11


# ── LOG SENSE ──────────────────────────────────────────────────────────────────────────────────


@command(
    "LOG SENSE",
    0x4D,
    10,
    flags=Flag.IN_STANDBY,
    allowed=Allowed.ALWAYS,
    page_control=_PAGE_CONTROL,
    page_code=_PAGE_CODE,
    subpage_code=Field(3),
    parameter_pointer=Field(5, 2),
    allocation_length=Field(7, 2),
)
def log_sense(request: Request) -> bytes:
    cdb = request.cdb
    key, first = (cdb["page_code"], cdb["subpage_code"]), cdb["parameter_pointer"]
    values = _Values(cdb["page_control"])
    if key in PAGES:
        parameters = [p for p in PAGES[key](request.unit) if p.code >= first]
        if not parameters:
            raise cdb.invalid("parameter_pointer")
        return _page(key, b"".join(_sensed(p, values) for p in parameters), _DS)
    if key not in (_SUPPORTED_PAGES, _SUPPORTED_SUBPAGES):
        known = any(page == key[0] for page, _ in (_SUPPORTED_PAGES, *PAGES))
        raise cdb.invalid("subpage_code" if known else "page_code")
    if first:
        # These two have no parameters.
        raise cdb.invalid("parameter_pointer")
    supported = sorted([_SUPPORTED_PAGES, _SUPPORTED_SUBPAGES, *PAGES])
    if key == _SUPPORTED_PAGES:
        return _page(key, bytes(page for page, subpage in supported if not subpage), 0)
    return _page(key, b"".join(bytes(entry) for entry in supported), 0)


def _page(key: Key, body: bytes, ds: int) -> bytes:
    page, subpage = key
    return _HEADER.pack(ds | (_SPF if subpage else 0) | page, subpage, len(body)) + body


def _sensed(parameter: LogParameter, values: _Values) -> bytes:
    """List parameters are what they are, whatever PC says."""
    head, size = bytes(parameter)[: -len(parameter.value)], len(parameter.value)
    if not parameter.counts or values is _Values.CUMULATIVE:
        return bytes(parameter)
    return head + (bytes(size) if values is _Values.DEFAULT_CUMULATIVE else b"\xff" * size)


# ── LOG SELECT ─────────────────────────────────────────────────────────────────────────────────


@command(
    "LOG SELECT",
    0x4C,
    10,
    flags=Flag.IN_STANDBY,
    pcr=bit(1, 1),
    sp=bit(1, 0),
    page_control=_PAGE_CONTROL,
    page_code=_PAGE_CODE,
    subpage_code=Field(3),
    parameter_list_length=Field(7, 2),
)
def log_select(request: Request) -> bytes:
    """Resets counters. A list of parameters may come, but none of ours can be set by it."""
    cdb, unit = request.cdb, request.unit
    pages, values = _selected(request), _Values(cdb["page_control"])
    pcr, sp = cdb["pcr"], cdb["sp"]
    if cdb["parameter_list_length"]:
        if pcr:
            raise cdb.invalid("pcr")
        for name in ("page_code", "subpage_code"):
            if cdb[name]:
                raise cdb.invalid(name)
        _check_list(unit, request.parameter_list(), values, save=bool(sp))
        return b""
    if sp and values in (_Values.THRESHOLD, _Values.CUMULATIVE):
        # Nothing is saved; default values never would be.
        raise cdb.invalid("sp")
    if (pcr or values is _Values.DEFAULT_CUMULATIVE) and log_pages.reset(unit, pages):
        unit.establish(Asc.LOG_PARAMETERS_CHANGED, but=request.nexus)
    return b""


def _selected(request: Request) -> list[Key]:
    """The pages that PAGE CODE and SUBPAGE CODE name, with nothing sent (SPC-4 6.7.2)."""
    code, subpage = request.cdb["page_code"], request.cdb["subpage_code"]
    if code == 0 and subpage in (0, _ALL_SUBPAGES):
        return list(PAGES)
    pages = [key for key in PAGES if key[0] == code and subpage in (key[1], _ALL_SUBPAGES)]
    if not pages:
        known = any(key[0] == code for key in PAGES)
        raise request.cdb.invalid("subpage_code" if known else "page_code")
    return pages


def _check_list(unit: LogicalUnit, data: bytes, values: _Values, *, save: bool) -> None:
    """That pages and parameters are there, in ascending order, and are not to change."""
    offset, before = 0, (-1, -1)
    while offset < len(data):
        if len(data) < offset + _HEADER.size:
            raise _too_short()
        head, subpage, length = _HEADER.unpack_from(data, offset)
        key = (head & 0x3F, subpage)
        if key not in PAGES or bool(head & _SPF) != bool(subpage) or key <= before:
            raise invalid_field_in_parameter_list(offset, 5)
        if save and not head & _DS and values in (_Values.THRESHOLD, _Values.CUMULATIVE):
            raise invalid_field_in_parameter_list(offset, 7)
        if len(data) < offset + _HEADER.size + length:
            raise invalid_field_in_parameter_list(offset + 2)
        _check_parameters(unit, key, data[: offset + _HEADER.size + length], offset, values)
        offset, before = offset + _HEADER.size + length, key


def _check_parameters(unit: LogicalUnit, key: Key, data: bytes, page: int, values: _Values) -> None:
    known = {parameter.code: parameter for parameter in PAGES[key](unit)}
    offset, before = page + _HEADER.size, -1
    while offset < len(data):
        if len(data) < offset + 4:
            raise invalid_field_in_parameter_list(page + 2)
        code, control, length = struct.unpack_from(">HBB", data, offset)
        if code not in known or code <= before:
            raise invalid_field_in_parameter_list(offset)
        parameter = known[code]
        if wrong := (control ^ parameter.control) & ~_ignored(parameter):
            raise invalid_field_in_parameter_list(offset + 2, wrong.bit_length() - 1)
        sensed = _sensed(parameter, values)
        if length != len(parameter.value) or len(data) < offset + len(sensed):
            raise invalid_field_in_parameter_list(offset + 3)
        if data[offset + 4 : offset + len(sensed)] != sensed[4:]:
            raise invalid_field_in_parameter_list(offset + 4)
        offset, before = offset + len(sensed), code


_DU: Final = 0x80
_OBSOLETE: Final = 0x40
_TMC: Final = 0x0C


def _ignored(parameter: LogParameter) -> int:
    """Bits of the parameter control byte that say nothing here (SPC-4 7.3.2.2.2)."""
    return _OBSOLETE | _TMC | (0 if parameter.counts else _DU)


def _too_short() -> ScsiError:
    return ScsiError(SenseKey.ILLEGAL_REQUEST, Asc.PARAMETER_LIST_LENGTH_ERROR)
