"""REPORT and SET IDENTIFYING INFORMATION (SPC-4 5.6, 6.32, 6.43)."""

from __future__ import annotations

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
)
from tests.unit.scsi.reserving import MemoryStore
from vscsi_emu.scsi import Asc, SenseKey, Target
from vscsi_emu.scsi.store import SavedStateError

PERIPHERAL, TEXT, SUPPORTED = 0, 0b10, 0b1111111


def report_cdb(kind: int, allocation: int = 0x1000) -> bytes:
    return struct.pack(">BB4xIB", 0xA3, 0x05, allocation, kind << 1)


def set_cdb(kind: int, length: int) -> bytes:
    return struct.pack(">BB4xIB", 0xA4, 0x06, length, kind << 1)


def information(target: Target, kind: int) -> bytes:
    data = good(target, report_cdb(kind))
    assert data[:2] == bytes(2)
    assert int.from_bytes(data[2:4]) == len(data) - 4
    return data[4:]


def set_information(target: Target, kind: int, value: bytes) -> None:
    good(target, set_cdb(kind, len(value)), data_out=value)


@pytest.mark.parametrize(("kind", "value"), [(PERIPHERAL, bytes(range(256)) * 2), (TEXT, b"a\0")])
def test_set_and_report(kind: int, value: bytes) -> None:
    unit = make_unit()
    a, b = make_target(unit), make_target(unit, number=1)
    assert information(a, kind) == b""
    set_information(a, kind, value)
    assert a.nexuses[0].pending == ()
    assert refused(b, "00") == attention(Asc.DEVICE_IDENTIFIER_CHANGED)
    assert information(b, kind) == value
    assert information(b, TEXT if kind == PERIPHERAL else PERIPHERAL) == b""
    # The length is whole when the data is cut.
    assert good(b, report_cdb(kind, 5)) == struct.pack(">xxH", len(value)) + value[:1]
    unit.reset()
    assert unit.identifying[kind] == value


def test_what_changes_nothing_tells_nobody() -> None:
    unit = make_unit()
    a, b = make_target(unit), make_target(unit, number=1)
    set_information(a, TEXT, b"")
    assert b.nexuses[0].pending == ()


def test_an_empty_list_takes_it_away() -> None:
    store = MemoryStore()
    target = make_target(make_unit(store=store))
    set_information(target, PERIPHERAL, b"volume")
    set_information(target, PERIPHERAL, b"")
    assert information(target, PERIPHERAL) == b""
    assert store.sections["identifying-information"] is None


def test_supported_types() -> None:
    assert information(make_target(make_unit()), SUPPORTED) == bytes.fromhex("00000200 04000100")


def test_it_outlives_a_restart() -> None:
    store = MemoryStore()
    target = make_target(make_unit(store=store))
    set_information(target, PERIPHERAL, b"\x00\xff")
    set_information(target, TEXT, b"shelf 3\0")
    again = make_target(make_unit(store=store))
    assert information(again, PERIPHERAL) == b"\x00\xff"
    assert information(again, TEXT) == b"shelf 3\0"


def test_what_cannot_be_saved_does_not_happen() -> None:
    store = MemoryStore()
    target = make_target(make_unit(store=store))
    set_information(target, TEXT, b"old\0")
    store.fail = True
    failed = Sense(SenseKey.HARDWARE_ERROR, Asc.INTERNAL_TARGET_FAILURE)
    assert refused(target, set_cdb(TEXT, 4), data_out=b"new\0") == failed
    assert information(target, TEXT) == b"old\0"


@pytest.mark.parametrize("kind", [1, 3, 4, 0b1111110])
def test_types_that_are_not_there(kind: int) -> None:
    target = make_target(make_unit())
    assert refused(target, report_cdb(kind)) == bad_cdb(10, 7)
    assert refused(target, set_cdb(kind, 0)) == bad_cdb(10, 7)


def test_nobody_sets_what_is_supported() -> None:
    assert refused(make_target(make_unit()), set_cdb(SUPPORTED, 0)) == bad_cdb(10, 7)


@pytest.mark.parametrize(("kind", "most"), [(PERIPHERAL, 512), (TEXT, 256)])
def test_too_long(kind: int, most: int) -> None:
    target = make_target(make_unit())
    set_information(target, kind, b"x" * (most - 1) + b"\0")
    assert refused(target, set_cdb(kind, most + 1), data_out=bytes(most + 1)) == bad_cdb(6, None)
    assert refused(target, set_cdb(kind, 1 << 31)) == bad_cdb(6, None)


@pytest.mark.parametrize(
    ("text", "byte"), [(b"abc", 2), (b"a\0c\0", 1), (b"ab\xff\0", 2), (b"\xc3\0", 0)]
)
def test_texts_that_are_none(text: bytes, byte: int) -> None:
    target = make_target(make_unit())
    assert refused(target, set_cdb(TEXT, len(text)), data_out=text) == bad_list(byte)
    assert information(target, TEXT) == b""


@pytest.mark.parametrize(
    "saved",
    [
        *([], "x", {"0000000": 1}, {"0000000": "0g"}, {"0000001": "00"}, {"2": "00"}),
        {"0000010": "00" * 257},
    ],
)
def test_damaged_state_is_refused(saved: object) -> None:
    store = MemoryStore()
    store.sections["identifying-information"] = saved
    with pytest.raises(SavedStateError, match="identifying information is damaged"):
        make_unit(store=store)
