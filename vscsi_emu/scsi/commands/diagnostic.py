"""SEND DIAGNOSTIC and RECEIVE DIAGNOSTIC RESULTS (SPC-4 6.42, 6.28): self-tests, and the page that
lists the diagnostic pages, which has but itself."""

from __future__ import annotations

import struct
from collections.abc import Awaitable
from contextlib import suppress
from typing import Final

from vscsi_emu.scsi.cdb import Allowed, Field, Flag, bit, command
from vscsi_emu.scsi.request import Request
from vscsi_emu.scsi.self_tests import Result, SelfTestCode, SelfTests
from vscsi_emu.scsi.sense import Asc, ScsiError, SenseKey, invalid_field_in_parameter_list
from vscsi_emu.scsi.unit import LogicalUnit

_SUPPORTED_PAGES: Final = 0x00
_HEADER: Final = struct.Struct(">BxH")

_OFFLINE: Final = Field(1, high=1, low=0, ignored=True)
"""DEVOFFL and UNITOFFL allow a self-test what this one does not do."""


@command(
    "SEND DIAGNOSTIC",
    0x1D,
    6,
    flags=Flag.IN_STANDBY,
    self_test_code=Field(1, high=7, low=5),
    pf=bit(1, 4),
    self_test=bit(1, 2),
    offline=_OFFLINE,
    parameter_list_length=Field(3, 2),
)
def send_diagnostic(request: Request) -> bytes | Awaitable[bytes]:
    """A self-test, or a diagnostic page, or nothing."""
    cdb, tests = request.cdb, request.unit.self_tests
    try:
        code = SelfTestCode(cdb["self_test_code"])
    except ValueError:
        raise cdb.invalid("self_test_code") from None
    default, pf, length = cdb["self_test"], cdb["pf"], cdb["parameter_list_length"]
    if default and code is not SelfTestCode.NONE:
        raise cdb.invalid("self_test_code")
    if length and (default or code is not SelfTestCode.NONE):
        raise cdb.invalid("parameter_list_length")
    if code is SelfTestCode.ABORT_BACKGROUND:
        _abort(request)
        return b""
    if not default and code is SelfTestCode.NONE:
        if length and not pf:
            # What follows would be in a vendor specific format.
            raise cdb.invalid("pf")
        _check_page(request)
        return b""
    if (busy := tests.in_progress) is not None:
        raise busy
    if code.extended and not request.unit.readiness.loaded:
        raise ScsiError(SenseKey.NOT_READY, Asc.MEDIUM_NOT_PRESENT)
    if default:
        return _default(request.unit)
    if code.background:
        request.reply.good()
        return _in_background(tests, code)
    return _in_foreground(tests, code)


def _abort(request: Request) -> None:
    tests = request.unit.self_tests
    if not tests.abort(Result.ABORTED_BY_SEND_DIAGNOSTIC):
        raise request.cdb.invalid("self_test_code")


async def _default(unit: LogicalUnit) -> bytes:
    """The storage below us takes what was written; without it there is nothing to do."""
    try:
        await unit.flush()
    except ScsiError as error:
        raise ScsiError(SenseKey.HARDWARE_ERROR, Asc.LOGICAL_UNIT_FAILED_SELF_TEST) from error
    return b""


async def _in_foreground(tests: SelfTests, code: SelfTestCode) -> bytes:
    await tests.run(code)
    return b""


async def _in_background(tests: SelfTests, code: SelfTestCode) -> bytes:
    # The log page says whether it failed; it is no deferred error.
    with suppress(ScsiError):
        await tests.run(code)
    return b""


def _check_page(request: Request) -> None:
    """There is one page to send, and nothing in it."""
    data = request.parameter_list()
    if not data:
        return
    if len(data) < _HEADER.size:
        raise request.cdb.invalid("parameter_list_length")
    page, length = _HEADER.unpack_from(data)
    if page != _SUPPORTED_PAGES:
        raise invalid_field_in_parameter_list(0)
    if len(data) < _HEADER.size + length:
        raise request.cdb.invalid("parameter_list_length")
    if length:
        raise invalid_field_in_parameter_list(2)


@command(
    "RECEIVE DIAGNOSTIC RESULTS",
    0x1C,
    6,
    flags=Flag.IN_STANDBY,
    allowed=Allowed.WRITE_EXCLUSIVE,
    pcv=bit(1, 0),
    page_code=Field(2),
    allocation_length=Field(3, 2),
)
def receive_diagnostic_results(request: Request) -> bytes:
    """Without PCV the page that was sent last, which can only have been this one."""
    if request.cdb["pcv"] and request.cdb["page_code"] != _SUPPORTED_PAGES:
        raise request.cdb.invalid("page_code")
    pages = bytes([_SUPPORTED_PAGES])
    return _HEADER.pack(_SUPPORTED_PAGES, len(pages)) + pages
