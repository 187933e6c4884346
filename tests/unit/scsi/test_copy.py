"""EXTENDED COPY(LID1), RECEIVE COPY RESULTS and the Third-Party Copy VPD page, to the byte."""

from __future__ import annotations

import asyncio
import struct

import pytest

from tests.unit.scsi.harness import (
    IDENTITY,
    Recorder,
    Sense,
    bad_cdb,
    bad_list,
    good,
    make_target,
    make_unit,
    parse_fixed,
    send,
)
from tests.unit.scsi.media import memory_read, memory_write
from tests.unit.scsi.reserving import EA, RESERVE, ok, pr_out, register
from vscsi_emu import _dataplane
from vscsi_emu.scsi import Asc, Identity, LogicalUnit, SenseKey, Status, Target, handle
from vscsi_emu.scsi.copy_results import HOLD_SECONDS
from vscsi_emu.scsi.readiness import PowerCondition

BLOCKS = 64
THIS_UNIT = 0xFFFF
TOO_SHORT = Sense(SenseKey.ILLEGAL_REQUEST, Asc.PARAMETER_LIST_LENGTH_ERROR)


def naa(last: int) -> bytes:
    return bytes.fromhex("30000000000000") + bytes([last])


def disk(last: int, *, block_size: int = 512, read_only: bool = False) -> LogicalUnit:
    """A unit of its own name; block n is filled with n + 1."""
    engine = _dataplane.Engine.memory(BLOCKS * block_size)
    return LogicalUnit(engine, Identity("S", naa(last)), block_size=block_size, read_only=read_only)


def fill(unit: LogicalUnit) -> bytes:
    """Every block another; what was written."""
    data = b"".join(bytes([n + 1]) * unit.block_size for n in range(unit.blocks))
    memory_write(unit, data)
    return data


def cscd(name: bytes, *, block_size: int = 512, kind: int = 0xE4, device: int = 0) -> bytes:
    """An identification descriptor of a NAA name."""
    designator = bytes([1, 3, 0, len(name)]) + name.ljust(20, b"\0")
    return bytes([kind, device, 0, 0]) + designator + struct.pack(">I", block_size)


def segment(
    source: int, target: int, blocks: int, from_lba: int, to_lba: int, *, flags: int = 0
) -> bytes:
    return struct.pack(">BBHHHxxHQQ", 0x02, flags, 0x18, source, target, blocks, from_lba, to_lba)


def parameters(
    targets: list[bytes],
    segments: list[bytes],
    *,
    list_id: int = 1,
    usage: int = 0,
    inline: int = 0,
) -> bytes:
    first, second = b"".join(targets), b"".join(segments)
    header = struct.pack(">BBH4xII", list_id, usage << 3, len(first), len(second), inline)
    return header + first + second


def extended_copy(target: Target, data: bytes, *, length: int | None = None) -> Recorder:
    cdb = struct.pack(">BB8xIxx", 0x83, 0, len(data) if length is None else length)
    return send(target, cdb, data_out=data)


def copies(target: Target, data: bytes) -> None:
    command = extended_copy(target, data)
    assert command.status == Status.GOOD, command.sense.hex()


def refusal(target: Target, data: bytes) -> Sense:
    command = extended_copy(target, data)
    assert command.status == Status.CHECK_CONDITION
    return parse_fixed(command.sense)


def aborted(code: Asc) -> Sense:
    return Sense(SenseKey.COPY_ABORTED, code)


def status(list_id: int) -> bytes:
    return struct.pack(">BBB7xIxx", 0x84, 0, list_id, 1024)


# ── Copying ────────────────────────────────────────────────────────────────────────────────────


def test_within_a_unit() -> None:
    unit = disk(1)
    before = fill(unit)
    target = make_target(unit)
    copies(target, parameters([cscd(naa(1))], [segment(0, 0, 3, 2, 40)]))
    expected = bytearray(before)
    expected[40 * 512 : 43 * 512] = before[2 * 512 : 5 * 512]
    assert memory_read(unit) == expected


