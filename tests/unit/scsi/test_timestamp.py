"""REPORT and SET TIMESTAMP (SPC-4 5.2, 6.38, 6.46)."""

from __future__ import annotations

import struct
import time

import pytest

from tests.unit.scsi.harness import (
    Sense,
    attention,
    bad_list,
    good,
    make_target,
    make_unit,
    refused,
)
from vscsi_emu.scsi import Asc, SenseKey, Target

REPORT = struct.pack(">BB4xI", 0xA3, 0x0F, 0xFF)


def set_cdb(length: int) -> bytes:
    return struct.pack(">BB4xI", 0xA4, 0x0F, length)


def parameters(milliseconds: int) -> bytes:
    return bytes(4) + milliseconds.to_bytes(6) + bytes(2)


def timestamp(target: Target) -> tuple[int, int]:
    """Origin and milliseconds."""
    data = good(target, REPORT)
    assert len(data) == 12
    assert data[:2] == bytes.fromhex("000a")
    return data[2], int.from_bytes(data[4:10])


def test_until_it_is_set_it_is_the_time_of_day() -> None:
    before = time.time_ns() // 1_000_000
    origin, milliseconds = timestamp(make_target(make_unit()))
    assert origin == 0b011
    assert before - 1 <= milliseconds <= time.time_ns() // 1_000_000 + 1


def test_it_runs_from_what_was_set(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 5_000_000_000
    monkeypatch.setattr(time, "monotonic_ns", lambda: clock)
    unit = make_unit()
    a, b = make_target(unit), make_target(unit, number=1)
    good(a, set_cdb(12), data_out=parameters(0x1234_5678_9ABC))
    assert timestamp(a) == (0b010, 0x1234_5678_9ABC)
    assert a.nexuses[0].pending == ()
    assert refused(b, "00") == attention(Asc.TIMESTAMP_CHANGED)
    clock += 1_500_000_000
    assert timestamp(b) == (0b010, 0x1234_5678_9ABC + 1500)
    unit.reset()
    a.nexus_loss()
    assert unit.timestamp.now() == 0x1234_5678_9ABC + 1500


def test_it_wraps(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 0
    monkeypatch.setattr(time, "monotonic_ns", lambda: clock)
    unit = make_unit()
    unit.timestamp.set((1 << 48) - 1)
    clock = 3_000_000
    assert unit.timestamp.now() == 2


@pytest.mark.parametrize("first", [0xF1, 0xFF])
def test_a_value_that_is_too_large(first: int) -> None:
    target = make_target(make_unit())
    data = parameters(first << 40)
    assert refused(target, set_cdb(12), data_out=data) == bad_list(4)
    good(target, set_cdb(12), data_out=parameters(0xF0 << 40))


def test_list_lengths() -> None:
    target = make_target(make_unit())
    good(target, set_cdb(0))
    assert timestamp(target)[0] == 0b011
    too_short = Sense(SenseKey.ILLEGAL_REQUEST, Asc.PARAMETER_LIST_LENGTH_ERROR)
    assert refused(target, set_cdb(11), data_out=bytes(11)) == too_short
