"""Persistent reservations as values: what a service action makes of them (SPC-6).

Nothing here knows a unit, a gate or a file: each function takes a `State` and returns the next one
with whom to tell, or raises `ReservationConflict`.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final

from vscsi_emu.scsi.cdb import Allowed
from vscsi_emu.scsi.sense import (
    Asc,
    ScsiError,
    SenseKey,
    invalid_field_in_cdb,
    invalid_field_in_parameter_list,
)

_SAS_TRANSPORT_ID: Final = 0x06
NAME_SIZE: Final = 8
"""Bytes of an initiator port's name."""
_SERVICE_ACTION_KEY: Final = 8
"""Where the parameter list has the SERVICE ACTION RESERVATION KEY."""


class ReservationConflict(Exception):
    """Ends a command with the status RESERVATION CONFLICT."""


@dataclass(frozen=True, slots=True)
class NexusId:
    """An I_T nexus by its ports' NAA names, 8 bytes each, which outlive connections and restarts.

    `relative_port` is what the target port is called in reports; it names nothing.
    """

    initiator: bytes
    target: bytes
    relative_port: int = field(compare=False)

    @property
    def transport_id(self) -> bytes:
        """TransportID of the initiator port, 24 bytes, in the format whose name is an NAA name:
        that of SAS (SPC-6)."""
        return (bytes([_SAS_TRANSPORT_ID]) + bytes(3) + self.initiator).ljust(24, b"\0")


class Kind(enum.IntEnum):
    """TYPE of a persistent reservation (SPC-6)."""

    WRITE_EXCLUSIVE = 0x1
    EXCLUSIVE_ACCESS = 0x3
    WRITE_EXCLUSIVE_REGISTRANTS_ONLY = 0x5
    EXCLUSIVE_ACCESS_REGISTRANTS_ONLY = 0x6
    WRITE_EXCLUSIVE_ALL_REGISTRANTS = 0x7
    EXCLUSIVE_ACCESS_ALL_REGISTRANTS = 0x8

    @property
    def all_registrants(self) -> bool:
        """Every registered nexus is a reservation holder."""
        return self >= Kind.WRITE_EXCLUSIVE_ALL_REGISTRANTS

    @property
    def shared(self) -> bool:
        """Every registered nexus has access: registrants only and all registrants."""
        return self >= Kind.WRITE_EXCLUSIVE_REGISTRANTS_ONLY

    @property
    def lets_through(self) -> Allowed:
        """What a command of an excluded nexus must be allowed under."""
        exclusive_access = (
            Kind.EXCLUSIVE_ACCESS,
            Kind.EXCLUSIVE_ACCESS_REGISTRANTS_ONLY,
            Kind.EXCLUSIVE_ACCESS_ALL_REGISTRANTS,
        )
        return Allowed.EXCLUSIVE_ACCESS if self in exclusive_access else Allowed.WRITE_EXCLUSIVE


@dataclass(frozen=True, slots=True)
class Reservation:
    """`holder` is None for the all registrants types."""

    kind: Kind
    holder: NexusId | None