def test_several_segments_in_order() -> None:
    unit = disk(1)
    before = fill(unit)
    target = make_target(unit)
    segments = [segment(0, 0, 1, 0, 1), segment(0, THIS_UNIT, 1, 1, 2)]
    copies(target, parameters([cscd(naa(1))], segments))
    assert memory_read(unit)[: 3 * 512] == before[:512] * 3


def test_between_units_of_a_target() -> None:
    one, two = disk(1), disk(2)
    before = fill(one)
    target = Target({0: one, 1: two})
    for nexus in target.nexuses.values():
        nexus.take()
    copies(target, parameters([cscd(naa(2)), cscd(naa(1))], [segment(1, 0, 5, 3, 0)]))
    assert memory_read(two)[: 6 * 512] == before[3 * 512 : 8 * 512] + bytes(512)
    assert memory_read(one) == before


@pytest.mark.parametrize(("flags", "blocks"), [(0x00, 8), (0x02, 1)])
def test_blocks_are_counted_in_source_or_target_size(flags: int, blocks: int) -> None:
    one, two = disk(1), disk(2, block_size=4096)
    before = fill(one)
    target = Target({0: one, 1: two})
    for nexus in target.nexuses.values():
        nexus.take()
    data = parameters(
        [cscd(naa(1)), cscd(naa(2), block_size=4096)], [segment(0, 1, blocks, 8, 2, flags=flags)]
    )
    copies(target, data)
    assert memory_read(two)[2 * 4096 : 3 * 4096] == before[8 * 512 : 16 * 512]


def test_a_copy_that_would_end_within_a_block() -> None:
    one, two = disk(1), disk(2, block_size=4096)
    target = Target({0: one, 1: two})
    target.nexuses[0].take()
    data = parameters([cscd(naa(1)), cscd(naa(2), block_size=4096)], [segment(0, 1, 7, 0, 0)])
    assert refusal(target, data) == aborted(Asc.INVALID_FIELD_IN_PARAMETER_LIST)


def test_through_any_target_port_of_the_initiator() -> None:
    one, two = disk(1), disk(2)
    before = fill(two)
    here, there = make_target(one), make_target(two, number=1)
    data = parameters([cscd(naa(2))], [segment(0, THIS_UNIT, BLOCKS, 0, 0)])
    assert refusal(here, data) == aborted(Asc.COPY_TARGET_DEVICE_NOT_REACHABLE)
    here.reachable = lambda: [*here.nexuses.values(), *there.nexuses.values()]
    copies(here, data)
    assert memory_read(one) == before


def test_by_any_designator_of_the_unit() -> None:
    unit = make_unit()
    target = make_target(unit)
    t10 = IDENTITY.vendor_field + IDENTITY.product_field[:12]
    descriptor = bytes([0xE4, 0, 0, 0, 2, 1, 0, 20]) + t10 + struct.pack(">I", 512)
    assert refusal(target, parameters([descriptor], [segment(0, 0, 1, 0, 1)])) == aborted(
        Asc.COPY_TARGET_DEVICE_NOT_REACHABLE
    )
    copies(target, parameters([cscd(IDENTITY.naa)], [segment(0, 0, 1, 0, 1)]))


@pytest.mark.parametrize("data", [b"", parameters([], []), parameters([cscd(naa(9))], [])])
def test_nothing_to_copy(data: bytes) -> None:
    copies(make_target(disk(1)), data)


def test_no_blocks() -> None:
    copies(make_target(disk(1)), parameters([], [segment(THIS_UNIT, THIS_UNIT, 0, 1 << 60, 0)]))


def test_the_unit_is_waited_for_by_whoever_quiesces_it() -> None:
    unit = disk(1)
    nexus = make_target(unit).nexuses[0]
    before = fill(unit)

    async def scenario() -> None:
        lu = unit.data_plane
        work = _dataplane.Copy(lu, lu, [(0, 512, 512)], durable=False)
        copying = asyncio.create_task(unit.copy(work, unit, by=nexus))
        await asyncio.sleep(0)
        await unit.quiesce()
        assert memory_read(unit)[512:1024] == before[:512]
        await copying

    asyncio.run(scenario())


