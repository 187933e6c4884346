"""PERSISTENT RESERVE IN and OUT, to the byte (SPC-6)."""

import asyncio
import struct

import pytest

from tests.unit.scsi.harness import (
    Recorder,
    Sense,
    attention,
    bad_cdb,
    bad_list,
    good,
    initiator_naa,
    make_target,
    make_unit,
    parse_fixed,
    refused,
    send,
)
from tests.unit.scsi.reserving import (
    CLEAR,
    EA,
    EAAR,
    EARO,
    KINDS,
    PREEMPT,
    PREEMPT_AND_ABORT,
    REGISTER,
    REGISTER_AND_IGNORE,
    REGISTER_AND_MOVE,
    RELEASE,
    RESERVE,
    WE,
    WEAR,
    WERO,
    MemoryStore,
    conflict,
    keys,
    ok,
    pr_in,
    pr_out,
    register,
    reservation,
)
from vscsi_emu import _dataplane
from vscsi_emu.scsi import Asc, LogicalUnit, SenseKey, Status, Target, handle
from vscsi_emu.scsi.store import SavedStateError

TEST_UNIT_READY = "00"
READ_10 = "28 00 00000000 00 0001 00"
WRITE_10 = "2a 00 00000000 00 0001 00"
VERIFY_10 = "2f 00 00000000 00 0001 00"
SYNCHRONIZE_CACHE_10 = "35"


def cluster(count: int = 2, unit: LogicalUnit | None = None) -> list[Target]:
    """A unit behind several HBAs."""
    unit = unit or make_unit()
    return [make_target(unit, number=number) for number in range(count)]


def sense_of(command: Recorder) -> Sense:
    return parse_fixed(command.sense)


def closed(target: Target) -> int:
    return target.nexuses[0].data_plane.closed


def pending(target: Target) -> tuple[Asc, ...]:
    return target.nexuses[0].pending


# ── PERSISTENT RESERVE IN ──────────────────────────────────────────────────────────────────────


def test_nothing_registered() -> None:
    (a,) = cluster(1)
    assert pr_in(a, 0) == bytes(8)
    assert pr_in(a, 1) == bytes(8)
    assert pr_in(a, 3) == bytes(8)


def test_read_keys() -> None:
    a, b = cluster()
    register(a, 0x0102030405060708)
    register(b, 0xF1F2F3F4F5F6F7F8)
    assert pr_in(b, 0) == bytes.fromhex("00000002 00000010 0102030405060708 f1f2f3f4f5f6f7f8")
    assert pr_in(b, 0, length=9) == bytes.fromhex("00000002 00000010 01")


def test_read_reservation() -> None:
    (a,) = cluster(1)
    register(a, 0xABCD)
    ok(pr_out(a, RESERVE, 0xABCD, kind=EARO))
    assert pr_in(a, 1) == bytes.fromhex("00000001 00000010 000000000000abcd 00000000 00 06 0000")


def test_read_reservation_of_all_registrants_has_no_key() -> None:
    (a,) = cluster(1)
    register(a, 0xABCD)
    ok(pr_out(a, RESERVE, 0xABCD, kind=WEAR))
    assert pr_in(a, 1) == bytes.fromhex("00000001 00000010 0000000000000000 00000000 00 07 0000")


def test_report_capabilities() -> None:
    (a,) = cluster(1)
    assert pr_in(a, 2) == bytes.fromhex("0008 14 80 ea01 0000")


def test_report_capabilities_where_state_is_kept() -> None:
    (a,) = cluster(1, make_unit(store=MemoryStore()))
    assert pr_in(a, 2) == bytes.fromhex("0008 15 80 ea01 0000")
    ok(pr_out(a, REGISTER, 0, 1, flags=0x01))
    assert pr_in(a, 2) == bytes.fromhex("0008 15 81 ea01 0000")
    ok(pr_out(a, REGISTER, 1, 1))
    assert pr_in(a, 2) == bytes.fromhex("0008 15 80 ea01 0000")


