"""The reservations of one logical unit: who is kept out, now and after a restart.

Both kinds are here, since each must refuse the other: RESERVE and RELEASE of SPC-2 (with the
exceptions that SPC-4 calls compatible reservation handling), and persistent reservations.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from vscsi_emu import _dataplane
from vscsi_emu.scsi.cdb import Allowed
from vscsi_emu.scsi.persistent import (
    NAME_SIZE,
    Kind,
    NexusId,
    Outcome,
    Reservation,
    ReservationConflict,
    State,
    Transition,
)
from vscsi_emu.scsi.store import SavedStateError, load, save
from vscsi_emu.scsi.task_set import AcaActive, abort_others

if TYPE_CHECKING:
    from vscsi_emu.scsi.nexus import Nexus
    from vscsi_emu.scsi.store import StateStore
    from vscsi_emu.scsi.unit import LogicalUnit

_SECTION: Final = "persistent-reservations"


class Reservations:
    """Of one unit. `store` None: nothing persists through power loss (PTPL_C 0).

    Raises `SavedStateError`.
    """

    def __init__(self, unit: LogicalUnit, store: StateStore | None) -> None:
        self._unit = unit
        self._store = store
        self._lock = asyncio.Lock()
        self.state = State()
        self.reserved_by: Nexus | None = None
        """The holder of an SPC-2 reservation."""
        saved = load(store, _SECTION)
        if saved is not None:
            self.state = _from_json(saved)

    @property
    def can_persist(self) -> bool:
        """PTPL_C."""
        return self._store is not None

    # ── Who is kept out ────────────────────────────────────────────────────────────────────────

    def check(self, nexus: Nexus, allowed: Allowed) -> None:
        """`ReservationConflict` for a command of `nexus` that is `allowed` only so far."""
        if self.reserved_by not in (None, nexus) and Allowed.RESERVED not in allowed:
            raise ReservationConflict
        excludes = self.state.excludes(nexus.id)
        if excludes is not None and excludes not in allowed:
            raise ReservationConflict

    def closed_classes(self, nexus: Nexus) -> int:
        """The ``CLASS_*`` of which some command would conflict."""
        if self.reserved_by not in (None, nexus):
            return _dataplane.CLASS_ALL
        match self.state.excludes(nexus.id):
            case None:
                return 0
            case Allowed.WRITE_EXCLUSIVE:
                # VERIFY is let through, but SYNCHRONIZE CACHE of the same class is not.
                return _dataplane.CLASS_WRITE | _dataplane.CLASS_MEDIA
            case _:
                return _dataplane.CLASS_ALL

    # ── Persistent reservations (SPC-6) ────────────────────────────────────────────────────────

    async def apply(self, transition: Transition, by: Nexus) -> None:
        """One PERSISTENT RESERVE OUT after the other. When it returns, the new state is saved if
        it must persist, no command runs any more that it excludes, and the aborts are over."""
        async with self._lock:
            # An SPC-2 reservation may have come while this one waited.
            self.refuse_while_reserved()
            outcome = transition(self.state, by.id)
            self._check_aca(outcome, by)
            await self._save(outcome.state)
            self.state = outcome.state
            self._unit.update_gates()
            self._establish(outcome)
            await self._unit.quiesce()
            await self._abort(outcome.aborted or frozenset(), by)

    def refuse_while_reserved(self) -> None:
        """Under an SPC-2 reservation all PERSISTENT RESERVE commands conflict, the holder's too."""
        if self.reserved_by is not None:
            raise ReservationConflict

    async def _save(self, after: State) -> None:
        if not (after.aptpl or self.state.aptpl):
            return
        if after.aptpl and _to_json(after) == _to_json(self.state):
            return
        await save(self._store, _SECTION, _to_json(after) if after.aptpl else None)

    def _establish(self, outcome: Outcome) -> None:
        for name, code in outcome.attentions:
            for nexus in self._unit.nexuses:
                if nexus.id == name:
                    nexus.establish(code)

    async def _abort(self, names: frozenset[NexusId], by: Nexus) -> None:
        preempted = [nexus for nexus in self._unit.nexuses if nexus.id in names]
        for nexus in preempted:
            nexus.prevents_removal = False
            nexus.data_plane.clear_aca()
        # The sender's own include this one; they have been waited for.
        others = [nexus for nexus in preempted if nexus is not by]
        copies = [run for nexus in others for run in nexus.abort_copies()]
        await abort_others(others)
        for run in copies:
            await run.over()

    def _check_aca(self, outcome: Outcome, by: Nexus) -> None:
        """Of other nexuses' commands the data plane lets PREEMPT AND ABORT through only, and that
        is processed only where it clears the condition (SPC-4 5.13.11.2.6)."""
        faulted = [nexus for nexus in self._unit.nexuses if nexus.data_plane.faulted]
        aborted = outcome.aborted
        if aborted is None or by in faulted:
            return
        if any(nexus.id not in aborted for nexus in faulted):
            raise AcaActive

    # ── RESERVE and RELEASE of SPC-2 ───────────────────────────────────────────────────────────

    async def reserve(self, nexus: Nexus) -> None:
        async with self._lock:
            if self._compatible(nexus):
                return
            if self.state.registrations or self.reserved_by not in (None, nexus):
                raise ReservationConflict
            self.reserved_by = nexus
            self._unit.update_gates()
            await self._unit.quiesce()

    def release(self, nexus: Nexus) -> None:
        """Of one that does not hold the reservation: no effect."""
        if self._compatible(nexus):
            return
        if self.state.registrations:
            raise ReservationConflict
        self.lost(nexus)

    def lost(self, nexus: Nexus) -> None:
        """The nexus is lost, and its SPC-2 reservation with it."""
        if self.reserved_by is nexus:
            self.reset()

    def reset(self) -> None:
        """Logical unit reset: persistent reservations stay."""
        self.reserved_by = None
        self._unit.update_gates()

    def power_on(self) -> None:
        """Power was lost: of persistent reservations those with APTPL stay (SPC-6 5.14)."""
        self.state = replace(self.state, generation=0) if self.state.aptpl else State()
        self.reset()

    def _compatible(self, nexus: Nexus) -> bool:
        """CRH: who has the access anyhow gets GOOD, and nothing changes (SPC-4 5.13.3)."""
        state = self.state
        if state.reservation is None or nexus.id not in state.registrations:
            return False
        return state.holds(nexus.id) or state.reservation.kind.shared


