"""Faults to order, as a driver sees them: each kind, what it is counted by, and what ends it."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pytest

from tests.conformance import cdb
from tests.conformance.cdb import GOOD, Disk
from tests.conformance.task_set import Node
from tests.unit.control.monitor import TIMEOUT, monitored
from tests.unit.transport.harness import attached
from vscsi_emu.control import Client, RpcError
from vscsi_emu.driver.request import Result
from vscsi_emu.driver.scan import sense_key
from vscsi_emu.faults.vocabulary import KINDS, KindName
from vscsi_emu.scsi.tokens import Tokens
from vscsi_emu.service import logical_unit
from vscsi_emu.testing.faults import inject, injected
from vscsi_emu.virtio.scsi import EventType, ResetReason, Response, TmfType, encode_lun

BUSY, TASK_SET_FULL, CONFLICT = 0x08, 0x28, 0x18
OLD, NEW = b"o" * 4096, b"n" * 4096
BLOCKS = len(OLD) // 512


@dataclass(frozen=True)
class Rig:
    """A unit 0:0 and its driver."""

    control: Client
    node: Node
    disk: Disk

    def read(self, lba: int = 0, blocks: int = BLOCKS) -> Result:
        return self.disk.run(cdb.read_10(lba, blocks), data_in_length=blocks * 512)

    def write(self, data: bytes = NEW, lba: int = 0) -> Result:
        return self.disk.run(cdb.write_10(lba, len(data) // 512), data_out=data)

    def content(self) -> bytes:
        return self.disk.read(0, BLOCKS)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with (
        monitored(tmp_path) as (server, path),
        Client(path, timeout=TIMEOUT) as control,
        attached(server.sockets[0]) as device,
    ):
        disk = Disk(device, 0, 0).ready()
        disk.write(0, OLD)
        yield Rig(control, Node(device), disk)


def outcome(result: Result) -> tuple[int, int, int, int]:
    """Response, status, sense key, ASC and ASCQ."""
    checked = result.status == cdb.CHECK_CONDITION and bool(result.sense)
    return (
        result.response,
        result.status,
        sense_key(result.sense) if checked else 0,
        int.from_bytes(result.sense[12:14]) if checked else 0,
    )


# ── Each kind ──────────────────────────────────────────────────────────────────────────────────

# How a READ and a WRITE of the range end, and whether the WRITE is on the medium.
Ends = tuple[int, int, int, int]
FINE: Ends = (0, GOOD, 0, 0)
ENDS: dict[KindName, tuple[dict[str, Any], Ends, Ends, bool]] = {
    "answer": (
        {"key": 4, "code": 0x4400, "executed": True},
        (0, 2, 4, 0x4400),
        (0, 2, 4, 0x4400),
        True,
    ),
    "medium-error": ({"lba": 0}, (0, 2, 3, 0x1100), FINE, True),
    "write-error": ({"lba": 0}, FINE, (0, 2, 3, 0x0C00), False),
    "recovered-error": ({}, (0, 2, 1, 0x5D00), (0, 2, 1, 0x5D00), True),
    "hardware-error": ({}, (0, 2, 4, 0x4400), (0, 2, 4, 0x4400), False),
    "not-ready": ({}, (0, 2, 2, 0x0403), (0, 2, 2, 0x0403), False),
    "transport-error": ({}, (0, 2, 0xB, 0x4B03), (0, 2, 0xB, 0x4B03), True),
    "dif-error": ({}, (0, 2, 0xB, 0x1001), (0, 2, 0xB, 0x1001), True),
    "dix-error": ({}, (0, 2, 5, 0x1001), (0, 2, 5, 0x1001), True),
    "unaligned-write": ({}, FINE, (0, 2, 5, 0x2104), False),
    "disk-full": ({}, FINE, (0, 2, 7, 0x2707), False),
    "wear-out": ({"writes": 0, "spares": 1}, FINE, (0, 2, 1, 0x0C01), True),
    "unit-attention": ({"times": 2}, (0, 2, 6, 0x2900), (0, 2, 6, 0x2900), False),
    "reservation-conflict": ({}, (0, CONFLICT, 0, 0), (0, CONFLICT, 0, 0), False),
    "busy": ({}, (0, BUSY, 0, 0), (0, BUSY, 0, 0), False),
    "task-set-full": ({}, (0, TASK_SET_FULL, 0, 0), (0, TASK_SET_FULL, 0, 0), False),
    "host-busy": ({}, (Response.BUSY, 0, 0, 0), (Response.BUSY, 0, 0, 0), False),
    "command-abort": ({}, (Response.ABORTED, 0, 0, 0), (Response.ABORTED, 0, 0, 0), False),
    "delay": ({"seconds": 0.02}, FINE, FINE, True),
    "lost-write": ({}, FINE, FINE, False),
    "link-down": ({}, (Response.BAD_TARGET, 0, 0, 0), (Response.BAD_TARGET, 0, 0, 0), False),
    "tmf-failure": ({}, FINE, FINE, True),
}
ELSEWHERE = {"hang", "lost-completion", "short-transfer", "bit-flip", "torn-write"} | {
    "misdirected-write"
}


def test_every_kind_is_tried() -> None:
    assert set(ENDS) | ELSEWHERE == set(get_args(KindName)) == set(KINDS)


@pytest.mark.parametrize("kind", ENDS)
def test_how_commands_end(rig: Rig, kind: KindName) -> None:
    fields, read, write, written = ENDS[kind]
    with injected(rig, "0:0", kind, **fields):
        assert outcome(rig.read()) == read
        assert outcome(rig.write()) == write
    if kind == "link-down":
        rig.disk.ready()
    assert rig.content() == (NEW if written else OLD)


def test_a_bad_block_keeps_what_comes_before_it(rig: Rig) -> None:
    with injected(rig, "0:0", "medium-error", lba=2) as fault:
        result = rig.read()
        assert outcome(result) == (0, 2, 3, 0x1100)
        assert int.from_bytes(result.sense[3:7]) == 2
        assert result.residual == len(OLD) - 1024
        assert result.data[:1024] == OLD[:1024]
        assert outcome(rig.read(0, 2)) == FINE
        assert outcome(rig.read(3, 1)) == FINE
        assert (fault.met, fault.hits) == (1, 1)


def test_the_bad_block_of_a_write(rig: Rig) -> None:
    with injected(rig, "0:0", "write-error", lba=3, opcodes=["WRITE(10)"]):
        assert outcome(rig.write()) == (0, 2, 3, 0x0C00)
    assert rig.content() == NEW[:1536] + OLD[1536:]


def test_a_short_transfer(rig: Rig) -> None:
    with injected(rig, "0:0", "short-transfer"):
        result = rig.read()
        assert (outcome(result), result.residual) == (FINE, 2048)
        assert rig.write().residual == 2048
    assert rig.content() == NEW[:2048] + OLD[2048:]


def different_bits(a: bytes, b: bytes) -> int:
    return sum((x ^ y).bit_count() for x, y in zip(a, b, strict=True))


def test_wrong_data_without_a_word(rig: Rig) -> None:
    with injected(rig, "0:0", "bit-flip", seed=7, times=1):
        flipped = rig.read()
        assert outcome(flipped) == FINE
    assert different_bits(flipped.data, OLD) == 1
    assert rig.content() == OLD
    with injected(rig, "0:0", "bit-flip", opcodes=["WRITE"], seed=7):
        assert outcome(rig.write(OLD)) == FINE
    assert different_bits(rig.content(), OLD) == 1
    rig.write(OLD)
    with injected(rig, "0:0", "torn-write", seed=3):
        assert outcome(rig.write()) == FINE
    content = rig.content()
    cut = len(content) - len(content.lstrip(b"n"))
    assert 0 < cut < len(OLD)
    assert content == NEW[:cut] + OLD[cut:]
    rig.write(OLD)
    with injected(rig, "0:0", "misdirected-write", seed=5):
        assert outcome(rig.write()) == FINE
    assert rig.content() == OLD
    assert any(b"n" * 512 in rig.disk.read(at, 256) for at in range(0, 2048, 256))


def test_wear_out(rig: Rig) -> None:
    good, remapped, failed = (0, 0), (1, 0x0C01), (3, 0x0C02)
    with injected(rig, "0:0", "wear-out", lba=0, blocks=16, unit=8, writes=2, spares=2) as fault:
        seen = [outcome(rig.write())[2:] for _ in range(5)]
        assert seen == [good, good, remapped, good, remapped]
        assert outcome(rig.write(lba=16)) == FINE, "not of the range"
        assert outcome(rig.write(lba=8)) == FINE, "another unit"
        assert [outcome(rig.write())[2:] for _ in range(2)] == [good, failed]
        result = rig.disk.run(cdb.write_10(4, 8), data_out=NEW)
        assert (outcome(result)[2:], result.residual) == (failed, len(NEW))
        result = rig.disk.run(cdb.write_10(12, 1), data_out=NEW[:512])
        assert outcome(result) == FINE
        assert outcome(rig.write(lba=8))[2:] == failed
        assert (fault.met, fault.hits) == (11, 5)


# ── Every command of the medium ────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Change:
    """A command that changes all of the range."""

    name: str
    raw: bytes
    data_out: bytes = NEW
    after: bytes = NEW


BITS = b"\x90" * len(OLD)
FROM_OLD = bytes(a | b for a, b in zip(OLD, BITS, strict=True))
ZEROS = bytes(len(OLD))
UNMAPPED = struct.pack(">HH4xQI4x", 22, 16, 0, BLOCKS)
CHANGES = [
    Change("WRITE(10)", cdb.write_10(0, BLOCKS)),
    Change("WRITE AND VERIFY(10)", b"\x2e" + cdb.write_10(0, BLOCKS)[1:]),
    Change("WRITE SAME(16)", b"\x93" + cdb.write_16(0, BLOCKS)[1:], NEW[:512]),
    Change("WRITE SAME(16) of zeros", b"\x93\x01" + cdb.write_16(0, BLOCKS)[2:], b"", ZEROS),
    Change("WRITE ATOMIC(16)", struct.pack(">BBQHHBB", 0x9C, 0, 0, 0, BLOCKS, 0, 0)),
    Change("COMPARE AND WRITE", struct.pack(">BBQ3xBBB", 0x89, 0, 0, BLOCKS, 0, 0), OLD + NEW),
    Change("ORWRITE(16)", b"\x8b" + cdb.write_16(0, BLOCKS)[1:], BITS, FROM_OLD),
    Change("UNMAP", cdb.unmap(24), UNMAPPED, ZEROS),
]
SILENT: tuple[KindName, ...] = ("bit-flip", "torn-write", "lost-write", "misdirected-write")


@pytest.mark.parametrize("kind", SILENT)
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.name)
def test_each_command_goes_wrong_without_a_word(rig: Rig, change: Change, kind: KindName) -> None:
    if (kind, change.name) != ("bit-flip", "UNMAP"):
        with injected(rig, "0:0", kind, seed=1, lba=BLOCKS - 1) as fault:
            result = rig.disk.run(change.raw, data_out=change.data_out)
            assert (outcome(result), result.residual, fault.hits) == (FINE, 0, 1)
        content = rig.content()
        match kind:
            case "bit-flip":
                assert different_bits(content, change.after) == 1
            case "torn-write":
                cut = next(at for at in range(len(OLD)) if content[at] != change.after[at])
                assert content == change.after[:cut] + OLD[cut:]
                assert cut % 512 == 0 < cut
            case _:
                assert content == OLD
    rig.disk.write(0, OLD)
    expect = rig.disk.run(change.raw, data_out=change.data_out)
    assert (outcome(expect), rig.content()) == (FINE, change.after), "without a fault"


def test_a_verification_sees_what_went_wrong(rig: Rig) -> None:
    verify, write_and_verify = (
        bytes([opcode, 2]) + cdb.write_10(0, BLOCKS)[2:] for opcode in (0x2F, 0x2E)
    )
    miscompare: Ends = (0, 2, 0xE, 0x1D00)
    with injected(rig, "0:0", "bit-flip", seed=3):
        assert outcome(rig.disk.run(verify, data_out=OLD)) == miscompare
    assert outcome(rig.disk.run(verify, data_out=OLD)) == FINE, "on the medium all is well"
    for kind in SILENT:
        with injected(rig, "0:0", kind, seed=3):
            assert outcome(rig.disk.run(write_and_verify, data_out=NEW)) == miscompare
        assert outcome(rig.disk.run(write_and_verify, data_out=OLD)) == FINE


@pytest.mark.parametrize("change", CHANGES[:-1], ids=lambda change: change.name)
def test_each_write_meets_the_bad_block(rig: Rig, change: Change) -> None:
    with injected(rig, "0:0", "write-error", lba=2) as fault:
        result = rig.disk.run(change.raw, data_out=change.data_out)
        assert (outcome(result), fault.hits) == ((0, 2, 3, 0x0C00), 1)
        assert int.from_bytes(result.sense[3:7]) == 2
    assert rig.content()[1024:] == OLD[1024:]
    assert outcome(rig.disk.run(change.raw, data_out=change.data_out))[2] in (0, 0xE)


@pytest.mark.parametrize("change", CHANGES[:-1], ids=lambda change: change.name)
def test_each_write_finds_the_disk_full(rig: Rig, change: Change) -> None:
    with injected(rig, "0:0", "disk-full"):
        result = rig.disk.run(change.raw, data_out=change.data_out)
        assert outcome(result) == (0, 2, 7, 0x2707)
    assert rig.content() == OLD


@pytest.mark.parametrize("name", ["COMPARE AND WRITE", "ORWRITE(16)", "WRITE AND VERIFY(10)"])
def test_commands_that_read_as_well_meet_a_bad_block(rig: Rig, name: str) -> None:
    [change] = [change for change in CHANGES if change.name == name]
    with injected(rig, "0:0", "medium-error", lba=1):
        result = rig.disk.run(change.raw, data_out=change.data_out)
        assert outcome(result) == (0, 2, 3, 0x1100)
        assert int.from_bytes(result.sense[3:7]) == 1
        assert outcome(rig.disk.run(cdb.verify_10(0, BLOCKS))) == (0, 2, 3, 0x1100)


def test_a_medium_error_of_a_command_without_data(rig: Rig) -> None:
    with injected(rig, "0:0", "medium-error", opcodes=["TEST UNIT READY"]):
        assert outcome(rig.disk.run(cdb.test_unit_ready())) == (0, 2, 3, 0x1100)


def test_unmap_is_matched_by_what_it_frees(rig: Rig) -> None:
    with injected(rig, "0:0", "busy", lba=BLOCKS, opcodes=["UNMAP"]) as fault:
        assert rig.disk.run(cdb.unmap(24), data_out=UNMAPPED).status == GOOD
        assert (fault.met, fault.hits) == (0, 0)
    rig.disk.write(0, OLD)
    with injected(rig, "0:0", "busy", lba=BLOCKS - 1, opcodes=["UNMAP"]) as fault:
        assert rig.disk.run(cdb.unmap(24), data_out=UNMAPPED).status == BUSY
    assert rig.content() == OLD


# ── What is kept back ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["hang", "lost-completion"])
def test_an_abort_ends_what_does_not_complete(rig: Rig, kind: KindName) -> None:
    node = rig.node
    with injected(rig, "0:0", kind):
        for function in (TmfType.ABORT_TASK, TmfType.ABORT_TASK_SET):
            item = node.send(cdb.write_10(0, BLOCKS), data_out=NEW)
            assert node.waits(item)
            assert node.tmf(function, item.tag) == Response.OK
            assert node.end(item) == (Response.ABORTED, 0)
        item = node.send(cdb.test_unit_ready())
        assert node.waits(item)
        assert node.tmf(TmfType.LOGICAL_UNIT_RESET) == Response.OK
        assert node.end(item) == (Response.RESET, 0)
    rig.disk.ready()
    assert rig.content() == (NEW if kind == "lost-completion" else OLD)


@pytest.mark.parametrize("end", ["release", "remove"])
def test_a_release_lets_go_on(rig: Rig, end: str) -> None:
    fault = inject(rig, "0:0", "hang", opcodes=["WRITE"])
    item = rig.node.send(cdb.write_10(0, BLOCKS), data_out=NEW)
    assert rig.node.waits(item)
    assert rig.content() == OLD
    getattr(fault, end)()
    assert rig.node.end(item) == (0, GOOD)
    assert rig.content() == NEW
    if end == "release":
        again = rig.node.send(cdb.write_10(0, 1), data_out=bytes(512))
        assert rig.node.waits(again)
        fault.remove()
        assert rig.node.end(again) == (0, GOOD)
    assert rig.control.fault_list() == []


def test_a_delay_takes_its_time_and_holds_nobody_up(rig: Rig) -> None:
    with injected(rig, "0:0", "delay", seconds=0.3, opcodes=["READ"]):
        start = time.monotonic()
        item = rig.node.send(cdb.read_10(0, 1), data_in_length=512)
        assert outcome(rig.write()) == FINE
        assert rig.node.waits(item)
        assert rig.node.end(item) == (0, GOOD)
        assert time.monotonic() - start >= 0.3


@pytest.mark.parametrize(
    ("distribution", "seconds", "spread"),
    [("uniform", 0.0, 0.004), ("normal", 0.002, 0.001), ("lognormal", 0.002, 0.5)],
)
def test_distributions(rig: Rig, distribution: str, seconds: float, spread: float) -> None:
    fields = {"seconds": seconds, "spread": spread, "distribution": distribution}
    with injected(rig, "0:0", "delay", **fields) as fault:
        start = time.monotonic()
        for _ in range(100):
            assert outcome(rig.read()) == FINE
        # The mean of each is about 2 ms.
        assert time.monotonic() - start >= 0.15
        assert fault.hits == 100


# ── Which commands ─────────────────────────────────────────────────────────────────────────────


def test_counting(rig: Rig) -> None:
    with injected(rig, "0:0", "busy", nth=2, every=3, times=2, opcodes=["READ(10)"]) as fault:
        seen = [rig.read().status for _ in range(9)]
        assert seen == [GOOD, BUSY, GOOD, GOOD, BUSY, GOOD, GOOD, GOOD, GOOD]
        assert outcome(rig.write()) == FINE
        assert (fault.met, fault.hits) == (9, 2)


def test_a_seed_says_which(rig: Rig) -> None:
    def statuses(seed: int) -> list[int]:
        with injected(rig, "0:0", "busy", probability=0.5, seed=seed):
            return [rig.read().status for _ in range(32)]

    assert statuses(1) == statuses(1) != statuses(2)
    assert 4 < statuses(1).count(BUSY) < 28


def test_a_window_of_time(rig: Rig) -> None:
    """It opened between `before` and `after` and so much; so did it close."""
    opens, closes = 0.2, 0.5
    before = time.monotonic()
    with injected(rig, "0:0", "busy", start=opens, duration=closes - opens) as fault:
        after = time.monotonic()
        sent = after
        while sent < after + closes:
            sent = time.monotonic()
            busy = rig.read().status == BUSY
            ended = time.monotonic()
            assert not busy or (ended >= before + opens and sent < after + closes)
            assert busy or not (sent >= after + opens and ended < before + closes)
        assert fault.met == fault.hits
    assert rig.read().status == GOOD


def test_nexus_and_tag(rig: Rig) -> None:
    with injected(rig, "0:0", "busy", nexus="0"):
        assert rig.read().status == BUSY
    with injected(rig, "0:0", "busy", tag=1 << 40):
        assert rig.read().status == GOOD


def test_delays_add_up_and_of_the_rest_the_first_stands(rig: Rig) -> None:
    with (
        injected(rig, "0:0", "delay", seconds=0.1),
        injected(rig, "0:0", "delay", seconds=0.1),
        injected(rig, "0:0", "busy"),
        injected(rig, "0:0", "task-set-full") as last,
    ):
        start = time.monotonic()
        assert rig.read().status == BUSY
        assert time.monotonic() - start >= 0.2
        assert last.hits == 1


# ── Task management and links ──────────────────────────────────────────────────────────────────


def test_task_management_fails(rig: Rig) -> None:
    fields: dict[str, Any] = {"function": "LOGICAL_UNIT_RESET", "times": 1}
    with injected(rig, "0:0", "tmf-failure", **fields) as fault:
        assert rig.node.tmf(TmfType.ABORT_TASK_SET) == Response.OK
        assert rig.node.tmf(TmfType.LOGICAL_UNIT_RESET) == Response.FAILURE
        assert rig.read().status == GOOD, "not reset"
        assert rig.node.tmf(TmfType.LOGICAL_UNIT_RESET) == Response.OK
        assert (fault.met, fault.hits) == (2, 1)
    with injected(rig, "0:0", "tmf-failure", response=Response.FUNCTION_REJECTED):
        assert rig.node.tmf(TmfType.I_T_NEXUS_RESET) == Response.FUNCTION_REJECTED
    assert rig.control.tmf_log()[-1].response == "FUNCTION_REJECTED"


def test_aborts_of_some_commands_fail(rig: Rig) -> None:
    """As a line of type 3 for scsi_debug's `error` file."""
    inject(rig, "0:0", "hang")
    [state] = rig.control.fault_scsi_debug("0:0", error="3 -1 28")
    write = rig.node.send(cdb.write_10(0, BLOCKS), data_out=NEW)
    read = rig.node.send(cdb.read_10(0, 1), data_in_length=512)
    for item in (write, read):
        assert rig.node.waits(item)
    assert rig.node.tmf(TmfType.ABORT_TASK, write.tag) == Response.OK
    assert rig.node.tmf(TmfType.ABORT_TASK, read.tag) == Response.FAILURE
    assert rig.node.waits(read)
    assert rig.node.tmf(TmfType.ABORT_TASK, read.tag) == Response.OK
    assert rig.node.tmf(TmfType.ABORT_TASK, 1 << 40) == Response.OK, "no such command"
    assert rig.control.fault_remove(state.id).hits == 1