def test_read_full_status() -> None:
    a, b = cluster()
    register(a, 0xA)
    register(b, 0xB)
    ok(pr_out(b, RESERVE, 0xB, kind=EA))
    transport_id = "06 000000 {} 000000000000000000000000"
    assert pr_in(a, 3) == bytes.fromhex(
        "00000002 00000060"
        "000000000000000a 00000000 00 00 00000000 0001 00000018"
        + transport_id.format(initiator_naa(0).hex())
        + "000000000000000b 00000000 01 03 00000000 0002 00000018"
        + transport_id.format(initiator_naa(1).hex())
    )


def test_read_full_status_of_all_registrants() -> None:
    a, b = cluster()
    register(a, 0xA)
    register(b, 0xB)
    ok(pr_out(b, RESERVE, 0xB, kind=EAAR))
    data = pr_in(a, 3)
    for start in (8, 56):
        assert data[start + 12 : start + 14] == bytes([0x01, EAAR])


@pytest.mark.parametrize("action", [4, 5, 0x1F])
def test_unknown_service_actions_of_in(action: int) -> None:
    (a,) = cluster(1)
    assert refused(a, bytes([0x5E, action])) == bad_cdb(1, 4)


# ── REGISTER ───────────────────────────────────────────────────────────────────────────────────


def test_register_change_and_unregister() -> None:
    (a,) = cluster(1)
    ok(pr_out(a, REGISTER, 0, 0x1))
    assert keys(a) == (1, [1])
    conflict(pr_out(a, REGISTER, 0x2, 0x3))
    conflict(pr_out(a, REGISTER, 0, 0x3))
    assert keys(a) == (1, [1])
    ok(pr_out(a, REGISTER, 0x1, 0x2))
    assert keys(a) == (2, [2])
    ok(pr_out(a, REGISTER, 0x2, 0))
    assert keys(a) == (3, [])


def test_an_unregistered_nexus_has_the_key_0() -> None:
    (a,) = cluster(1)
    conflict(pr_out(a, REGISTER, 0x1, 0x2))
    ok(pr_out(a, REGISTER, 0, 0))
    assert keys(a) == (1, [])


def test_register_and_ignore_existing_key() -> None:
    (a,) = cluster(1)
    ok(pr_out(a, REGISTER_AND_IGNORE, 0xDEAD, 0x1))
    ok(pr_out(a, REGISTER_AND_IGNORE, 0xDEAD, 0x2))
    assert keys(a) == (2, [2])
    ok(pr_out(a, REGISTER_AND_IGNORE, 0xDEAD, 0))
    assert keys(a) == (3, [])
    ok(pr_out(a, REGISTER_AND_IGNORE, 0xDEAD, 0))
    assert keys(a) == (4, [])


def test_register_looks_at_neither_scope_nor_type() -> None:
    (a,) = cluster(1)
    ok(pr_out(a, REGISTER, 0, 1, scope=0xF, kind=0xF))


def test_all_target_ports() -> None:
    unit = make_unit()
    one = make_target(unit)
    two = Target(
        {0: unit},
        naa=bytes.fromhex("3000000000000009"),
        initiator=one.name.initiator,
        relative_port=9,
    )
    other = make_target(unit, number=1)
    two.nexuses[0].take()
    ok(pr_out(one, REGISTER, 0, 0x7, flags=0x04))
    assert keys(other) == (1, [7, 7])
    ok(pr_out(two, REGISTER, 0x7, 0x8))
    assert keys(other) == (2, [7, 8])
    ok(pr_out(one, REGISTER, 0x7, 0, flags=0x04))
    assert keys(other) == (3, [])


def test_the_same_initiator_through_another_target_port_is_another_nexus() -> None:
    unit = make_unit()
    one = make_target(unit)
    two = Target({0: unit}, naa=bytes.fromhex("3000000000000009"), initiator=one.name.initiator)
    two.nexuses[0].take()
    register(one, 1)
    ok(pr_out(one, RESERVE, 1, kind=EA))
    conflict(send(two, WRITE_10))