# ── The store's form ───────────────────────────────────────────────────────────────────────────


def _to_json(state: State) -> dict[str, Any]:
    """All but PRGENERATION, which starts at 0 after each power on (SPC-6)."""
    held = state.reservation
    return {
        "registrations": [
            {**_name_to_json(name), "key": f"{key:016x}"}
            for name, key in state.registrations.items()
        ],
        "reservation": held
        and {
            "type": int(held.kind),
            "holder": held.holder and _name_to_json(held.holder),
        },
    }


def _name_to_json(name: NexusId) -> dict[str, Any]:
    return {
        "initiator": name.initiator.hex(),
        "target": name.target.hex(),
        "relative-port": name.relative_port,
    }


def _from_json(value: Any) -> State:
    try:
        keys = {_name_from_json(entry): int(entry["key"], 16) for entry in value["registrations"]}
        held = value["reservation"]
        reservation = None
        if held is not None:
            holder = held["holder"] and _name_from_json(held["holder"])
            reservation = Reservation(Kind(held["type"]), holder)
    except (KeyError, TypeError, ValueError) as error:
        raise SavedStateError(f"saved persistent reservations are damaged: {error!r}") from None
    state = State(MappingProxyType(keys), reservation, aptpl=True)
    if not _consistent(state):
        raise SavedStateError("saved persistent reservations contradict themselves")
    return state


def _name_from_json(value: Any) -> NexusId:
    initiator, target = bytes.fromhex(value["initiator"]), bytes.fromhex(value["target"])
    if len(initiator) != NAME_SIZE:
        raise ValueError(f"initiator {value['initiator']}")
    return NexusId(initiator, target, int(value["relative-port"]))


def _consistent(state: State) -> bool:
    if not all(0 < key < 1 << 64 for key in state.registrations.values()):
        return False
    held = state.reservation
    if held is None:
        return True
    if held.kind.all_registrants:
        return held.holder is None and bool(state.registrations)
    return held.holder in state.registrations