def test_a_link_goes_down_and_comes_back(rig: Rig) -> None:
    inject(rig, "0:0", "hang")
    item = rig.node.send(cdb.read_10(0, 1), data_in_length=512)
    assert rig.node.waits(item)
    with injected(rig, "0:0", "link-down"):
        assert rig.node.end(item) == (Response.TRANSPORT_FAILURE, 0)
        assert rig.node.tmf(TmfType.ABORT_TASK_SET) == Response.BAD_TARGET
        assert outcome(rig.read())[0] == Response.BAD_TARGET
    for state in rig.control.fault_list():
        rig.control.fault_remove(state.id)
    assert outcome(rig.read()) == (0, 2, 6, 0x2907)
    assert outcome(rig.read()) == FINE


def events(rig: Rig) -> Iterator[tuple[int, bytes, int]]:
    while event := rig.node.device.next_event(TIMEOUT):
        yield event.event, event.lun, event.reason


def test_a_link_that_is_down_for_a_while(rig: Rig) -> None:
    """The driver hears of it after `dev_loss`, and again at the end, as from a fabric."""
    rig.control.lun_add(luns=["0:7=mem:1M", "1:0=mem:1M"])
    reset, told = EventType.TRANSPORT_RESET, events(rig)
    units = [encode_lun(0, 0), encode_lun(0, 7)]
    assert [next(told)[1] for _ in range(2)] == [units[1], encode_lun(1, 0)]
    inject(rig, "0:0", "link-down", duration=0.3, dev_loss=0.1)
    assert [next(told) for _ in units] == [(reset, unit, ResetReason.REMOVED) for unit in units]
    assert [next(told) for _ in units] == [(reset, unit, ResetReason.RESCAN) for unit in units]
    assert outcome(rig.read()) == (0, 2, 6, 0x2907)
    rig.disk.ready()
    assert rig.content() == OLD