@pytest.mark.parametrize(("flags", "bit"), [(0x08, 3), (0x80, 7), (0x02, 1), (0x0C, 3), (0x01, 0)])
def test_flags_that_are_refused(flags: int, bit: int) -> None:
    """SPEC_I_PT, reserved bits, and APTPL where nothing is kept."""
    (a,) = cluster(1)
    assert sense_of(pr_out(a, REGISTER, 0, 1, flags=flags)) == bad_list(20, bit)
    assert keys(a) == (0, [])


@pytest.mark.parametrize("length", [0, 23, 25])
@pytest.mark.parametrize("action", [REGISTER, RESERVE, CLEAR])
def test_parameter_list_length(action: int, length: int) -> None:
    (a,) = cluster(1)
    assert sense_of(pr_out(a, action, kind=WE, length=length)) == Sense(
        SenseKey.ILLEGAL_REQUEST, Asc.PARAMETER_LIST_LENGTH_ERROR
    )


@pytest.mark.parametrize("action", [REGISTER_AND_MOVE, 8, 0x1F])
def test_unknown_service_actions_of_out(action: int) -> None:
    (a,) = cluster(1)
    assert sense_of(pr_out(a, action)) == bad_cdb(1, 4)


# ── RESERVE ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", KINDS)
def test_reserve_and_release(kind: int) -> None:
    (a,) = cluster(1)
    conflict(pr_out(a, RESERVE, 0x1, kind=kind))
    register(a, 0x1)
    conflict(pr_out(a, RESERVE, 0x2, kind=kind))
    ok(pr_out(a, RESERVE, 0x1, kind=kind))
    ok(pr_out(a, RESERVE, 0x1, kind=kind))
    assert reservation(a) == (0 if kind in (WEAR, EAAR) else 1, kind)
    conflict(pr_out(a, RELEASE, 0x2, kind=kind))
    ok(pr_out(a, RELEASE, 0x1, kind=kind))
    assert reservation(a) is None
    assert keys(a) == (1, [1]), "RESERVE and RELEASE do not count"


def test_reserve_conflicts_with_another_holder_and_another_type() -> None:
    a, b = cluster()
    register(a, 0xA)
    register(b, 0xB)
    ok(pr_out(a, RESERVE, 0xA, kind=WERO))
    conflict(pr_out(b, RESERVE, 0xB, kind=WERO))
    conflict(pr_out(a, RESERVE, 0xA, kind=EARO))


def test_every_registrant_holds_an_all_registrants_reservation() -> None:
    a, b = cluster()
    register(a, 0xA)
    register(b, 0xB)
    ok(pr_out(a, RESERVE, 0xA, kind=WEAR))
    ok(pr_out(b, RESERVE, 0xB, kind=WEAR))
    conflict(pr_out(b, RESERVE, 0xB, kind=EAAR))
    ok(pr_out(b, RELEASE, 0xB, kind=WEAR))
    assert reservation(b) is None
    assert pending(a) == (Asc.RESERVATIONS_RELEASED,)


@pytest.mark.parametrize(("scope", "kind"), [(0, 0), (0, 2), (0, 4), (0, 9), (1, WE), (2, EA)])
@pytest.mark.parametrize("action", [RESERVE, PREEMPT])
def test_no_such_scope_or_type(action: int, scope: int, kind: int) -> None:
    (a,) = cluster(1)
    register(a, 1)
    ok(pr_out(a, RESERVE, 1, kind=WERO))
    refusal = sense_of(pr_out(a, action, 1, 1, scope=scope, kind=kind))
    assert refusal == bad_cdb(2, None)
    assert reservation(a) == (1, WERO)


def test_release_of_another_type() -> None:
    a, b = cluster()
    register(a, 0xA)
    register(b, 0xB)
    ok(pr_out(a, RELEASE, 0xA, kind=WE))
    ok(pr_out(a, RESERVE, 0xA, kind=WE))
    ok(pr_out(b, RELEASE, 0xB, kind=EA))
    for scope, kind in ((0, EA), (0, 0), (1, WE)):
        assert sense_of(pr_out(a, RELEASE, 0xA, scope=scope, kind=kind)) == Sense(
            SenseKey.ILLEGAL_REQUEST, Asc.INVALID_RELEASE_OF_PERSISTENT_RESERVATION
        )
    assert reservation(b) == (0xA, WE)


