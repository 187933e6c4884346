"""REPORT and SET TARGET PORT GROUPS (SPC-4 6.37, 6.45)."""

import struct
from collections.abc import Awaitable, Iterator
from typing import Final

from vscsi_emu.scsi.cdb import Allowed, Field, Flag, command
from vscsi_emu.scsi.port_groups import AccessState
from vscsi_emu.scsi.request import Request
from vscsi_emu.scsi.sense import (
    Asc,
    ScsiError,
    SenseKey,
    invalid_field_in_cdb,
    invalid_field_in_parameter_list,
)
from vscsi_emu.scsi.unit import LogicalUnit

_LENGTH_ONLY: Final = 0
_EXTENDED: Final = 1
_TRANSITION_SECONDS: Final = 0
"""IMPLICIT TRANSITION TIME: not specified. A transition is over before anybody can ask."""
_MOST_PORTS: Final = 0xFF
"""Of one descriptor."""
_SUPPORTED: Final = 0x0F
"""U_SUP, S_SUP, AN_SUP, AO_SUP."""


@command(
    "REPORT TARGET PORT GROUPS",
    0xA3,
    12,
    service_action=0x0A,
    flags=Flag.ANY_ACCESS_STATE,
    allowed=Allowed.ALWAYS,
    parameter_data_format=Field(1, high=7, low=5),
    allocation_length=Field(6, 4),
)
def report_target_port_groups(request: Request) -> bytes:
    wanted = request.cdb["parameter_data_format"]
    if wanted not in (_LENGTH_ONLY, _EXTENDED):
        raise invalid_field_in_cdb(1, 7)
    body = b"".join(_descriptors(request.unit))
    if wanted == _EXTENDED:
        body = struct.pack(">BB2x", _EXTENDED << 4, _TRANSITION_SECONDS) + body
    return struct.pack(">I", len(body)) + body


def _descriptors(unit: LogicalUnit) -> Iterator[bytes]:
    for group, ports in unit.port_groups.ports.items():
        status = unit.port_groups.status(group)
        for first in range(0, len(ports), _MOST_PORTS):
            some = ports[first : first + _MOST_PORTS]
            yield struct.pack(
                ">BBHxBxB", status.state, _SUPPORTED, group, status.cause, len(some)
            ) + b"".join(struct.pack(">2xH", port) for port in some)


_HEADER_SIZE: Final = 4
_DESCRIPTOR: Final = struct.Struct(">BxH")


@command(
    "SET TARGET PORT GROUPS",
    0xA4,
    12,
    service_action=0x0A,
    flags=Flag.ANY_ACCESS_STATE,
    parameter_list_length=Field(6, 4),
)
def set_target_port_groups(request: Request) -> bytes | Awaitable[bytes]:
    """All groups of the list at once, or none."""
    data = request.parameter_list()
    if not data:
        return b""
    if len(data) < _HEADER_SIZE or (len(data) - _HEADER_SIZE) % _DESCRIPTOR.size:
        raise ScsiError(SenseKey.ILLEGAL_REQUEST, Asc.PARAMETER_LIST_LENGTH_ERROR)
    return _set(request, _checked(request.unit, data))


async def _set(request: Request, states: dict[int, AccessState]) -> bytes:
    await request.unit.port_groups.change(states, by=request.nexus)
    return b""


def _checked(unit: LogicalUnit, data: bytes) -> dict[int, AccessState]:
    known = unit.port_groups.ports
    states: dict[int, AccessState] = {}
    for offset in range(_HEADER_SIZE, len(data), _DESCRIPTOR.size):
        state, group = _DESCRIPTOR.unpack_from(data, offset)
        if state & 0xF0:
            raise invalid_field_in_parameter_list(offset, 7)
        if state > max(AccessState):
            raise invalid_field_in_parameter_list(offset, 3)
        if group not in known or states.get(group, state) != state:
            # Two states for one group are an invalid combination.
            raise invalid_field_in_parameter_list(offset + 2)
        states[group] = AccessState(state)
    return states
