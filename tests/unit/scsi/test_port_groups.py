"""Asymmetric logical unit access (SPC-4 5.16, 6.37, 6.45)."""

from __future__ import annotations

import asyncio
import struct

import pytest

from tests.unit.scsi.harness import (
    Sense,
    attention,
    bad_cdb,
    bad_list,
    good,
    make_target,
    make_unit,
    refused,
    send,
)
from vscsi_emu import _dataplane
from vscsi_emu.scsi import Asc, LogicalUnit, SenseKey, Status, Target
from vscsi_emu.scsi.cdb import CommandType, Flag
from vscsi_emu.scsi.commands import ALL
from vscsi_emu.scsi.port_groups import AccessState

OPTIMIZED, NON_OPTIMIZED, STANDBY, UNAVAILABLE = AccessState
CHANGED = attention(Asc.ASYMMETRIC_ACCESS_STATE_CHANGED)
TEST_UNIT_READY = "00"
READ_10 = "28 00 00000000 00 0001 00"


def report(target: Target, *, extended: bool = False, allocation: int = 0x1000) -> bytes:
    return good(target, struct.pack(">BB4xI", 0xA3, 0x2A if extended else 0x0A, allocation))


def parameters(*states: tuple[int, int]) -> bytes:
    """States by group."""
    return bytes(4) + b"".join(struct.pack(">BxH", state, group) for group, state in states)


def set_cdb(length: int) -> bytes:
    return struct.pack(">BB4xI", 0xA4, 0x0A, length)


def set_groups(target: Target, *states: tuple[int, int]) -> None:
    data = parameters(*states)
    good(target, set_cdb(len(data)), data_out=data)


def two(unit: LogicalUnit | None = None) -> tuple[Target, Target]:
    unit = unit or make_unit()
    return make_target(unit), make_target(unit, number=1)


def closed(target: Target) -> int:
    return target.nexuses[0].data_plane.closed


# ── REPORT TARGET PORT GROUPS ──────────────────────────────────────────────────────────────────


def test_both_formats() -> None:
    a, b = two()
    groups = bytes.fromhex("00 0f 0001 00 00 00 01 0000 000100 0f 0002 00 00 00 01 0000 0002")
    for target in (a, b):
        assert report(target) == bytes.fromhex("00000018") + groups
        assert report(target, extended=True) == bytes.fromhex("0000001c 10 00 0000") + groups
    assert report(a, allocation=6) == bytes.fromhex("00000018 00 0f")
    for reserved in range(2, 8):
        assert refused(a, bytes([0xA3, reserved << 5 | 0x0A])) == bad_cdb(1, 7)


def test_ports_of_one_group() -> None:
    unit = make_unit()
    target = make_target(unit)
    for port in range(256, 0, -1):
        Target({0: unit}, relative_port=port + 1, port_group=1)
    assert refused(target, "00") == attention(Asc.INQUIRY_DATA_HAS_CHANGED)
    data = report(target)
    # 257 ports take two descriptors: a count is one byte.
    assert struct.unpack_from(">BBHxBxB", data, 4) == (0, 0x0F, 1, 0, 255)
    assert struct.unpack_from(">BBHxBxB", data, 4 + 8 + 4 * 255) == (0, 0x0F, 1, 0, 2)
    assert data[12:20] == bytes.fromhex("00000001 00000002")
    assert data[-4:] == bytes.fromhex("00000101")
    assert int.from_bytes(data[:4]) == len(data) - 4


def test_a_port_that_reaches_a_unit_twice_is_listed_once() -> None:
    unit = make_unit()
    target = Target({0: unit, 1: unit}, relative_port=5, port_group=3)
    target.nexuses[0].take()
    assert report(target) == bytes.fromhex("0000000c 00 0f 0003 00 00 00 01 0000 0005")