@pytest.mark.parametrize("kind", KINDS)
def test_release_tells_those_who_shared_the_access(kind: int) -> None:
    a, b, stranger = cluster(3)
    register(a, 0xA)
    register(b, 0xB)
    ok(pr_out(a, RESERVE, 0xA, kind=kind))
    ok(pr_out(a, RELEASE, 0xA, kind=kind))
    told = kind not in (WE, EA)
    assert pending(b) == ((Asc.RESERVATIONS_RELEASED,) if told else ())
    assert not pending(a)
    assert not pending(stranger)


@pytest.mark.parametrize("kind", KINDS)
def test_a_holder_that_unregisters_releases(kind: int) -> None:
    a, b = cluster()
    register(a, 0xA)
    register(b, 0xB)
    ok(pr_out(a, RESERVE, 0xA, kind=kind))
    ok(pr_out(a, REGISTER, 0xA, 0))
    if kind in (WEAR, EAAR):
        assert reservation(a) == (0, kind)
        assert not pending(b)
        ok(pr_out(b, REGISTER, 0xB, 0))
    elif kind in (WERO, EARO):
        assert pending(b) == (Asc.RESERVATIONS_RELEASED,)
    else:
        assert not pending(b)
    assert reservation(a) is None


def test_a_holder_that_changes_its_key_keeps_the_reservation() -> None:
    (a,) = cluster(1)
    register(a, 1)
    ok(pr_out(a, RESERVE, 1, kind=EA))
    ok(pr_out(a, REGISTER, 1, 2))
    assert reservation(a) == (2, EA)


# ── CLEAR ──────────────────────────────────────────────────────────────────────────────────────


def test_clear() -> None:
    a, b, stranger = cluster(3)
    register(a, 0xA)
    register(b, 0xB)
    ok(pr_out(b, RESERVE, 0xB, kind=EA))
    conflict(pr_out(stranger, CLEAR, 0))
    conflict(pr_out(a, CLEAR, 0xB))
    ok(pr_out(a, CLEAR, 0xA))
    assert keys(a) == (3, [])
    assert reservation(a) is None
    assert pending(b) == (Asc.RESERVATIONS_PREEMPTED,)
    assert not pending(a)
    assert not pending(stranger)


# ── PREEMPT ────────────────────────────────────────────────────────────────────────────────────


def test_preempt_without_a_reservation_removes_registrations() -> None:
    a, b, c = cluster(3)
    register(a, 0xA)
    register(b, 0xB)
    register(c, 0xB)
    conflict(pr_out(a, PREEMPT, 0xC, 0xB))
    conflict(pr_out(a, PREEMPT, 0xA, 0xC))
    assert sense_of(pr_out(a, PREEMPT, 0xA, 0)) == bad_list(8)
    ok(pr_out(a, PREEMPT, 0xA, 0xB))
    assert keys(a) == (4, [0xA])
    assert pending(b) == pending(c) == (Asc.REGISTRATIONS_PREEMPTED,)
    assert reservation(a) is None


def test_a_removed_registration_of_its_own_is_told_nobody() -> None:
    a, b = cluster()
    register(a, 0xA)
    register(b, 0xA)
    ok(pr_out(a, PREEMPT, 0xA, 0xA))
    assert keys(a) == (3, [])
    assert not pending(a)
    assert pending(b) == (Asc.REGISTRATIONS_PREEMPTED,)


def test_preempt_takes_the_reservation_over() -> None:
    a, b, c = cluster(3)
    register(a, 0xA)
    register(b, 0xB)
    register(c, 0xC)
    ok(pr_out(b, RESERVE, 0xB, kind=WERO))
    ok(pr_out(a, PREEMPT, 0xA, 0xB, kind=WERO))
    assert reservation(a) == (0xA, WERO)
    assert keys(a) == (4, [0xA, 0xC])
    assert pending(b) == (Asc.REGISTRATIONS_PREEMPTED,)
    assert not pending(c)


