"""What a target and a logical unit say of themselves: REPORT LUNS, REPORT SUPPORTED … (SPC-6)."""

import struct
from typing import Final

from vscsi_emu.scsi.cdb import (
    SERVICE_ACTION_OPCODES,
    Allowed,
    CommandType,
    Field,
    Flag,
    bit,
    command,
)
from vscsi_emu.scsi.lun import REPORT_LUNS_WLUN, encode_lun
from vscsi_emu.scsi.passing import timeout
from vscsi_emu.scsi.request import Request
from vscsi_emu.scsi.sense import invalid_field_in_cdb
from vscsi_emu.scsi.unit import LogicalUnit

# ── REPORT LUNS (SPC-6) ────────────────────────────────────────────────────────────────────────

_NOT_WELL_KNOWN: Final = 0x00
_WELL_KNOWN: Final = 0x01
_ALL: Final = 0x02
_ADMINISTRATIVE: Final = 0x10
_ADMINISTRATIVE_AND_PLAIN: Final = 0x11
_SMALLEST_ALLOCATION: Final = 16


@command(
    "REPORT LUNS",
    0xA0,
    12,
    flags=Flag.SKIPS_ATTENTION | Flag.ANY_LUN | Flag.WELL_KNOWN | Flag.ANY_ACCESS_STATE,
    allowed=Allowed.ALWAYS,
    select_report=Field(2),
    allocation_length=Field(6, 4),
)
def report_luns(request: Request) -> bytes:
    """The LUN inventory. No unit here is part of a conglomerate, so none is administrative."""
    if request.cdb["allocation_length"] < _SMALLEST_ALLOCATION:
        raise invalid_field_in_cdb(6, 7)
    luns = _selected(request)
    request.target.inventory_reported()
    entries = b"".join(map(encode_lun, luns))
    return struct.pack(">I4x", len(entries)) + entries


def _selected(request: Request) -> list[int]:
    luns = request.target.luns
    match request.cdb["select_report"]:
        case 0x00:
            return luns
        case 0x01:
            return [REPORT_LUNS_WLUN]
        case 0x02:
            return [*luns, REPORT_LUNS_WLUN]
        case 0x10 if request.lun in (0, REPORT_LUNS_WLUN):
            return []
        case 0x11 if request.lun in (0, REPORT_LUNS_WLUN):
            return luns
    # 12h among them: it must be sent to an administrative logical unit.
    raise invalid_field_in_cdb(2, 7)


# ── REPORT SUPPORTED OPERATION CODES (SPC-6) ───────────────────────────────────────────────────

_SERVACTV: Final = 0x01
_CTDP_ALL: Final = 0x02
_CTDP_ONE: Final = 0x80
_NOT_SUPPORTED: Final = 0x01
_SUPPORTED: Final = 0x03
_TIMEOUTS: Final = struct.Struct(">HxxII")


def _timeouts(unit: LogicalUnit, entry: CommandType) -> bytes:
    """Command timeouts descriptor. How long it takes normally is the storage's affair, of which
    NOMINAL COMMAND PROCESSING TIMEOUT 0 says nothing."""
    seconds = timeout(unit.peripheral, entry.named(bytes(entry.length)))
    return _TIMEOUTS.pack(_TIMEOUTS.size - 2, 0, seconds)


@command(
    "REPORT SUPPORTED OPERATION CODES",
    0xA3,
    12,
    service_action=0x0C,
    flags=Flag.DURING_OVERWRITE | Flag.IN_STANDBY,
    allowed=Allowed.WRITE_EXCLUSIVE,
    rctd=bit(2, 7),
    reporting_options=Field(2, high=2),
    requested_operation_code=Field(3),
    requested_service_action=Field(4, 2),
    allocation_length=Field(6, 4),
)
def report_supported_operation_codes(request: Request) -> bytes:
    if request.cdb["reporting_options"] == 0:
        return _all_commands(request)
    found = _requested(request)
    timeouts = bool(request.cdb["rctd"])
    if found is None:
        return struct.pack(">xBH", _NOT_SUPPORTED, 0)
    support = _SUPPORTED | (_CTDP_ONE if timeouts else 0)
    usage = found.usage_map
    descriptor = _timeouts(request.unit, found) if timeouts else b""
    return struct.pack(">xBH", support, len(usage)) + usage + descriptor


def _all_commands(request: Request) -> bytes:
    timeouts = bool(request.cdb["rctd"])
    descriptors = b"".join(
        struct.pack(
            ">BxHxBH",
            entry.opcode,
            entry.service_action or 0,
            (_SERVACTV if entry.service_action is not None else 0) | (_CTDP_ALL if timeouts else 0),
            entry.length,
        )
        + (_timeouts(request.unit, entry) if timeouts else b"")
        for entry in request.unit.commands
    )
    return struct.pack(">I", len(descriptors)) + descriptors


def _requested(request: Request) -> CommandType | None:
    """The command that one of the one-command formats asks for; None: not supported."""
    opcode = request.cdb["requested_operation_code"]
    action = request.cdb["requested_service_action"]
    has_actions = opcode in SERVICE_ACTION_OPCODES
    commands = request.unit.commands
    match request.cdb["reporting_options"]:
        case 1:
            # By operation code alone, which must be enough to name a command.
            if has_actions and commands.supports_opcode(opcode):
                raise invalid_field_in_cdb(2, 2)
            return commands.get(opcode, None)
        case 2:
            # By both, for commands that have a service action.
            if not has_actions and commands.supports_opcode(opcode):
                raise invalid_field_in_cdb(2, 2)
            return commands.get(opcode, action)
        case 3:
            # By both, 0 standing for the service action of a command that has none.
            if has_actions:
                return commands.get(opcode, action)
            return commands.get(opcode, None) if action == 0 else None
    raise invalid_field_in_cdb(2, 2)


# ── REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS (SPC-6) ─────────────────────────────────────────

_ATS, _ATSS, _CACAS, _CTSS, _LURS, _QTS = 0x80, 0x40, 0x20, 0x10, 0x08, 0x04
_QTSS, _ITNRS = 0x02, 0x01


@command(
    "REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS",
    0xA3,
    12,
    service_action=0x0D,
    flags=Flag.DURING_OVERWRITE | Flag.IN_STANDBY,
    allowed=Allowed.WRITE_EXCLUSIVE,
    repd=bit(2, 7),
    allocation_length=Field(6, 4),
)
def report_supported_task_management_functions(request: Request) -> bytes:
    """All but QUERY ASYNCHRONOUS EVENT, which virtio lacks."""
    functions = _ATS | _ATSS | _CACAS | _CTSS | _LURS | _QTS
    if request.cdb["allocation_length"] < 4:
        raise invalid_field_in_cdb(6, 7)
    # The extended format's timeouts stay 0: no indication.
    rest = 0x0C if request.cdb["repd"] else 0
    return bytes([functions, _QTSS | _ITNRS, 0, rest]) + bytes(rest)