# ── SET TARGET PORT GROUPS ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("state", AccessState)
def test_a_state_is_set_and_the_other_nexuses_are_told(state: AccessState) -> None:
    a, b = two()
    set_groups(a, (2, OPTIMIZED if state else STANDBY))
    set_groups(a, (2, state))
    assert report(a)[16:24] == struct.pack(">BBHxBxB", state, 0x0F, 2, int(state > 0) or 1, 1)
    assert report(a)[4:12] == bytes.fromhex("00 0f 0001 00 00 00 01")
    assert a.nexuses[0].pending == ()
    assert refused(b, TEST_UNIT_READY) == CHANGED
    assert b.nexuses[0].pending == ()


def test_all_or_nothing() -> None:
    a, b = two()
    data = parameters((1, STANDBY), (2, 0xF))
    assert refused(a, set_cdb(len(data)), data_out=data) == bad_list(8, 3)
    assert report(a)[4] == report(a)[16] == 0
    set_groups(a, (2, STANDBY), (1, NON_OPTIMIZED))
    assert (report(a)[4], report(a)[16]) == (NON_OPTIMIZED, STANDBY)
    assert b.nexuses[0].pending == (Asc.ASYMMETRIC_ACCESS_STATE_CHANGED,)


def test_what_changes_nothing_tells_nobody() -> None:
    a, b = two()
    good(a, set_cdb(0))
    good(a, set_cdb(4), data_out=bytes(4))
    set_groups(a, (1, OPTIMIZED), (2, OPTIMIZED))
    assert b.nexuses[0].pending == ()
    assert report(a)[9] == 0


@pytest.mark.parametrize(
    ("data", "byte", "bit"),
    [
        (parameters((1, 4)), 4, 3),  # logical block dependent
        (parameters((1, 5)), 4, 3),
        (parameters((1, 0xE)), 4, 3),  # offline is no state of a group
        (parameters((1, 0xF)), 4, 3),  # transitioning
        (parameters((1, 0x12)), 4, 7),
        (parameters((3, STANDBY)), 6, None),
        (parameters((0, STANDBY)), 6, None),
        (parameters((2, STANDBY), (1, OPTIMIZED), (2, UNAVAILABLE)), 14, None),
    ],
)
def test_states_and_groups_that_are_not_there(data: bytes, byte: int, bit: int | None) -> None:
    a, _ = two()
    assert refused(a, set_cdb(len(data)), data_out=data) == bad_list(byte, bit)


@pytest.mark.parametrize("length", [1, 3, 5, 7, 9])
def test_a_list_that_ends_too_early(length: int) -> None:
    data = parameters((1, 0), (2, 0))[:length]
    too_short = Sense(SenseKey.ILLEGAL_REQUEST, Asc.PARAMETER_LIST_LENGTH_ERROR)
    assert refused(two()[0], set_cdb(length), data_out=data) == too_short


def test_commands_of_the_old_state_are_waited_for() -> None:
    steps: list[str] = []

    async def quiesce(lu: _dataplane.Lu) -> None:
        steps.append(f"{closed(b)}")

    a, b = two(make_unit(quiesce=quiesce))
    b.nexuses[0].clear(Asc.POWER_ON_OCCURRED)
    set_groups(a, (2, STANDBY))
    assert steps == [f"{_dataplane.CLASS_ALL}"]


# ── Implicit changes ───────────────────────────────────────────────────────────────────────────


def test_an_implicit_change_tells_everybody() -> None:
    unit = make_unit()
    a, b = two(unit)
    asyncio.run(unit.port_groups.change({2: NON_OPTIMIZED}))
    for target in (a, b):
        assert refused(target, TEST_UNIT_READY) == CHANGED
    assert report(a)[16:22] == bytes.fromhex("01 0f 0002 00 02")


# ── What is processed ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("state", [OPTIMIZED, NON_OPTIMIZED])
def test_active_ports_take_everything_the_fast_way(state: AccessState) -> None:
    a, b = two()
    set_groups(a, (2, STANDBY))
    assert closed(b) == _dataplane.CLASS_ALL
    set_groups(a, (2, state))
    assert refused(b, TEST_UNIT_READY) == CHANGED
    assert closed(b) == 0
    assert send(b, READ_10).executed