# ── What is refused before anything is copied ──────────────────────────────────────────────────


def test_parameter_list_that_ends_too_early() -> None:
    target = make_target(disk(1))
    data = parameters([cscd(naa(1))], [segment(0, 0, 1, 0, 1)])
    for length in (1, 15, 16, 47, len(data) - 1):
        command = extended_copy(target, data, length=length)
        assert parse_fixed(command.sense) == TOO_SHORT, length


def test_too_many_descriptors() -> None:
    target = make_target(disk(1))
    one, move = cscd(naa(1)), segment(0, 0, 1, 0, 1)
    assert refusal(target, parameters([one] * 17, [move])).code == Asc.TOO_MANY_TARGET_DESCRIPTORS
    assert refusal(target, parameters([one], [move] * 17)).code == Asc.TOO_MANY_SEGMENT_DESCRIPTORS
    assert refusal(target, parameters([one] * 16, [move] * 17)) == TOO_SHORT
    copies(target, parameters([one] * 16, [move] * 16))


def test_descriptors_of_other_kinds() -> None:
    target = make_target(disk(1))
    move = segment(0, 0, 1, 0, 1)
    fibre_channel = parameters([cscd(naa(1), kind=0xE0)], [move])
    assert refusal(target, fibre_channel).code == Asc.UNSUPPORTED_TARGET_DESCRIPTOR_TYPE_CODE
    stream = parameters([cscd(naa(1))], [b"\x03" + move[1:]])
    assert refusal(target, stream).code == Asc.UNSUPPORTED_SEGMENT_DESCRIPTOR_TYPE_CODE
    tape = parameters([cscd(naa(1), device=1)], [move])
    assert refusal(target, tape) == aborted(Asc.INCORRECT_COPY_TARGET_DEVICE_TYPE)
    copies(target, parameters([cscd(naa(1), device=0xE0)], [move]))


def test_fields_of_the_list() -> None:
    target = make_target(disk(1))
    one, move = cscd(naa(1)), segment(0, 0, 1, 0, 1)
    assert refusal(target, parameters([one], [move], usage=1)) == bad_list(1, 4)
    assert refusal(target, parameters([one], [move], usage=3)) == bad_list(0)
    assert refusal(target, parameters([one], [move], usage=8)) == bad_list(1, 6)
    assert refusal(target, parameters([one], [move], usage=16)) == bad_list(1, 7)
    assert refusal(target, parameters([one], [move], inline=1)).code == (
        Asc.INLINE_DATA_LENGTH_EXCEEDED
    )
    assert refusal(target, parameters([one[:31]], [move])) == bad_list(2)
    assert refusal(target, parameters([one], [move[:27]])) == bad_list(8)
    assert refusal(target, parameters([one], [move[:3] + b"\x14" + move[4:]])) == bad_list(50)
    for length in (0, 21):
        wrong = one[:7] + bytes([length]) + one[8:]
        assert refusal(target, parameters([wrong], [move])) == bad_list(23)


# ── What aborts a copy ─────────────────────────────────────────────────────────────────────────


def test_unknown_descriptor_and_unknown_unit() -> None:
    target = make_target(disk(1))
    beyond = parameters([cscd(naa(1))], [segment(0, 1, 1, 0, 1)])
    assert refusal(target, beyond) == aborted(Asc.UNREACHABLE_COPY_TARGET)
    unknown = parameters([cscd(naa(9))], [segment(0, THIS_UNIT, 1, 0, 1)])
    assert refusal(target, unknown) == aborted(Asc.COPY_TARGET_DEVICE_NOT_REACHABLE)
    other_size = parameters([cscd(naa(1), block_size=4096)], [segment(0, 0, 1, 0, 1)])
    assert refusal(target, other_size) == aborted(Asc.INCORRECT_COPY_TARGET_DEVICE_TYPE)