def test_preempt_with_another_type_tells_the_rest() -> None:
    a, b, c = cluster(3)
    register(a, 0xA)
    register(b, 0xB)
    register(c, 0xC)
    ok(pr_out(b, RESERVE, 0xB, kind=WERO))
    ok(pr_out(a, PREEMPT, 0xA, 0xB, kind=EA))
    assert reservation(a) == (0xA, EA)
    assert pending(b) == (Asc.REGISTRATIONS_PREEMPTED,)
    assert pending(c) == (Asc.RESERVATIONS_RELEASED,)
    assert not pending(a)


def test_preempt_of_another_registration_leaves_the_reservation() -> None:
    a, b, c = cluster(3)
    register(a, 0xA)
    register(b, 0xB)
    register(c, 0xC)
    ok(pr_out(b, RESERVE, 0xB, kind=WERO))
    ok(pr_out(a, PREEMPT, 0xA, 0xC, kind=0xF, scope=0xF))
    assert reservation(a) == (0xB, WERO)
    assert keys(a) == (4, [0xA, 0xB])
    assert sense_of(pr_out(a, PREEMPT, 0xA, 0, kind=WERO)) == bad_list(8)


def test_preempt_of_itself_changes_the_type() -> None:
    a, b = cluster()
    register(a, 0xA)
    register(b, 0xB)
    ok(pr_out(a, RESERVE, 0xA, kind=WE))
    ok(pr_out(a, PREEMPT, 0xA, 0xA, kind=EARO))
    assert reservation(a) == (0xA, EARO)
    assert keys(a) == (3, [0xA, 0xB])
    assert pending(b) == (Asc.RESERVATIONS_RELEASED,)


def test_preempt_of_all_registrants() -> None:
    a, b, c = cluster(3)
    for target, key in ((a, 0xA), (b, 0xB), (c, 0xC)):
        register(target, key)
    ok(pr_out(b, RESERVE, 0xB, kind=EAAR))
    ok(pr_out(a, PREEMPT, 0xA, 0xB, kind=EA))
    assert reservation(a) == (0, EAAR), "only a key was preempted"
    assert keys(a) == (4, [0xA, 0xC])
    ok(pr_out(a, PREEMPT, 0xA, 0, kind=EA))
    assert reservation(a) == (0xA, EA)
    assert keys(a) == (5, [0xA])
    assert pending(c) == (Asc.REGISTRATIONS_PREEMPTED,)


def test_preempt_and_abort_aborts_the_preempted_only() -> None:
    a, b, c = cluster(3)
    aborted = []
    for name, target in (("a", a), ("b", b), ("c", c)):

        async def abort(
            *, status: Status | None = None, until: int | None = None, name: str = name
        ) -> int:
            assert status is until is None
            aborted.append(name)
            return 1

        target.nexuses[0].abort = abort
    for target, key in ((a, 0xA), (b, 0xB), (c, 0xC)):
        register(target, key)
    ok(pr_out(b, RESERVE, 0xB, kind=WERO))
    ok(pr_out(c, PREEMPT, 0xC, 0xB, kind=WERO))
    assert not aborted, "PREEMPT aborts nothing"
    ok(pr_out(a, PREEMPT_AND_ABORT, 0xA, 0xC, kind=WERO))
    assert aborted == ["c"]
    assert pending(c) == (Asc.REGISTRATIONS_PREEMPTED, Asc.COMMANDS_CLEARED_BY_ANOTHER_INITIATOR)


@pytest.mark.parametrize(("action", "ejected"), [(PREEMPT, False), (PREEMPT_AND_ABORT, True)])
def test_preempt_and_abort_ends_what_the_preempted_prevent(action: int, ejected: bool) -> None:
    """As if each of them had allowed medium removal, but nobody else (SPC-4 5.13.11.2.6)."""
    a, b, c = cluster(3, make_unit(removable=True))
    eject, prevent = "1b 00 00 00 02", "1e 00 00 00 01"
    register(a, 0xA)
    register(b, 0xB)
    good(b, prevent)
    ok(pr_out(a, action, 0xA, 0xB))
    prevented = Sense(SenseKey.ILLEGAL_REQUEST, Asc.MEDIUM_REMOVAL_PREVENTED)
    if not ejected:
        assert refused(a, eject) == prevented
        return
    good(c, prevent)
    assert refused(a, eject) == prevented
    c.nexuses[0].prevents_removal = False
    good(a, eject)


