"""SANITIZE (SBC-4 5.30).

What the storage keeps of freed or overwritten blocks (snapshots, copies on write, a disk's own
spare blocks) is beyond the reach of any of these.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Final, NamedTuple

from vscsi_emu import _dataplane
from vscsi_emu.scsi.cdb import Field, bit, command
from vscsi_emu.scsi.overwriting import Failure, Overwriting
from vscsi_emu.scsi.request import Request, began
from vscsi_emu.scsi.sense import (
    Asc,
    ScsiError,
    SenseKey,
    invalid_field_in_cdb,
    invalid_field_in_parameter_list,
)

_HEADER: Final = 4
_INVERT: Final = 0x80
_TEST: Final = 0x60
_COUNT: Final = 0x1F

_IMMED: Final = bit(1, 7)
_ZNR: Final = Field(1, high=6, low=6, ignored=True)
"""Of zoned block devices."""
_AUSE: Final = bit(1, 5)
_PARAMETER_LIST_LENGTH: Final = Field(7, 2)
_AUSE_BIT: Final = 5


@command(
    "SANITIZE, OVERWRITE",
    0x48,
    10,
    service_action=0x01,
    immed=_IMMED,
    znr=_ZNR,
    ause=_AUSE,
    parameter_list_length=_PARAMETER_LIST_LENGTH,
)
def overwrite(request: Request) -> Awaitable[bytes]:
    unit = request.unit
    mode = _check(request)
    if not _HEADER < request.cdb["parameter_list_length"] <= _HEADER + unit.block_size:
        raise invalid_field_in_cdb(7)
    data = request.parameter_list()
    count, length = data[0] & _COUNT, int.from_bytes(data[2:4])
    if data[0] & _TEST:
        raise invalid_field_in_parameter_list(0, 6)
    if not count:
        raise invalid_field_in_parameter_list(0, 4)
    if data[1]:
        raise invalid_field_in_parameter_list(1, data[1].bit_length() - 1)
    if not 0 < length <= len(data) - _HEADER:
        raise invalid_field_in_parameter_list(2)
    pattern, invert = data[_HEADER : _HEADER + length], bool(data[0] & _INVERT)
    return _start(
        request,
        _dataplane.Overwrite(unit.data_plane, pattern, passes=count, invert=invert),
        mode,
    )


@command(
    "SANITIZE, BLOCK ERASE",
    0x48,
    10,
    service_action=0x02,
    immed=_IMMED,
    znr=_ZNR,
    ause=_AUSE,
    parameter_list_length=_PARAMETER_LIST_LENGTH,
)
def block_erase(request: Request) -> Awaitable[bytes]:
    return _erase(request)


@command(
    "SANITIZE, CRYPTOGRAPHIC ERASE",
    0x48,
    10,
    service_action=0x03,
    immed=_IMMED,
    znr=_ZNR,
    ause=_AUSE,
    parameter_list_length=_PARAMETER_LIST_LENGTH,
)
def cryptographic_erase(request: Request) -> Awaitable[bytes]:
    """There is no key to change here; that nothing can be read afterwards is what it promises."""
    return _erase(request)


@command(
    "SANITIZE, EXIT FAILURE MODE",
    0x48,
    10,
    service_action=0x1F,
    immed=Field(1, high=7, low=7, ignored=True),
    znr=_ZNR,
    ause=Field(1, high=5, low=5, ignored=True),
    parameter_list_length=_PARAMETER_LIST_LENGTH,
)
async def exit_failure_mode(request: Request) -> bytes:
    """GOOD too where nothing has failed: there is no failure mode afterwards."""
    _no_parameter_list(request)
    failure = request.unit.failure
    if failure is not None and failure.code is Asc.SANITIZE_COMMAND_FAILED:
        if failure.restricted:
            raise invalid_field_in_cdb(1, 4)
        await request.unit.forget_failure()
    return b""


def _erase(request: Request) -> Awaitable[bytes]:
    mode = _check(request)
    _no_parameter_list(request)
    return _start(request, _dataplane.Overwrite(request.unit.data_plane), mode)


def _no_parameter_list(request: Request) -> None:
    if request.cdb["parameter_list_length"]:
        raise invalid_field_in_cdb(7)


class _Mode(NamedTuple):
    immed: bool
    ause: bool


def _check(request: Request) -> _Mode:
    """Of a command that may begin."""
    unit = request.unit
    mode = _Mode(bool(request.cdb["immed"]), bool(request.cdb["ause"]))
    if (reason := unit.readiness.not_ready) is not None:
        raise ScsiError(SenseKey.NOT_READY, reason)
    if unit.write_protected:
        raise ScsiError(SenseKey.DATA_PROTECT, Asc.WRITE_PROTECTED)
    if mode.ause and unit.failure is not None and unit.failure.restricted:
        raise invalid_field_in_cdb(1, _AUSE_BIT)
    return mode


def _start(request: Request, work: _dataplane.Overwrite, mode: _Mode) -> Awaitable[bytes]:
    failure = Failure(Asc.SANITIZE_COMMAND_FAILED, restricted=not mode.ause)
    return request.unit.overwrite(
        Overwriting(work, Asc.SANITIZE_IN_PROGRESS, failure, began(request, immed=mode.immed))
    )
