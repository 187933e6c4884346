"""REPORT and SET PRIORITY (SPC-4 6.34, 6.44)."""

import struct
from typing import Final

from vscsi_emu.scsi.cdb import Allowed, Field, Flag, command
from vscsi_emu.scsi.nexus import Nexus
from vscsi_emu.scsi.request import Request
from vscsi_emu.scsi.sense import (
    Asc,
    ScsiError,
    SenseKey,
    invalid_field_in_cdb,
    invalid_field_in_parameter_list,
)

_LAYOUT: Final = struct.Struct(">BxH2xH")
"""Priority, RELATIVE TARGET PORT IDENTIFIER, bytes of the TransportID that follows."""

# ── REPORT PRIORITY ────────────────────────────────────────────────────────────────────────────


@command(
    "REPORT PRIORITY",
    0xA3,
    12,
    service_action=0x0E,
    flags=Flag.IN_STANDBY,
    allowed=Allowed.PERSISTENT,
    priority_reported=Field(2, high=7, low=6),
    allocation_length=Field(6, 4),
)
def report_priority(request: Request) -> bytes:
    """0 stands for the initial command priority."""
    assigned, this = request.unit.priorities.assigned, request.nexus.id
    match request.cdb["priority_reported"]:
        case 0b00:
            reported = {this: assigned.get(this, 0)}
        case 0b01:
            reported = dict(assigned)
        case _:
            raise invalid_field_in_cdb(2, 7)
    body = b"".join(
        _LAYOUT.pack(priority, name.relative_port, len(name.transport_id)) + name.transport_id
        for name, priority in reported.items()
    )
    return struct.pack(">I", len(body)) + body


# ── SET PRIORITY ───────────────────────────────────────────────────────────────────────────────


@command(
    "SET PRIORITY",
    0xA4,
    12,
    service_action=0x0E,
    nexus_to_set=Field(2, high=7, low=6),
    parameter_list_length=Field(6, 4),
)
def set_priority(request: Request) -> bytes:
    unit, data = request.unit, request.parameter_list()
    match request.cdb["nexus_to_set"]:
        case 0b00:
            if not data:
                raise _too_short()
            unit.priorities.set(request.nexus.id, _priority(data))
        case 0b01:
            named = _named(request, data)
            unit.priorities.set(named.id, _priority(data))
            named.establish(Asc.PRIORITY_CHANGED)
        case 0b10:
            unit.priorities.clear()
            unit.establish(Asc.PRIORITY_CHANGED, but=request.nexus)
        case _:
            raise invalid_field_in_cdb(2, 7)
    return b""


def _priority(data: bytes) -> int:
    return data[0] & 0x0F


def _named(request: Request, data: bytes) -> Nexus:
    """The nexus that the list names by its ports."""
    if len(data) < _LAYOUT.size:
        raise _too_short()
    _, port, length = _LAYOUT.unpack_from(data)
    transport_id = data[_LAYOUT.size : _LAYOUT.size + length]
    if len(transport_id) < length:
        raise _too_short()
    here = [nexus for nexus in request.unit.nexuses if nexus.id.relative_port == port]
    if not here:
        raise invalid_field_in_parameter_list(2)
    for nexus in here:
        if nexus.id.transport_id == transport_id:
            return nexus
    raise invalid_field_in_parameter_list(_LAYOUT.size)


def _too_short() -> ScsiError:
    return ScsiError(SenseKey.ILLEGAL_REQUEST, Asc.PARAMETER_LIST_LENGTH_ERROR)
