"""Invariants of persistent reservations under any sequence of service actions."""

from hypothesis import given
from hypothesis import strategies as st

from vscsi_emu.scsi import Asc, ScsiError
from vscsi_emu.scsi.cdb import Allowed
from vscsi_emu.scsi.persistent import (
    Kind,
    NexusId,
    Outcome,
    ReservationConflict,
    State,
    Transition,
    clear,
    preempt,
    register,
    release,
    reserve,
)

NEXUSES = [NexusId(bytes([n]) * 8, b"target", n + 1) for n in range(4)]
KEYS = st.integers(0, 3)
KINDS = st.sampled_from(Kind)
REGISTERS = st.builds(
    register, key=st.none() | KEYS, new_key=KEYS, aptpl=st.booleans(), siblings=st.just(())
)
TRANSITIONS = st.one_of(
    REGISTERS,
    st.builds(reserve, key=KEYS, kind=KINDS),
    st.builds(release, key=KEYS, kind=st.none() | KINDS),
    st.builds(clear, key=KEYS),
    st.builds(preempt, key=KEYS, victim_key=KEYS, kind=st.none() | KINDS, abort=st.booleans()),
)
STEPS = st.lists(st.tuples(TRANSITIONS, st.sampled_from(NEXUSES)), max_size=30)


def step(state: State, transition: Transition, by: NexusId) -> Outcome | None:
    """None: refused, and nothing changed, since states are values."""
    try:
        return transition(state, by)
    except (ReservationConflict, ScsiError):
        return None


@given(STEPS)
def test_invariants(steps: list[tuple[Transition, NexusId]]) -> None:
    state = State()
    for transition, by in steps:
        outcome = step(state, transition, by)
        if outcome is None:
            continue
        before, state = state, outcome.state
        held = state.reservation
        assert all(0 < key < 4 for key in state.registrations.values())
        if held is not None:
            assert held.kind.all_registrants == (held.holder is None)
            assert any(state.holds(nexus) for nexus in NEXUSES), "somebody can release it"
        assert state.generation in (before.generation, before.generation + 1)
        assert all(nexus != by for nexus, _ in outcome.attentions), "the sender knows"
        aborted = outcome.aborted or frozenset()
        assert by not in aborted
        for nexus in NEXUSES:
            lost = nexus in before.registrations and nexus not in state.registrations
            told = {code for name, code in outcome.attentions if name == nexus}
            if lost and nexus != by:
                assert told & {Asc.REGISTRATIONS_PREEMPTED, Asc.RESERVATIONS_PREEMPTED}
            else:
                assert told <= {Asc.RESERVATIONS_RELEASED}
            if nexus in aborted:
                assert lost


@given(STEPS, st.sampled_from(NEXUSES))
def test_exclusion_is_by_kind(steps: list[tuple[Transition, NexusId]], nexus: NexusId) -> None:
    """SPC-4 5.13.1: written as the standard's table is, independent of `State.excludes`."""
    state = State()
    for transition, by in steps:
        outcome = step(state, transition, by)
        state = outcome.state if outcome else state
    registered = nexus in state.registrations
    expected = None
    if state.reservation is not None:
        match state.reservation.kind:
            case Kind.WRITE_EXCLUSIVE if state.reservation.holder != nexus:
                expected = Allowed.WRITE_EXCLUSIVE
            case Kind.EXCLUSIVE_ACCESS if state.reservation.holder != nexus:
                expected = Allowed.EXCLUSIVE_ACCESS
            case Kind.WRITE_EXCLUSIVE_REGISTRANTS_ONLY | Kind.WRITE_EXCLUSIVE_ALL_REGISTRANTS if (
                not registered
            ):
                expected = Allowed.WRITE_EXCLUSIVE
            case Kind.EXCLUSIVE_ACCESS_REGISTRANTS_ONLY | Kind.EXCLUSIVE_ACCESS_ALL_REGISTRANTS if (
                not registered
            ):
                expected = Allowed.EXCLUSIVE_ACCESS
    assert state.excludes(nexus) == expected