@pytest.mark.parametrize(
    ("from_lba", "to_lba"), [(0, BLOCKS - 1), (BLOCKS - 1, 0), (0, 2**64 - 1), (2**64 - 1, 0)]
)
def test_beyond_the_end(from_lba: int, to_lba: int) -> None:
    unit = disk(1)
    before = fill(unit)
    target = make_target(unit)
    segments = [segment(0, 0, 1, 0, 1), segment(0, 0, 2, from_lba, to_lba)]
    command = extended_copy(target, parameters([cscd(naa(1))], segments))
    assert parse_fixed(command.sense) == aborted(Asc.NO_ADDITIONAL_SENSE)
    assert command.sense[0] == 0xF0
    assert command.sense[3:7] == bytes([0, 0, 0, 1]), "INFORMATION: the segment"
    assert memory_read(unit)[512:] == before[:512] + before[1024:]


def test_a_write_protected_or_stopped_unit() -> None:
    one, two = disk(1), disk(2, read_only=True)
    target = Target({0: one, 1: two})
    target.nexuses[0].take()
    names = [cscd(naa(1)), cscd(naa(2))]
    assert refusal(target, parameters(names, [segment(0, 1, 1, 0, 0)])) == aborted(
        Asc.WRITE_PROTECTED
    )
    copies(target, parameters(names, [segment(1, 0, 1, 0, 0)]))
    two.enter(PowerCondition.STOPPED)
    assert refusal(target, parameters(names, [segment(1, 0, 1, 0, 0)])) == aborted(
        Asc.COPY_TARGET_DEVICE_NOT_REACHABLE
    )


def test_a_unit_that_another_nexus_has_reserved() -> None:
    one, two = disk(1), disk(2)
    target = Target({0: one, 1: two})
    target.nexuses[0].take()
    holder = make_target(two, number=1)
    register(holder, 1)
    ok(pr_out(holder, RESERVE, 1, kind=EA))
    names = [cscd(naa(1)), cscd(naa(2))]
    for move in (segment(0, 1, 1, 0, 0), segment(1, 0, 1, 0, 0)):
        assert refusal(target, parameters(names, [move])) == aborted(
            Asc.COPY_TARGET_DEVICE_NOT_REACHABLE
        )


def test_storage_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    unit = disk(1)
    target = make_target(unit)

    async def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(asyncio, "to_thread", fail)
    data = parameters([], [segment(THIS_UNIT, THIS_UNIT, 1, 0, 1)])
    assert refusal(target, data) == aborted(Asc.WRITE_ERROR)


# ── RECEIVE COPY RESULTS ───────────────────────────────────────────────────────────────────────


def test_status_of_a_copy_that_is_over_is_told_once() -> None:
    target = make_target(disk(1))
    assert parse_fixed(send(target, status(7)).sense) == bad_cdb(2, 7)
    segments = [segment(THIS_UNIT, THIS_UNIT, 2, 0, 4), segment(THIS_UNIT, THIS_UNIT, 1, 0, 4)]
    copies(target, parameters([], segments, list_id=7))
    assert parse_fixed(send(target, status(1)).sense) == bad_cdb(2, 7)
    assert good(target, status(7)) == bytes.fromhex("00000008 01 0002 00 00000600")
    assert parse_fixed(send(target, status(7)).sense) == bad_cdb(2, 7)


def test_status_of_a_copy_that_failed() -> None:
    target = make_target(disk(1))
    segments = [segment(THIS_UNIT, THIS_UNIT, 1, 0, 4), segment(THIS_UNIT, 5, 1, 0, 4)]
    assert refusal(target, parameters([], segments, usage=2)).key == SenseKey.COPY_ABORTED
    assert good(target, status(1)) == bytes.fromhex("00000008 02 0001 00 00000200")