def test_preempt_and_abort_with_nothing_to_abort() -> None:
    a, b = cluster()
    register(a, 0xA)
    register(b, 0xB)
    ok(pr_out(a, PREEMPT_AND_ABORT, 0xA, 0xB))
    assert pending(b) == (Asc.REGISTRATIONS_PREEMPTED,)


# ── Who is kept out ────────────────────────────────────────────────────────────────────────────

ALL = _dataplane.CLASS_ALL
WRITES = _dataplane.CLASS_WRITE | _dataplane.CLASS_MEDIA


@pytest.mark.parametrize(
    ("kind", "registered", "stranger"),
    [
        (WE, WRITES, WRITES),
        (EA, ALL, ALL),
        (WERO, 0, WRITES),
        (EARO, 0, ALL),
        (WEAR, 0, WRITES),
        (EAAR, 0, ALL),
    ],
)
def test_gates(kind: int, registered: int, stranger: int) -> None:
    a, b, c = cluster(3)
    register(a, 0xA)
    register(b, 0xB)
    ok(pr_out(a, RESERVE, 0xA, kind=kind))
    assert (closed(a), closed(b), closed(c)) == (0, registered, stranger)
    ok(pr_out(a, RELEASE, 0xA, kind=kind))
    c.nexuses[0].take()
    b.nexuses[0].take()
    assert (closed(a), closed(b), closed(c)) == (0, 0, 0)


def test_a_reported_attention_does_not_open_an_excluded_gate() -> None:
    a, b = cluster()
    register(a, 0xA)
    ok(pr_out(a, RESERVE, 0xA, kind=WE))
    b.nexuses[0].establish(Asc.CAPACITY_DATA_HAS_CHANGED)
    assert closed(b) == ALL
    assert refused(b, TEST_UNIT_READY) == attention(Asc.CAPACITY_DATA_HAS_CHANGED)
    assert closed(b) == WRITES


def test_the_unit_attention_comes_before_the_conflict() -> None:
    a, b = cluster()
    register(a, 0xA)
    ok(pr_out(a, RESERVE, 0xA, kind=EA))
    b.nexuses[0].establish(Asc.CAPACITY_DATA_HAS_CHANGED)
    assert refused(b, READ_10) == attention(Asc.CAPACITY_DATA_HAS_CHANGED)
    conflict(send(b, READ_10))


FREE = [
    TEST_UNIT_READY,
    "03 00 00 00 12 00",
    "12 00 00 00 60 00",
    "25",
    "9e 10 0000000000000000 00000020 00 00",
    "a0 00 00 00 00 00 00000100 00 00",
    "4d 00 00 00 00 00 00 0010 00",
    "1b 00 00 00 01 00",
]
"""Commands that no persistent reservation excludes."""
READING = [
    "1a 00 3f 00 ff 00",
    "5a 00 3f 00 00 00 00 00ff 00",
    "a3 0c 00 00 0000 00000100 00 00",
    "a3 0d 00 00 0000 00000010 00 00",
]
CHANGING = ["15 10 00 00 00 00", "55 10", "1b 00 00 00 00 00", "1d 00"]


@pytest.mark.parametrize("kind", [WE, EA])
@pytest.mark.parametrize("cdb", FREE)
def test_allowed_whatever_is_reserved(cdb: str, kind: int) -> None:
    a, b = cluster()
    register(a, 0xA)
    ok(pr_out(a, RESERVE, 0xA, kind=kind))
    good(b, cdb)


@pytest.mark.parametrize("cdb", READING)
def test_allowed_under_write_exclusive(cdb: str) -> None:
    a, b = cluster()
    register(a, 0xA)
    ok(pr_out(a, RESERVE, 0xA, kind=WE))
    good(b, cdb)
    ok(pr_out(a, RELEASE, 0xA, kind=WE))
    ok(pr_out(a, RESERVE, 0xA, kind=EA))
    conflict(send(b, cdb))
    good(a, cdb)


