"""POPULATE TOKEN, WRITE USING TOKEN and RECEIVE ROD TOKEN INFORMATION, to the byte."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from tests.unit.scsi.harness import (
    Recorder,
    Sense,
    bad_cdb,
    bad_list,
    good,
    make_target,
    parse_fixed,
    send,
)
from tests.unit.scsi.media import memory_read, memory_write
from tests.unit.scsi.reserving import EA, RESERVE, WE, ok, pr_out, register
from vscsi_emu import _dataplane
from vscsi_emu.scsi import Asc, Identity, LogicalUnit, SenseKey, Status, Target, handle
from vscsi_emu.scsi.tokens import MAX_TOKENS, Tokens

BLOCKS = 64
RTV, IMMED, DEL_TKN = 2, 1, 2
TOO_SHORT = Sense(SenseKey.ILLEGAL_REQUEST, Asc.PARAMETER_LIST_LENGTH_ERROR)
ZERO = bytes.fromhex("ffff0001 0000 01f8").ljust(512, b"\0")

Ranges = Sequence[tuple[int, int]]


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def disk(
    last: int, tokens: Tokens | None = None, *, block_size: int = 512, read_only: bool = False
) -> LogicalUnit:
    """A unit of its own name, every block another."""
    engine = _dataplane.Engine.memory(BLOCKS * block_size)
    naa = bytes.fromhex("30000000000000") + bytes([last])
    unit = LogicalUnit(
        engine,
        Identity("S", naa),
        block_size=block_size,
        read_only=read_only,
        removable=True,
        tokens=tokens,
    )
    memory_write(unit, b"".join(bytes([n + last]) * block_size for n in range(BLOCKS)))
    return unit


def ranges_of(ranges: Ranges) -> bytes:
    return b"".join(struct.pack(">QI4x", *each) for each in ranges)


def populate_list(
    ranges: Ranges, *, flags: int = 0, timeout: int = 0, kind: int = 0, length: int | None = None
) -> bytes:
    body = ranges_of(ranges)
    length = len(body) + 14 if length is None else length
    return struct.pack(">HBxII2xH", length, flags, timeout, kind, len(body)) + body


def write_list(token: bytes, ranges: Ranges, *, flags: int = 0, offset: int = 0) -> bytes:
    body = ranges_of(ranges)
    return struct.pack(">HB5xQ512s6xH", len(body) + 534, flags, offset, token, len(body)) + body


def populate(target: Target, data: bytes, list_id: int = 1) -> Recorder:
    cdb = struct.pack(">BB4xIIxx", 0x83, 0x10, list_id, len(data))
    return send(target, cdb, data_out=data)


def write(target: Target, data: bytes, list_id: int = 2) -> Recorder:
    cdb = struct.pack(">BB4xIIxx", 0x83, 0x11, list_id, len(data))
    return send(target, cdb, data_out=data)


def information(target: Target, list_id: int, action: int = 7, allocation: int = 4096) -> bytes:
    return good(target, struct.pack(">BBI4xIxx", 0x84, action, list_id, allocation))


def make(target: Target, ranges: Ranges, *, timeout: int = 0) -> bytes:
    command = populate(target, populate_list(ranges, timeout=timeout))
    assert command.status == Status.GOOD, command.sense.hex()
    return information(target, 1)[38:]


def refusal(command: Recorder) -> Sense:
    assert command.status == Status.CHECK_CONDITION
    return parse_fixed(command.sense)


def invalid(code: Asc) -> Sense:
    return Sense(SenseKey.ILLEGAL_REQUEST, code)


def block(last: int, lba: int, size: int = 512) -> bytes:
    return bytes([lba + last]) * size


# ── Copying ────────────────────────────────────────────────────────────────────────────────────


def test_from_one_unit_to_another_as_the_ranges_say() -> None:
    tokens = Tokens()
    one, two = disk(1, tokens), disk(100, tokens)
    token = make(make_target(one), [(10, 3), (40, 0), (2, 2)])
    before = memory_read(two)
    assert write(make_target(two, number=1), write_list(token, [(0, 1), (20, 4)])).status == 0
    moved = [block(1, lba) for lba in (10, 11, 12, 2, 3)]
    after = bytearray(before)
    after[:512] = moved[0]
    after[20 * 512 : 24 * 512] = b"".join(moved[1:])
    assert memory_read(two) == after
    assert memory_read(one)[10 * 512 : 11 * 512] == moved[0]


def test_within_a_unit_from_an_offset() -> None:
    unit = disk(1)
    target = make_target(unit)
    token = make(target, [(0, 4), (30, 4)])
    assert write(target, write_list(token, [(50, 3)], offset=3)).status == 0
    assert memory_read(unit)[50 * 512 : 53 * 512] == block(1, 3) + block(1, 30) + block(1, 31)


def test_to_blocks_of_another_size() -> None:
    tokens = Tokens()
    one, two = disk(1, tokens), disk(1, tokens, block_size=4096)
    token = make(make_target(one), [(0, 20)])
    target = make_target(two, number=1)
    assert write(target, write_list(token, [(7, 1)], offset=1)).status == 0
    assert memory_read(two)[7 * 4096 : 8 * 4096] == memory_read(one)[4096:8192]
    # 20 blocks of 512 bytes are two whole ones of 4096.
    command = write(target, write_list(token, [(0, 3)]))
    assert refusal(command) == Sense(SenseKey.COPY_ABORTED, Asc.COPY_TARGET_DEVICE_DATA_UNDERRUN)
    assert int.from_bytes(command.sense[3:7]) == 2
    assert memory_read(two)[: 2 * 4096] == memory_read(one)[: 2 * 4096]
    data = information(target, 2)
    assert (data[5], data[12], data[15]) == (0x03, Status.CHECK_CONDITION, 0xF1)
    assert int.from_bytes(data[16:24]) == 2
    length, size = data[13], data[14]
    assert (length, size) == (20, 18)
    assert data[32 : 32 + size] == command.sense


def test_zeros() -> None:
    unit = disk(1)
    target = make_target(unit)
    assert write(target, write_list(ZERO, [(4, 2), (9, 1)], offset=1 << 40)).status == 0
    data = memory_read(unit)
    assert data[4 * 512 : 6 * 512] == bytes(1024)
    assert data[9 * 512 : 10 * 512] == bytes(512)
    assert data[3 * 512 : 4 * 512] == block(1, 3)
    assert int.from_bytes(information(target, 2)[16:24]) == 3


def test_no_parameter_list_does_nothing() -> None:
    target = make_target(disk(1))
    assert populate(target, b"").status == Status.GOOD
    assert write(target, b"").status == Status.GOOD
    assert refusal(send(target, struct.pack(">BBI4xIxx", 0x84, 7, 1, 100))) == bad_cdb(2, None)


def test_in_the_background() -> None:
    """GOOD comes first; what goes wrong later is no deferred error."""
    unit = disk(1)
    target = make_target(unit)
    assert populate(target, populate_list([(0, 4)], flags=IMMED)).status == Status.GOOD
    token = information(target, 1)[38:]
    assert write(target, write_list(token, [(8, 5)], flags=IMMED)).status == Status.GOOD
    data = information(target, 2)
    assert (data[5], int.from_bytes(data[16:24])) == (0x03, 4)
    assert send(target, bytes(6)).status == Status.GOOD
    assert memory_read(unit)[8 * 512 : 9 * 512] == block(1, 0)


def test_a_copy_in_the_background_is_aborted() -> None:
    unit = disk(1)
    before = memory_read(unit)
    target = make_target(unit)
    token = make(target, [(0, 4)])
    data = write_list(token, [(8, 4)], flags=IMMED)
    cdb = struct.pack(">BB4xIIxx", 0x83, 0x11, 7, len(data)).ljust(32, b"\0")
    abort = struct.pack(">BBI", 0x83, 0x1C, 7).ljust(32, b"\0")

    async def scenario() -> None:
        command, aborting = Recorder(cdb, data), Recorder(abort)
        copying, ended = handle(command, target, 0), handle(aborting, target, 0)
        assert command.status == Status.GOOD, "IMMED"
        assert copying is not None
        assert ended is not None
        task = asyncio.ensure_future(ended)
        await asyncio.sleep(0)
        assert aborting.status is None, "it still runs"
        await copying
        await asyncio.wait_for(task, 10)
        assert aborting.status == Status.GOOD

    asyncio.run(scenario())
    assert information(target, 7)[5] == 0x60
    assert memory_read(unit) == before
    assert send(target, bytes(6)).status == Status.GOOD, "no deferred error"
    assert refusal(send(target, abort)) == bad_cdb(2, None)


def test_while_it_runs_its_identifier_is_taken() -> None:
    unit = disk(1)
    target = make_target(unit)
    ended = asyncio.Event()

    async def quiesce(_: object) -> None:
        await ended.wait()

    async def scenario() -> None:
        unit._quiesce = quiesce
        data = populate_list([(0, 1)])
        cdb = struct.pack(">BB4xIIxx", 0x83, 0x10, 1, len(data))
        command = Recorder(cdb.ljust(32, b"\0"), data)
        later = handle(command, target, 0)
        assert later is not None
        running = asyncio.ensure_future(later)
        await asyncio.sleep(0)
        again = Recorder(cdb.ljust(32, b"\0"), data)
        assert handle(again, target, 0) is None
        assert parse_fixed(again.sense) == invalid(Asc.OPERATION_IN_PROGRESS)
        status = information(target, 1)
        assert (status[5], int.from_bytes(status[8:12])) == (0x11, 100)
        assert status[32:] == bytes(4), "no token yet"
        ended.set()
        await running
        assert command.status == Status.GOOD

    asyncio.run(scenario())
    assert len(information(target, 1)) == 38 + 512


# ── What is returned ───────────────────────────────────────────────────────────────────────────


def test_the_token() -> None:
    target = make_target(disk(1))
    token = make(target, [(0, 4), (8, 2)])
    assert token[:8] == bytes.fromhex("00800001 0000 01f8")
    assert token[16:48] == bytes.fromhex("e4000000 01030008 3000000000000001") + bytes(16)
    assert int.from_bytes(token[48:64]) == 6 * 512
    assert token[64:96] == bytes(32)
    assert int.from_bytes(token[96:100]) == 512
    assert token[128:140] == bytes.fromhex("01030008 3000000000000001")
    assert len({make(target, [(0, 1)])[8:16] for _ in range(8)}) == 8


def test_information() -> None:
    target = make_target(disk(1))
    make(target, [(0, 4)])
    data = information(target, 1)
    assert data[:32] == bytes.fromhex(
        "00000222 10 01 0000 fffffffe 00 00 00 f1 0000000000000004 0000 000000000000"
    )
    assert data[32:38] == bytes.fromhex("00000202 0000")
    assert information(target, 1, action=5) == bytes.fromhex("0000001c") + data[4:32]
    assert information(target, 1, allocation=20) == data[:20]
    target.nexuses[0].unit.reset()
    target.nexuses[0].take()
    command = send(target, struct.pack(">BBI4xIxx", 0x84, 7, 1, 100))
    assert refusal(command) == bad_cdb(2, None)


# ── Tokens that are none, or none any more ─────────────────────────────────────────────────────


def test_other_tokens() -> None:
    target = make_target(disk(1))
    token = make(target, [(0, 4)])
    for wrong, code in [
        (token[:7] + b"\0" + token[8:], Asc.INVALID_TOKEN_LENGTH),
        (ZERO[:6] + bytes(506), Asc.INVALID_TOKEN_LENGTH),
        (token[:8] + bytes(8) + token[16:], Asc.TOKEN_UNKNOWN),
        (token[:511] + bytes([token[511] ^ 1]), Asc.TOKEN_CORRUPT),
    ]:
        assert refusal(write(target, write_list(wrong, [(8, 1)]))) == invalid(code)
    elsewhere = make_target(disk(2))
    assert refusal(write(elsewhere, write_list(token, [(8, 1)]))) == invalid(Asc.TOKEN_UNKNOWN)


def test_a_changed_block_cancels_the_token() -> None:
    tokens = Tokens()
    one, two = disk(1, tokens), disk(2, tokens)
    here, there = make_target(one), make_target(two, number=1)
    token = make(here, [(8, 4), (20, 4)])
    memory_write(one, bytes(512), 12 * 512)
    assert write(there, write_list(token, [(0, 8)])).status == Status.GOOD
    memory_write(one, bytes(512), 23 * 512)
    before = memory_read(two)
    for _ in range(2):
        command = write(there, write_list(token, [(0, 8)]))
        assert refusal(command) == invalid(Asc.TOKEN_CANCELLED)
    assert memory_read(two) == before


def test_a_new_medium_or_capacity_cancels_the_token() -> None:
    unit = disk(1)
    target = make_target(unit)
    token = make(target, [(0, 4)])
    unit.eject()
    unit.load(by=target.nexuses[0])
    assert refusal(write(target, write_list(token, [(8, 1)]))) == invalid(Asc.TOKEN_CANCELLED)
    token = make(target, [(0, 4)])
    unit.resize(BLOCKS - 1)
    target.nexuses[0].take()
    assert refusal(write(target, write_list(token, [(8, 1)]))) == invalid(Asc.TOKEN_CANCELLED)


def test_an_unused_token_expires() -> None:
    clock = Clock()
    target = make_target(disk(1, Tokens(clock)))
    short, default = make(target, [(0, 4)], timeout=10), make(target, [(0, 4)])
    for _ in range(3):
        clock.now += 10
        assert write(target, write_list(short, [(8, 1)])).status == Status.GOOD
    clock.now += 11
    assert refusal(write(target, write_list(short, [(8, 1)]))) == invalid(Asc.TOKEN_EXPIRED)
    assert write(target, write_list(default, [(8, 1)])).status == Status.GOOD
    clock.now += 61
    assert refusal(write(target, write_list(default, [(8, 1)]))) == invalid(Asc.TOKEN_EXPIRED)


def test_a_deleted_token() -> None:
    target = make_target(disk(1))
    token = make(target, [(0, 4)])
    assert write(target, write_list(token, [(8, 1)], flags=DEL_TKN)).status == Status.GOOD
    assert refusal(write(target, write_list(token, [(8, 1)]))) == invalid(Asc.TOKEN_DELETED)


def test_there_are_not_more_than_can_be_kept() -> None:
    target = make_target(disk(1))
    oldest = make(target, [(0, 4)])
    for _ in range(MAX_TOKENS):
        last = make(target, [(0, 4)])
    assert refusal(write(target, write_list(oldest, [(8, 1)]))) == invalid(Asc.TOKEN_UNKNOWN)
    assert write(target, write_list(last, [(8, 1)])).status == Status.GOOD


# ── What is refused ────────────────────────────────────────────────────────────────────────────


def test_populate_lists() -> None:
    target = make_target(disk(1))
    outside = Sense(
        SenseKey.ILLEGAL_REQUEST,
        Asc.LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE,
        (32, None),
        in_cdb=False,
    )
    for data, sense in [
        (populate_list([(0, 1)])[:15], TOO_SHORT),
        (populate_list([(0, 1)], length=29), bad_list(0)),
        (populate_list([(0, 1)], flags=4), bad_list(2, 2)),
        (populate_list([(0, 1)], timeout=3601), bad_list(4)),
        (populate_list([(0, 1)], flags=RTV, kind=0x0080_0000), bad_list(8)),
        (populate_list([(0, 1)], flags=RTV, kind=0x0001_0000), bad_list(8)),
        (populate_list([], length=30), bad_list(14)),
        (populate_list([(0, 1), (64, 0)]), outside),
        (populate_list([(0, 1), (63, 2)]), outside),
        (populate_list([(5, 1), (0, 6)]), bad_list(16)),
        (
            populate_list([(0, 0)] * 257),
            Sense(SenseKey.ILLEGAL_REQUEST, Asc.TOO_MANY_SEGMENT_DESCRIPTORS),
        ),
    ]:
        assert refusal(populate(target, data)) == sense
    for data in [
        populate_list([(0, 1)], flags=RTV, kind=0x0080_0001, timeout=3600),
        populate_list([(0, 1)], flags=RTV, kind=0x0080_FFFF),
        populate_list([(0, 0)] * 256),
    ]:
        assert populate(target, data).status == Status.GOOD


def test_write_lists() -> None:
    target = make_target(disk(1))
    token = make(target, [(0, 4)])
    fine = write_list(token, [(8, 1)])
    for data, sense in [
        (fine[:535], TOO_SHORT),
        (struct.pack(">H", 549) + fine[2:], bad_list(0)),
        (write_list(token, [(8, 1)], flags=0x80), bad_list(2, 7)),
        (write_list(token, []), bad_list(534)),
        (write_list(token, [(8, 2), (9, 1)]), bad_list(536)),
        (write_list(token, [(8, 1)], offset=4), bad_list(8)),
    ]:
        assert refusal(write(target, data)) == sense


def test_where_nothing_may_be_written() -> None:
    tokens = Tokens()
    token = make(make_target(disk(1, tokens)), [(0, 4)])
    target = make_target(disk(2, tokens, read_only=True), number=1)
    assert refusal(write(target, write_list(token, [(8, 1)]))) == Sense(
        SenseKey.DATA_PROTECT, Asc.WRITE_PROTECTED
    )


def test_from_a_unit_that_is_not_ready() -> None:
    tokens = Tokens()
    one = disk(1, tokens)
    token = make(make_target(one), [(0, 4)])
    target = make_target(disk(2, tokens), number=1)
    assert send(make_target(one, number=2), bytes.fromhex("1b0000000000")).status == 0
    assert refusal(write(target, write_list(token, [(8, 1)]))) == Sense(
        SenseKey.COPY_ABORTED, Asc.COPY_TARGET_DEVICE_NOT_REACHABLE
    )


@pytest.mark.parametrize(("kind", "readable"), [(WE, True), (EA, False)])
def test_reservations(kind: int, readable: bool) -> None:
    unit = disk(1)
    holder, other = make_target(unit), make_target(unit, number=1)
    token = make(holder, [(0, 4)])
    register(holder, 0xA)
    ok(pr_out(holder, RESERVE, 0xA, kind=kind))
    status = populate(other, populate_list([(0, 1)])).status
    assert status == (Status.GOOD if readable else Status.RESERVATION_CONFLICT)
    assert write(other, write_list(token, [(8, 1)])).status == Status.RESERVATION_CONFLICT