def test_what_is_not_held() -> None:
    target = make_target(disk(1))
    move = segment(THIS_UNIT, THIS_UNIT, 1, 0, 4)
    copies(target, parameters([], [move], usage=2))
    copies(target, parameters([], [move], usage=3, list_id=0))
    for list_id in (0, 1):
        assert parse_fixed(send(target, status(list_id)).sense) == bad_cdb(2, 7)


def test_results_are_each_nexuses_own_and_not_held_for_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unit = disk(1)
    a, b = make_target(unit), make_target(unit, number=1)
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    data = parameters([], [segment(THIS_UNIT, THIS_UNIT, 1, 0, 4)])
    copies(a, data)
    assert parse_fixed(send(b, status(1)).sense) == bad_cdb(2, 7)
    good(a, status(1))
    copies(a, data)
    now += HOLD_SECONDS
    assert parse_fixed(send(a, status(1)).sense) == bad_cdb(2, 7)


def test_status_while_it_runs_and_its_identifier_is_taken() -> None:
    target = make_target(disk(1))
    data = parameters([], [segment(THIS_UNIT, THIS_UNIT, 1, 0, 4)])
    cdb = struct.pack(">BB8xIxx", 0x83, 0, len(data)).ljust(32, b"\0")

    async def scenario() -> None:
        first, second, asked = (Recorder(cdb, data), Recorder(cdb, data), Recorder(status(1)))
        running = handle(first, target, 0)
        assert running is not None
        task = asyncio.ensure_future(running)
        await asyncio.sleep(0)
        handle(asked, target, 0)
        assert asked.data_in == bytes.fromhex("00000008 00 0000 00 00000000")
        again = handle(second, target, 0)
        assert again is not None
        await again
        assert parse_fixed(second.sense) == Sense(
            SenseKey.ILLEGAL_REQUEST, Asc.OPERATION_IN_PROGRESS
        )
        await task
        assert first.status == Status.GOOD

    asyncio.run(scenario())


ABORT = "83 1c 00000001"


def test_copy_operation_abort() -> None:
    """The copy ends first, with what has become of it."""
    unit = disk(1)
    before = fill(unit)
    target, other = make_target(unit), make_target(unit, number=1)
    data = parameters([], [segment(THIS_UNIT, THIS_UNIT, 1, 0, 4)] * 3)
    cdb = struct.pack(">BB8xIxx", 0x83, 0, len(data)).ljust(32, b"\0")

    async def scenario() -> None:
        command, abort = Recorder(cdb, data), Recorder(bytes.fromhex(ABORT).ljust(32, b"\0"))
        copying, aborting = handle(command, target, 0), None
        assert copying is not None
        task = asyncio.ensure_future(copying)
        await asyncio.sleep(0)
        # Of another nexus, it is not known.
        foreign = Recorder(abort.cdb)
        waiting = handle(foreign, other, 0)
        assert waiting is not None
        await waiting
        assert parse_fixed(foreign.sense) == bad_cdb(2, None)
        aborting = handle(abort, target, 0)
        assert aborting is not None
        await asyncio.wait_for(aborting, 10)
        assert abort.status == Status.GOOD
        await asyncio.wait_for(task, 10)
        sense = parse_fixed(command.sense)
        assert (sense.key, sense.code) == (
            SenseKey.COPY_ABORTED,
            Asc.COMMANDS_CLEARED_BY_DEVICE_SERVER,
        )

    asyncio.run(scenario())
    assert memory_read(unit)[8 * 512 :] == before[8 * 512 :]
    assert parse_fixed(send(target, ABORT).sense) == bad_cdb(2, None), "over"


def test_a_reset_aborts_copies() -> None:
    unit = disk(1)
    target = make_target(unit)
    data = parameters([], [segment(THIS_UNIT, THIS_UNIT, 1, 0, 4)] * 2)
    cdb = struct.pack(">BB8xIxx", 0x83, 0, len(data)).ljust(32, b"\0")

    async def scenario() -> Recorder:
        command = Recorder(cdb, data)
        copying = handle(command, target, 0)
        assert copying is not None
        task = asyncio.ensure_future(copying)
        await asyncio.sleep(0)
        unit.reset()
        await asyncio.wait_for(task, 10)
        return command

    sense = parse_fixed(asyncio.run(scenario()).sense)
    assert sense.code == Asc.COMMANDS_CLEARED_BY_DEVICE_SERVER