@pytest.mark.parametrize("cdb", CHANGING)
@pytest.mark.parametrize("kind", [WE, EA])
def test_excluded_by_both(cdb: str, kind: int) -> None:
    a, b = cluster()
    register(a, 0xA)
    ok(pr_out(a, RESERVE, 0xA, kind=kind))
    conflict(send(b, cdb))
    good(a, cdb)


@pytest.mark.parametrize("cdb", [READ_10, VERIFY_10])
def test_media_commands_that_read(cdb: str) -> None:
    a, b = cluster()
    register(a, 0xA)
    ok(pr_out(a, RESERVE, 0xA, kind=WERO))
    assert send(b, cdb).executed
    ok(pr_out(a, PREEMPT, 0xA, 0xA, kind=EARO))
    conflict(send(b, cdb))
    register(b, 0xB)
    assert send(b, cdb).executed


@pytest.mark.parametrize("cdb", [WRITE_10, SYNCHRONIZE_CACHE_10, "42", "93" + "00" * 15])
def test_media_commands_that_write(cdb: str) -> None:
    a, b = cluster()
    register(a, 0xA)
    ok(pr_out(a, RESERVE, 0xA, kind=WEAR))
    conflict(send(b, cdb))
    register(b, 0xB)
    assert send(b, cdb).executed


# ── Order ──────────────────────────────────────────────────────────────────────────────────────


def test_reserve_answers_after_running_commands() -> None:
    seen = []

    async def quiesce(_lu: _dataplane.Lu) -> None:
        seen.append((closed(b), [command.answers for command in sent]))

    a, b = cluster(2, make_unit(quiesce=quiesce))
    sent: list[Recorder] = []
    register(a, 0xA)
    seen.clear()
    command = Recorder(
        bytes.fromhex("5f 01 03 0000 00000018 00").ljust(32, b"\0"), bytes(7) + b"\x0a" + bytes(16)
    )
    sent.append(command)
    later = handle(command, a, 0)
    assert later is not None
    asyncio.run(later)
    assert seen == [(ALL, [0])], "closed, then waited, then answered"
    assert command.answers == 1


def test_persistent_reserve_out_is_one_after_the_other() -> None:
    """Two PREEMPTs of each other: the second finds itself unregistered."""
    a, b = cluster(2, make_unit(quiesce=lambda _lu: asyncio.sleep(0.01)))
    register(a, 0xA)
    register(b, 0xB)
    ok(pr_out(a, RESERVE, 0xA, kind=EA))

    def preempt(key: int, victim: int) -> Recorder:
        cdb = struct.pack(">BBB2xIB", 0x5F, PREEMPT, EA, 24, 0)
        return Recorder(cdb.ljust(32, b"\0"), struct.pack(">QQ8x", key, victim))

    async def race() -> tuple[Recorder, Recorder]:
        first, second = preempt(0xB, 0xA), preempt(0xA, 0xB)
        runs = [handle(first, b, 0), handle(second, a, 0)]
        await asyncio.gather(*(run for run in runs if run is not None))
        return first, second

    first, second = asyncio.run(race())
    ok(first)
    conflict(second)
    assert reservation(b) == (0xB, EA)


# ── What survives ──────────────────────────────────────────────────────────────────────────────


def test_registrations_survive_resets_and_nexus_loss() -> None:
    unit = make_unit()
    a, b = cluster(2, unit)
    register(a, 0xA)
    ok(pr_out(a, RESERVE, 0xA, kind=WE))
    a.nexus_loss()
    unit.reset()
    b.nexuses[0].take()
    assert reservation(b) == (0xA, WE)
    conflict(send(b, WRITE_10))
    a.nexuses[0].take()
    assert send(a, WRITE_10).executed


def test_registrations_survive_a_reconnection() -> None:
    unit = make_unit()
    a = make_target(unit)
    register(a, 0xA)
    ok(pr_out(a, RESERVE, 0xA, kind=WE))
    a.close()
    again, other = make_target(unit), make_target(unit, number=1)
    assert send(again, WRITE_10).executed
    conflict(send(other, WRITE_10))


