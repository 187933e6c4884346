"""PERSISTENT RESERVE IN and OUT (SPC-6).

REGISTER AND MOVE and REPLACE LOST RESERVATION are not supported, nor is SPEC_I_PT: each target
port is reached by one initiator port only, so there is no other nexus to register through it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from vscsi_emu.scsi import persistent
from vscsi_emu.scsi.cdb import Allowed, CommandType, Field, Flag, command
from vscsi_emu.scsi.persistent import Kind, State, Transition
from vscsi_emu.scsi.request import Request
from vscsi_emu.scsi.sense import (
    Asc,
    ScsiError,
    SenseKey,
    invalid_field_in_cdb,
    invalid_field_in_parameter_list,
)

_IN: Final = 0x5E
_OUT: Final = 0x5F
_LU_SCOPE: Final = 0

# ── PERSISTENT RESERVE IN ──────────────────────────────────────────────────────────────────────


def _in(name: str, service_action: int) -> Callable[[Callable[[Request], bytes]], CommandType]:
    """Reports are free to all, but under an SPC-2 reservation there is nothing to report."""

    def declare(report: Callable[[Request], bytes]) -> CommandType:
        def handler(request: Request) -> bytes:
            request.unit.reservations.refuse_while_reserved()
            return report(request)

        return command(
            f"PERSISTENT RESERVE IN, {name}",
            _IN,
            10,
            service_action=service_action,
            flags=Flag.IN_STANDBY,
            allowed=Allowed.PERSISTENT,
            allocation_length=Field(7, 2),
        )(handler)

    return declare


@_in("READ KEYS", 0x00)
def read_keys(request: Request) -> bytes:
    state = request.unit.reservations.state
    keys = b"".join(key.to_bytes(8) for key in state.registrations.values())
    return struct.pack(">II", state.generation, len(keys)) + keys


@_in("READ RESERVATION", 0x01)
def read_reservation(request: Request) -> bytes:
    state = request.unit.reservations.state
    held = b""
    if state.reservation is not None:
        held = struct.pack(">Q5xB2x", state.holder_key, _scope_type(state))
    return struct.pack(">II", state.generation, len(held)) + held


_CRH: Final = 0x10
_ATP_C: Final = 0x04
_PTPL_C: Final = 0x01
_TMV: Final = 0x80
_PTPL_A: Final = 0x01
_TYPE_MASK: Final = bytes.fromhex("ea01")
"""One bit a `Kind`: 1, 3, 5, 6, 7 in the first byte, 8 in the second."""


@_in("REPORT CAPABILITIES", 0x02)
def report_capabilities(request: Request) -> bytes:
    reservations = request.unit.reservations
    return (
        struct.pack(
            ">HBB",
            8,
            _CRH | _ATP_C | (_PTPL_C if reservations.can_persist else 0),
            _TMV | (_PTPL_A if reservations.state.aptpl else 0),
        )
        + _TYPE_MASK
        + bytes(2)
    )


_R_HOLDER: Final = 0x01


@_in("READ FULL STATUS", 0x03)
def read_full_status(request: Request) -> bytes:
    state = request.unit.reservations.state
    body = b""
    for nexus, key in state.registrations.items():
        holds = state.holds(nexus)
        transport_id = nexus.transport_id
        body += (
            struct.pack(
                ">Q4xBB4xHI",
                key,
                _R_HOLDER if holds else 0,
                _scope_type(state) if holds else 0,
                nexus.relative_port,
                len(transport_id),
            )
            + transport_id
        )
    return struct.pack(">II", state.generation, len(body)) + body


def _scope_type(state: State) -> int:
    return _LU_SCOPE << 4 | state.reservation.kind if state.reservation is not None else 0


# ── PERSISTENT RESERVE OUT ─────────────────────────────────────────────────────────────────────

_LIST: Final = struct.Struct(">QQ4xBx2x")
_SPEC_I_PT: Final = 0x08
_ALL_TG_PT: Final = 0x04
_APTPL: Final = 0x01


@dataclass(frozen=True, slots=True)
class _Parameters:
    key: int
    service_action_key: int
    all_target_ports: bool
    aptpl: bool


def _out(
    name: str, service_action: int, *, typed: bool
) -> Callable[[Callable[[Request, _Parameters], Transition]], CommandType]:
    """Declares a service action. `typed`: it looks at SCOPE and TYPE."""

    def declare(plan: Callable[[Request, _Parameters], Transition]) -> CommandType:
        async def handler(request: Request) -> bytes:
            reservations = request.unit.reservations
            reservations.refuse_while_reserved()
            transition = plan(request, _parameters(request))
            await reservations.apply(transition, request.nexus)
            return b""

        return command(
            f"PERSISTENT RESERVE OUT, {name}",
            _OUT,
            10,
            service_action=service_action,
            flags=Flag.IN_STANDBY,
            # Who may do it is a matter of registrations, not of access.
            allowed=Allowed.PERSISTENT,
            scope=Field(2, high=7, low=4, ignored=not typed),
            type=Field(2, high=3, ignored=not typed),
            parameter_list_length=Field(5, 4),
        )(handler)

    return declare


def _parameters(request: Request) -> _Parameters:
    if request.cdb["parameter_list_length"] != _LIST.size:
        raise ScsiError(SenseKey.ILLEGAL_REQUEST, Asc.PARAMETER_LIST_LENGTH_ERROR)
    key, service_action_key, flags = _LIST.unpack(request.parameter_list())
    if wrong := flags & ~(_ALL_TG_PT | _APTPL):
        raise invalid_field_in_parameter_list(20, wrong.bit_length() - 1)
    return _Parameters(key, service_action_key, bool(flags & _ALL_TG_PT), bool(flags & _APTPL))


def _kind(request: Request) -> Kind | None:
    """None: a SCOPE or TYPE that no reservation has."""
    if request.cdb["scope"] != _LU_SCOPE:
        return None
    try:
        return Kind(request.cdb["type"])
    except ValueError:
        return None


def _register(request: Request, parameters: _Parameters, key: int | None) -> Transition:
    if parameters.aptpl and not request.unit.reservations.can_persist:
        raise invalid_field_in_parameter_list(20, 0)
    initiator = request.nexus.id.initiator
    siblings = [
        nexus.id
        for nexus in request.unit.nexuses
        if parameters.all_target_ports and nexus.id.initiator == initiator
    ]
    return persistent.register(
        key=key,
        new_key=parameters.service_action_key,
        aptpl=parameters.aptpl,
        siblings=siblings,
    )


@_out("REGISTER", 0x00, typed=False)
def register(request: Request, parameters: _Parameters) -> Transition:
    return _register(request, parameters, parameters.key)


@_out("RESERVE", 0x01, typed=True)
def reserve(request: Request, parameters: _Parameters) -> Transition:
    kind = _kind(request)
    if kind is None:
        raise invalid_field_in_cdb(2)
    return persistent.reserve(key=parameters.key, kind=kind)


@_out("RELEASE", 0x02, typed=True)
def release(request: Request, parameters: _Parameters) -> Transition:
    return persistent.release(key=parameters.key, kind=_kind(request))


@_out("CLEAR", 0x03, typed=False)
def clear(request: Request, parameters: _Parameters) -> Transition:
    return persistent.clear(key=parameters.key)


@_out("PREEMPT", 0x04, typed=True)
def preempt(request: Request, parameters: _Parameters) -> Transition:
    return _preempt(request, parameters, abort=False)


@_out("PREEMPT AND ABORT", 0x05, typed=True)
def preempt_and_abort(request: Request, parameters: _Parameters) -> Transition:
    return _preempt(request, parameters, abort=True)


def _preempt(request: Request, parameters: _Parameters, *, abort: bool) -> Transition:
    return persistent.preempt(
        key=parameters.key,
        victim_key=parameters.service_action_key,
        kind=_kind(request),
        abort=abort,
    )


@_out("REGISTER AND IGNORE EXISTING KEY", 0x06, typed=False)
def register_and_ignore_existing_key(request: Request, parameters: _Parameters) -> Transition:
    return _register(request, parameters, None)