def test_a_link_that_comes_back_in_time(rig: Rig) -> None:
    with injected(rig, "0:0", "link-down", dev_loss=3600.0):
        assert outcome(rig.read())[0] == Response.BAD_TARGET
    assert outcome(rig.read()) == (0, 2, 6, 0x2907)
    # Nothing was told: the next event is the next thing that happens.
    rig.control.lun_add(luns=["1:0=mem:1M"])
    assert next(events(rig))[1] == encode_lun(1, 0)


def test_a_link_goes_up_with_the_last_fault(rig: Rig) -> None:
    first = inject(rig, "0:0", "link-down")
    second = inject(rig, "0:0", "link-down", dev_loss=0.0)
    told = events(rig)
    assert next(told)[2] == ResetReason.REMOVED
    second.remove()
    assert outcome(rig.read())[0] == Response.BAD_TARGET
    first.remove()
    assert next(told)[2] == ResetReason.RESCAN
    assert outcome(rig.read()) == (0, 2, 6, 0x2907)


# ── As scsi_debug takes them, and what makes no sense ──────────────────────────────────────────


def test_scsi_debug_s_words(rig: Rig) -> None:
    control = rig.control
    [busy] = control.fault_scsi_debug("0:0", error="2 -1 0x28 0 0 2 3 0x11 0")
    assert outcome(rig.read()) == (0, 2, 3, 0x1100)
    assert outcome(rig.read()) == FINE
    assert control.fault_remove(busy.id).hits == 1
    control.fault_scsi_debug("0:0", error="4 1 ff")
    assert rig.node.tmf(TmfType.LOGICAL_UNIT_RESET) == Response.FAILURE
    [opt] = control.fault_scsi_debug("0:0", opts=0x10, every_nth=3)
    seen = [outcome(rig.read())[2] for _ in range(6)]
    assert seen == [0, 0, 0xB, 0, 0, 0xB]
    assert opt.fault.kind == "transport-error"