@dataclass(frozen=True, slots=True)
class State:
    """Of one logical unit. `registrations`: reservation key of each registered nexus, never 0."""

    registrations: Mapping[NexusId, int] = field(default_factory=lambda: MappingProxyType({}))
    reservation: Reservation | None = None
    generation: int = 0
    """PRGENERATION: 32 bits, wraps."""
    aptpl: bool = False
    """Persist through power loss, as the last registration asked."""

    def holds(self, nexus: NexusId) -> bool:
        if self.reservation is None or nexus not in self.registrations:
            return False
        return self.reservation.holder in (None, nexus)

    def excludes(self, nexus: NexusId) -> Allowed | None:
        """None: full access. Else what a command of this nexus must be allowed under."""
        if self.reservation is None or self.holds(nexus):
            return None
        kind = self.reservation.kind
        if kind.shared and nexus in self.registrations:
            return None
        return kind.lets_through

    @property
    def holder_key(self) -> int:
        """RESERVATION KEY of READ RESERVATION; 0 for the all registrants types."""
        if self.reservation is None or self.reservation.holder is None:
            return 0
        return self.registrations[self.reservation.holder]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The next state; unit attentions to establish; nexuses whose commands are to be aborted, None
    where that is not asked for."""

    state: State
    attentions: tuple[tuple[NexusId, Asc], ...] = ()
    aborted: frozenset[NexusId] | None = None


Transition = Callable[[State, NexusId], Outcome]
"""A service action with its parameters, still to be given the state and the sender."""


# ── REGISTER, REGISTER AND IGNORE EXISTING KEY (SPC-6) ─────────────────────────────────────────


def register(
    *, key: int | None, new_key: int, aptpl: bool, siblings: Iterable[NexusId] = ()
) -> Transition:
    """Registers, changes or, with `new_key` 0, removes a key. `key` None: ignore the existing one.

    `siblings` are the same initiator port's other nexuses, when ALL_TG_PT includes them.
    """

    def transition(state: State, by: NexusId) -> Outcome:
        if key is not None and key != state.registrations.get(by, 0):
            raise ReservationConflict
        affected = (by, *siblings)
        attentions: tuple[tuple[NexusId, Asc], ...] = ()
        if new_key:
            keys = {**state.registrations, **dict.fromkeys(affected, new_key)}
            after = replace(state, registrations=MappingProxyType(keys))
        else:
            after, attentions = _unregister(state, affected, by)
        return Outcome(_counted(replace(after, aptpl=aptpl)), attentions)

    return transition


def _unregister(
    state: State, nexuses: Iterable[NexusId], by: NexusId
) -> tuple[State, tuple[tuple[NexusId, Asc], ...]]:
    """A holder that goes releases; those that shared the access are told."""
    after = _without(state, nexuses)
    before = state.reservation
    if before is None or after.reservation is not None or not before.kind.shared:
        return after, ()
    return after, _tell(after.registrations, Asc.RESERVATIONS_RELEASED, by)


# ── RESERVE, RELEASE, CLEAR (SPC-6) ────────────────────────────────────────────────────────────


def reserve(*, key: int, kind: Kind) -> Transition:
    def transition(state: State, by: NexusId) -> Outcome:
        _check_key(state, by, key)
        if state.reservation is not None:
            if not state.holds(by) or state.reservation.kind is not kind:
                raise ReservationConflict
            return Outcome(state)
        return Outcome(replace(state, reservation=_reservation(kind, by)))

    return transition


def release(*, key: int, kind: Kind | None) -> Transition:
    """`kind` None: a TYPE or SCOPE that no reservation has."""

    def transition(state: State, by: NexusId) -> Outcome:
        _check_key(state, by, key)
        if state.reservation is None or not state.holds(by):
            return Outcome(state)
        if state.reservation.kind is not kind:
            raise ScsiError(SenseKey.ILLEGAL_REQUEST, Asc.INVALID_RELEASE_OF_PERSISTENT_RESERVATION)
        told = state.registrations if kind.shared else ()
        return Outcome(replace(state, reservation=None), _tell(told, Asc.RESERVATIONS_RELEASED, by))

    return transition


def clear(*, key: int) -> Transition:
    def transition(state: State, by: NexusId) -> Outcome:
        _check_key(state, by, key)
        attentions = _tell(state.registrations, Asc.RESERVATIONS_PREEMPTED, by)
        return Outcome(_counted(_without(state, state.registrations)), attentions)

    return transition


# ── PREEMPT, PREEMPT AND ABORT (SPC-6) ─────────────────────────────────────────────────────────


def preempt(*, key: int, victim_key: int, kind: Kind | None, abort: bool) -> Transition:
    """Removes the registrations with `victim_key`; takes over their reservation, if they hold it.

    `kind` None: a TYPE or SCOPE that no reservation may have, refused only where it matters.
    """

    def transition(state: State, by: NexusId) -> Outcome:
        _check_key(state, by, key)
        before = state.reservation
        victims = {n for n, theirs in state.registrations.items() if theirs == victim_key}
        everyone = victim_key == 0 and before is not None and before.kind.all_registrants
        if victim_key == 0 and not everyone:
            raise invalid_field_in_parameter_list(_SERVICE_ACTION_KEY)
        if everyone or (before is not None and victim_key == state.holder_key):
            removed = (set(state.registrations) if everyone else victims) - {by}
            outcome = _take_over(state, by, removed, kind)
        elif victims:
            removed = victims
            after = _without(state, removed)
            outcome = Outcome(after, _tell(removed, Asc.REGISTRATIONS_PREEMPTED, by))
        else:
            raise ReservationConflict
        return Outcome(
            _counted(outcome.state),
            outcome.attentions,
            frozenset(removed) - {by} if abort else None,
        )

    return transition


def _take_over(state: State, by: NexusId, removed: set[NexusId], kind: Kind | None) -> Outcome:
    if kind is None:
        raise invalid_field_in_cdb(2)
    before = state.reservation
    after = replace(_without(state, removed), reservation=_reservation(kind, by))
    attentions = _tell(removed, Asc.REGISTRATIONS_PREEMPTED, by)
    if before is not None and before.kind is not kind:
        attentions += _tell(after.registrations, Asc.RESERVATIONS_RELEASED, by)
    return Outcome(after, attentions)


# ── Helpers ────────────────────────────────────────────────────────────────────────────────────


def _check_key(state: State, by: NexusId, key: int) -> None:
    """Only a registered nexus that knows its key may do this."""
    if state.registrations.get(by) != key:
        raise ReservationConflict


def _reservation(kind: Kind, by: NexusId) -> Reservation:
    return Reservation(kind, None if kind.all_registrants else by)


def _without(state: State, nexuses: Iterable[NexusId]) -> State:
    """These nexuses unregistered. A reservation without a holder is released."""
    gone = frozenset(nexuses)
    keys = {nexus: key for nexus, key in state.registrations.items() if nexus not in gone}
    reservation = state.reservation
    if reservation is not None and (not keys or reservation.holder in gone):
        reservation = None
    return replace(state, registrations=MappingProxyType(keys), reservation=reservation)


def _counted(state: State) -> State:
    return replace(state, generation=(state.generation + 1) & 0xFFFF_FFFF)


def _tell(nexuses: Iterable[NexusId], code: Asc, by: NexusId) -> tuple[tuple[NexusId, Asc], ...]:
    return tuple((nexus, code) for nexus in nexuses if nexus != by)
