"""FORMAT UNIT (SBC-4 5.4): without protection information and without defects to manage."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Final

from vscsi_emu import _dataplane
from vscsi_emu.scsi.cdb import Field, bit, command
from vscsi_emu.scsi.overwriting import Failure, Overwriting
from vscsi_emu.scsi.request import Request, began
from vscsi_emu.scsi.sense import (
    Asc,
    DataOutTooShort,
    ScsiError,
    SenseKey,
    invalid_field_in_cdb,
    invalid_field_in_parameter_list,
)

_FOV: Final = 0x80
_NEED_FOV: Final = 0x78
"""DPRY, DCRT, STPF and IP."""
_IP: Final = 0x08
_IMMED: Final = 0x02
_KNOWN: Final = _FOV | _NEED_FOV | _IMMED

_PATTERN_DESCRIPTOR: Final = 4
_DEFAULT_PATTERN, _REPEATED_PATTERN = 0x00, 0x01


@command(
    "FORMAT UNIT",
    0x04,
    6,
    longlist=bit(1, 5),
    fmtdata=bit(1, 4),
    cmplst=bit(1, 3),
    defect_list_format=Field(1, high=2),
)
def format_unit(request: Request) -> Awaitable[bytes]:
    """No parameter list asks for the default: blocks of zeros, deallocated where that works."""
    unit = request.unit
    longlist, fmtdata = request.cdb["longlist"], request.cdb["fmtdata"]
    defects = request.cdb["cmplst"], request.cdb["defect_list_format"]
    if not fmtdata and (longlist or any(defects)):
        # Only a parameter list gives these a meaning.
        raise invalid_field_in_cdb(1, 5 if longlist else 3 if defects[0] else 2)
    if (reason := unit.readiness.not_ready) is not None:
        raise ScsiError(SenseKey.NOT_READY, reason)
    if unit.failure is not None and unit.failure.code is Asc.SANITIZE_COMMAND_FAILED:
        raise unit.failure.error
    if unit.write_protected:
        raise ScsiError(SenseKey.DATA_PROTECT, Asc.WRITE_PROTECTED)
    pattern, immed = None, False
    if fmtdata:
        pattern, immed = _parse(request.data_out, 8 if longlist else 4, unit.block_size)
    return unit.overwrite(
        Overwriting(
            _dataplane.Overwrite(unit.data_plane, pattern),
            Asc.FORMAT_IN_PROGRESS,
            Failure(Asc.MEDIUM_FORMAT_CORRUPTED),
            began(request, immed=immed),
        )
    )


def _parse(data: bytes, header: int, block_size: int) -> tuple[bytes | None, bool]:
    """The initialization pattern, None for the default, and IMMED (SBC-4 5.4.2)."""
    _require(data, header)
    flags = data[1]
    if data[0]:
        # PROTECTION FIELD USAGE among them.
        raise invalid_field_in_parameter_list(0, data[0].bit_length() - 1)
    wrong = flags & ~_KNOWN or (0 if flags & _FOV else flags & _NEED_FOV)
    if wrong:
        raise invalid_field_in_parameter_list(1, wrong.bit_length() - 1)
    # P_I_INFORMATION and PROTECTION INTERVAL EXPONENT of the long header.
    for byte in range(2, header // 2):
        if data[byte]:
            raise invalid_field_in_parameter_list(byte, data[byte].bit_length() - 1)
    if any(data[header // 2 : header]):
        # No block can be reassigned, so no list of defects can be obeyed.
        raise invalid_field_in_parameter_list(header // 2)
    pattern = _pattern(data, header, block_size) if flags & _IP else None
    return pattern, bool(flags & _IMMED)


def _pattern(data: bytes, at: int, block_size: int) -> bytes | None:
    """The initialization pattern descriptor at `at` (SBC-4 5.4.2)."""
    _require(data, at + _PATTERN_DESCRIPTOR)
    modifier, kind, length = data[at], data[at + 1], int.from_bytes(data[at + 2 : at + 4])
    if modifier:
        # SI among them: what it writes to hidden blocks, SANITIZE does better.
        raise invalid_field_in_parameter_list(at, modifier.bit_length() - 1)
    if kind not in (_DEFAULT_PATTERN, _REPEATED_PATTERN):
        raise invalid_field_in_parameter_list(at + 1)
    most = block_size if kind == _REPEATED_PATTERN else 0
    if length > most or (kind == _REPEATED_PATTERN and not length):
        raise invalid_field_in_parameter_list(at + 2)
    if kind == _DEFAULT_PATTERN:
        return None
    at += _PATTERN_DESCRIPTOR
    _require(data, at + length)
    return data[at : at + length]


def _require(data: bytes, length: int) -> None:
    if len(data) < length:
        raise DataOutTooShort(f"a parameter list of {length} bytes, data-out {len(data)} bytes")