def test_lines_of_the_error_file_replace_and_end_rules(rig: Rig) -> None:
    def line(text: str) -> list[int]:
        return [state.id for state in rig.control.fault_scsi_debug("0:0", error=text)]

    def listed() -> list[int]:
        return [state.id for state in rig.control.fault_list()]

    [other] = [rig.control.fault_add("0:0", "busy", opcodes=[0]).id]
    [first], [reset] = line("1 1 28 0x1055"), line("4 1 ff")
    assert listed() == [other, first, reset]
    assert rig.read().response == Response.BUSY
    [second] = line("1 1 28 0x1056")
    assert listed() == [other, reset, second]
    assert rig.read().status == BUSY
    assert line("- 1 28") == []
    assert listed() == [other, reset]
    with pytest.raises(RpcError, match="no such rule") as caught:
        line("- 1 28")
    assert caught.value.parameter == "error"
    assert line("4 0 ff") == []
    assert listed() == [other]


def test_parameters_of_scsi_debug(rig: Rig) -> None:
    states = rig.control.fault_scsi_debug(
        "0:0",
        opts=0x2,
        every_nth=0,
        medium_error_start=2,
        medium_error_count=1,
        ndelay=1000,
        random=True,
        fail_reset=True,
    )
    assert [state.fault.kind for state in states] == ["medium-error", "delay", "tmf-failure"]
    assert outcome(rig.read()) == (0, 2, 3, 0x1100)
    assert rig.node.tmf(TmfType.I_T_NEXUS_RESET) == Response.FAILURE