def test_operating_parameters() -> None:
    cdb = struct.pack(">BB8xIxx", 0x84, 0x03, 1024)
    assert good(make_target(disk(1)), cdb) == bytes.fromhex(
        "0000002a 01 000000 0010 0010 000003c0 10000000"
        "00000000 00000000 00000000 0000 0100 ff 09 00 00 000000 02 02 e4"
    )


# ── VPD page 8Fh ───────────────────────────────────────────────────────────────────────────────


def test_third_party_copy_page() -> None:
    assert good(make_target(disk(1)), "12 01 8f 0200 00") == bytes.fromhex(
        "00 8f 0144"
        "0000 0020 000000000000 0100 00000e10 0000003c 0000000008000000 0000000000008000"
        "0001 0010 0d 83 04 00 10 11 1c 84 05 00 03 04 05 07 0000"
        "0004 001c 00000000 0010 0010 000003c0 00000000 000000000000000000000000"
        "0008 0004 02 02 e4 00"
        "000c 0004 0002 ffff"
        "0106 002c 000000000000000000000000 00000000 00000000 00000e10"
        "000000000000000000000000000000000000 0000"
        "0108 0084 0000 0080"
        "00800001 03 000000"
        + 56 * "00"
        + "ffff0001 02 000000"
        + 56 * "00"
        + "8001 0020 00000100 00000100 10000000 09 00 000000000000000000000000000000000000"
    )


def test_standard_inquiry_says_so() -> None:
    assert good(make_target(disk(1)), "12 00 00 0060 00")[5] & 0x08


def test_the_first_naa_designator_is_the_units() -> None:
    """As EXTENDED COPY's users pick it from VPD page 83h, whatever its association."""
    page = good(make_target(disk(1)), "12 01 83 0400 00")
    found, offset = b"", 4
    while offset < len(page):
        kind, size = page[offset + 1] & 0x0F, page[offset + 3]
        if kind == 3 and not found:
            found = page[offset + 4 : offset + 4 + size]
        offset += 4 + size
    assert found == naa(1)


def failure_details(list_id: int) -> bytes:
    return struct.pack(">BBB7xIxx", 0x84, 4, list_id, 1024)


def test_failure_details() -> None:
    """Told once, whoever asks for the status before."""
    target = make_target(disk(1))
    bad = parameters([cscd(naa(1))], [segment(0, 0, 1, 0, 1), segment(0, 0, 1, 0, BLOCKS)])
    command = extended_copy(target, bad)
    assert good(target, status(1))[4] == 2
    details = good(target, failure_details(1))
    assert details == bytes.fromhex("0000004a") + bytes(52) + b"\x02\0\0\x12" + command.sense
    assert parse_fixed(send(target, failure_details(1)).sense) == bad_cdb(2, 7)
    copies(target, parameters([cscd(naa(1))], [segment(0, 0, 1, 0, 1)]))
    assert good(target, failure_details(1)) == bytes(4)


def test_no_space() -> None:
    engine, space = _dataplane.Engine.memory(BLOCKS * 4096), _dataplane.Space(8 * 4096)
    unit = LogicalUnit(engine.thin(space), Identity("S", naa(1)), block_size=4096)
    memory_write(unit, b"x" * 4 * 4096)
    target = make_target(unit)
    data = parameters([cscd(naa(1), block_size=4096)], [segment(0, 0, 4, 0, 5)])
    copies(target, data)
    data = parameters([cscd(naa(1), block_size=4096)], [segment(0, 0, 4, 0, 6)])
    assert refusal(target, data) == aborted(Asc.SPACE_ALLOCATION_FAILED_WRITE_PROTECT)