@pytest.mark.parametrize("kind", KINDS)
def test_persist_through_power_loss(kind: int) -> None:
    store = MemoryStore()
    a, b = cluster(2, make_unit(store=store))
    ok(pr_out(a, REGISTER, 0, 0xA, flags=0x01))
    ok(pr_out(b, REGISTER, 0, 0xB, flags=0x01))
    ok(pr_out(a, RESERVE, 0xA, kind=kind))
    full_status = pr_in(a, 3)
    a, b, stranger = cluster(3, make_unit(store=store))
    assert pr_in(b, 3)[4:] == full_status[4:]
    assert keys(b)[0] == 0, "PRGENERATION starts anew"
    conflict(send(stranger, WRITE_10))
    assert closed(stranger) & _dataplane.CLASS_WRITE
    ok(pr_out(a, REGISTER, 0xA, 0xA))
    assert not any(store.sections.values()), "APTPL 0 forgets"
    (a,) = cluster(1, make_unit(store=store))
    assert keys(a) == (0, [])


def test_nothing_is_saved_without_aptpl() -> None:
    store = MemoryStore()
    (a,) = cluster(1, make_unit(store=store))
    register(a, 0xA)
    ok(pr_out(a, RESERVE, 0xA, kind=WE))
    assert not store.sections


@pytest.mark.parametrize("aptpl", [False, True])
def test_a_power_failure_keeps_what_persists_and_forgets_the_rest(aptpl: bool) -> None:
    unit = make_unit(store=MemoryStore())
    a, stranger = cluster(2, unit)
    ok(pr_out(a, REGISTER, 0, 0xA, flags=0x01 if aptpl else 0))
    ok(pr_out(a, RESERVE, 0xA, kind=WE))
    unit.power_on()
    for target in (a, stranger):
        assert sense_of(send(target, bytes(6))).code == Asc.POWER_ON_OCCURRED
    assert keys(a) == (0, [0xA] if aptpl else [])
    if aptpl:
        conflict(send(stranger, WRITE_10))
    assert bool(closed(stranger)) == aptpl


def test_what_cannot_be_saved_does_not_happen() -> None:
    store = MemoryStore()
    a, b = cluster(2, make_unit(store=store))
    ok(pr_out(a, REGISTER, 0, 0xA, flags=0x01))
    store.fail = True
    assert sense_of(pr_out(a, RESERVE, 0xA, kind=EA)) == Sense(
        SenseKey.HARDWARE_ERROR, Asc.INTERNAL_TARGET_FAILURE
    )
    assert reservation(a) is None
    assert closed(b) == 0
    store.fail = False
    ok(pr_out(a, RESERVE, 0xA, kind=EA))
    assert closed(b) == ALL


GOOD_NAME = {"initiator": "31" + 14 * "0", "target": "30" + 14 * "0", "relative-port": 1}


@pytest.mark.parametrize(
    "saved",
    [
        7,
        {},
        {"registrations": [{}], "reservation": None},
        {"registrations": [{**GOOD_NAME, "key": "zz"}], "reservation": None},
        {"registrations": [{**GOOD_NAME, "key": "0"}], "reservation": None},
        {"registrations": [{**GOOD_NAME, "key": "1" + 16 * "0"}], "reservation": None},
        {"registrations": [{**GOOD_NAME, "initiator": "3", "key": "1"}], "reservation": None},
        {"registrations": [], "reservation": {"type": 7, "holder": None}},
        {"registrations": [], "reservation": {"type": 1, "holder": GOOD_NAME}},
        {"registrations": [{**GOOD_NAME, "key": "1"}], "reservation": {"type": 2, "holder": None}},
        {"registrations": [{**GOOD_NAME, "key": "1"}], "reservation": {"type": 1, "holder": None}},
    ],
)
def test_damaged_state_is_refused(saved: object) -> None:
    store = MemoryStore()
    store.sections["persistent-reservations"] = saved
    with pytest.raises(SavedStateError, match="persistent reservations"):
        make_unit(store=store)