@pytest.mark.parametrize(
    ("fields", "parameter", "text"),
    [
        ({"kind": "busy", "status": 8}, "status", "busy does not take it"),
        ({"kind": "busy", "every": 0}, "every", "0 is not within 1"),
        ({"kind": "busy", "opcodes": ["REED"]}, "opcodes", "did you mean 'READ'"),
        ({"kind": "busy", "opcodes": [256]}, "opcodes", "256 is not within 0 to 255"),
        ({"kind": "busy", "nexus": "9"}, "nexus", "there is no HBA '9'"),
        ({"kind": "busi"}, "kind", "did you mean 'busy'"),
        ({"kind": "link-down", "lba": 3}, "lba", "link-down does not take it"),
        ({"kind": "delay", "seconds": 9e9}, "seconds", "is not within 0.0 to 3600.0"),
        ({"kind": "tmf-failure", "opcodes": [0x28]}, "opcodes", "only ABORT_TASK and QUERY_TASK"),
        ({"kind": "busy", "dev_loss": 1.0}, "dev_loss", "busy does not take it"),
        ({"kind": "wear-out", "every": 2}, "every", "wear-out does not take it"),
        ({"kind": "wear-out", "blocks": 1 << 40, "lba": 0, "unit": 4}, "unit", "more than 1048576"),
        ({"kind": "wear-out", "opcodes": ["READ"]}, "opcodes", "is for WRITE, "),
        ({"kind": "torn-write", "opcodes": ["READ"]}, "opcodes", "is for WRITE, "),
        ({"kind": "bit-flip", "opcodes": []}, "opcodes", "is for READ, VERIFY, "),
    ],
)
def test_what_makes_no_sense(rig: Rig, fields: dict[str, Any], parameter: str, text: str) -> None:
    with pytest.raises(RpcError, match=text) as caught:
        rig.control.fault_add("0:0", **fields)
    assert caught.value.parameter == parameter
    assert rig.control.fault_list() == []