@pytest.mark.parametrize(
    ("state", "code"),
    [
        (STANDBY, Asc.TARGET_PORT_IN_STANDBY_STATE),
        (UNAVAILABLE, Asc.TARGET_PORT_IN_UNAVAILABLE_STATE),
    ],
)
def test_what_an_inactive_port_refuses(state: AccessState, code: Asc) -> None:
    a, b = two()
    set_groups(a, (2, state))
    assert refused(b, TEST_UNIT_READY) == CHANGED
    assert closed(b) == _dataplane.CLASS_ALL
    for cdb in (TEST_UNIT_READY, READ_10, "35", "42"):
        assert refused(b, cdb) == Sense(SenseKey.NOT_READY, code)
    good(a, TEST_UNIT_READY)
    assert send(a, READ_10).executed


ALWAYS = {"INQUIRY", "REPORT LUNS", "REQUEST SENSE"} | {
    "REPORT TARGET PORT GROUPS",
    "SET TARGET PORT GROUPS",
}
IN_STANDBY = (
    *("INQUIRY", "LOG", "MODE", "REPORT LUNS", "RECEIVE DIAGNOSTIC", "SEND DIAGNOSTIC"),
    *("REPORT TARGET", "SET TARGET", "REQUEST SENSE", "PERSISTENT RESERVE"),
    *("READ BUFFER", "WRITE BUFFER"),
)


@pytest.mark.parametrize("command", ALL, ids=lambda command: command.name)
def test_what_the_standard_has_processed(command: CommandType) -> None:
    """The lists of SPC-4 5.16.2.4.4 and 5.16.2.4.5; nothing that uses the medium may be more."""
    if command.name.startswith(IN_STANDBY):
        assert Flag.IN_STANDBY in command.flags
    if command.name in ALWAYS:
        assert Flag.WHEN_UNAVAILABLE in command.flags
    if command.handler is None or Flag.NEEDS_READY in command.flags:
        assert not command.flags & Flag.ANY_ACCESS_STATE


def test_an_unavailable_port_says_that_no_device_is_there() -> None:
    a, b = two()
    set_groups(a, (2, STANDBY))
    assert good(b, "12 00 00 0060")[0] == 0x00
    set_groups(a, (2, UNAVAILABLE))
    assert good(b, "12 00 00 0060")[0] == 0x20
    assert good(b, "12 01 83 0060")[0] == 0x20
    assert good(b, "03 00 00 00 12")[2] == SenseKey.ILLEGAL_REQUEST
    assert b.nexuses[0].pending == (Asc.ASYMMETRIC_ACCESS_STATE_CHANGED,)
    assert good(a, "12 00 00 0060")[0] == 0x00


def test_a_way_back_through_the_port_itself() -> None:
    a, b = two()
    set_groups(a, (2, UNAVAILABLE))
    assert refused(b, TEST_UNIT_READY) == CHANGED
    set_groups(b, (2, OPTIMIZED))
    good(b, TEST_UNIT_READY)
    assert refused(a, TEST_UNIT_READY) == CHANGED


# ── What ends a state ──────────────────────────────────────────────────────────────────────────


def test_states_outlive_resets_and_nexus_losses() -> None:
    unit = make_unit()
    a, b = two(unit)
    set_groups(a, (2, STANDBY))
    unit.reset()
    a.nexus_loss()
    b.nexus_loss()
    while a.nexuses[0].take() is not None:
        pass
    assert report(a)[16] == STANDBY
    assert closed(b) == _dataplane.CLASS_ALL


def test_a_port_that_is_new_has_its_groups_state() -> None:
    unit = make_unit()
    a, _ = two(unit)
    set_groups(a, (2, STANDBY))
    late = Target({0: unit}, relative_port=9, port_group=2)
    late.nexuses[0].take()
    refused(late, TEST_UNIT_READY)
    assert send(late, TEST_UNIT_READY).status == Status.CHECK_CONDITION
    assert report(a)[16:] == bytes.fromhex("02 0f 0002 00 01 00 02 0000 0002 0000 0009")