def test_faults_go_with_their_unit(rig: Rig) -> None:
    inject(rig, "0:0", "hang")
    rig.control.lun_remove(["0:0"], deadline=0, force=True)
    assert rig.control.fault_list() == []


def test_faults_and_limits_stay_when_the_storage_is_opened_again(tmp_path: Path) -> None:
    """As a device of the host is that was unplugged for a while."""
    with (
        monitored(tmp_path) as (server, path),
        Client(path, timeout=TIMEOUT) as control,
        attached(server.sockets[0]) as device,
    ):
        node, disk = Node(device), Disk(device, 0, 0).ready()
        rig = Rig(control, node, disk)
        with injected(rig, "0:0", "busy", opcodes=["WRITE"]) as fault:
            control.lun_set("0:0", bps=1)

            async def again() -> None:
                service, hba = server.service, server.hba
                [served] = service.disks.values()
                await hba.remove_lun((0, 0))
                unit = logical_unit(served.backend, service.runtime, tokens=Tokens())
                service.renew(served, served.backend, unit)
                hba.add_lun((0, 0), unit)

            server.run(again())
            disk.ready()
            assert rig.write().status == BUSY
            assert fault.hits == 1
            reads = [node.send(cdb.read_10(0, 1), data_in_length=512) for _ in range(2)]
            assert node.waits(reads[1])
            control.lun_set("0:0", bps=0)
            assert [node.end(item) for item in reads] == [(0, GOOD)] * 2
