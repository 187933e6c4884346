"""REPORT and SET PRIORITY (SPC-4 6.34, 6.44)."""

from __future__ import annotations

import struct

import pytest

from tests.unit.scsi.harness import (
    Sense,
    bad_cdb,
    bad_list,
    good,
    initiator_naa,
    make_target,
    make_unit,
    refused,
)
from vscsi_emu.scsi import Asc, SenseKey, Target

THIS, NAMED, ALL = 0b00, 0b01, 0b10
TOO_SHORT = Sense(SenseKey.ILLEGAL_REQUEST, Asc.PARAMETER_LIST_LENGTH_ERROR)


def transport_id(number: int) -> bytes:
    return bytes([6, 0, 0, 0]) + initiator_naa(number) + bytes(12)


def parameters(priority: int, number: int = 0, port: int | None = None) -> bytes:
    port = number + 1 if port is None else port
    return struct.pack(">BxH2xH", priority, port, 24) + transport_id(number)


def set_cdb(what: int, length: int) -> bytes:
    return struct.pack(">BBB3xI", 0xA4, 0x0E, what << 6, length)


def set_priority(target: Target, what: int, data: bytes) -> None:
    good(target, set_cdb(what, len(data)), data_out=data)


def report(target: Target, what: int = THIS) -> list[tuple[int, int, bytes]]:
    """Priority, relative target port and TransportID of each descriptor."""
    data = good(target, struct.pack(">BBB3xI", 0xA3, 0x0E, what << 6, 0x1000))
    assert int.from_bytes(data[:4]) == len(data) - 4
    found = []
    for offset in range(4, len(data), 32):
        priority, port, length = struct.unpack_from(">BxH2xH", data, offset)
        assert length == 24
        found.append((priority, port, data[offset + 8 : offset + 32]))
    return found


def two() -> tuple[Target, Target]:
    unit = make_unit()
    return make_target(unit), make_target(unit, number=1)


def test_the_initial_priority_is_reported_as_0() -> None:
    a, b = two()
    assert report(a) == [(0, 1, transport_id(0))]
    assert report(b) == [(0, 2, transport_id(1))]
    assert report(a, NAMED) == []


def test_of_this_nexus() -> None:
    a, b = two()
    # The rest of the list is ignored, be it there or not.
    set_priority(a, THIS, b"\x0a")
    assert report(a) == [(10, 1, transport_id(0))]
    assert report(b, NAMED) == [(10, 1, transport_id(0))]
    assert a.nexuses[0].pending == b.nexuses[0].pending == ()
    set_priority(a, THIS, parameters(0, number=9))
    assert report(a, NAMED) == []


def test_of_a_named_nexus() -> None:
    a, b = two()
    set_priority(a, NAMED, parameters(3, number=1))
    assert a.nexuses[0].pending == ()
    assert b.nexuses[0].pending == (Asc.PRIORITY_CHANGED,)
    assert report(a, NAMED) == [(3, 2, transport_id(1))]
    assert report(a) == [(0, 1, transport_id(0))]


def test_back_to_the_initial_priority_for_all() -> None:
    a, b = two()
    set_priority(a, THIS, b"\x05")
    set_priority(b, THIS, b"\x06")
    set_priority(a, ALL, b"")
    assert report(a, NAMED) == []
    assert a.nexuses[0].pending == ()
    assert b.nexuses[0].pending == (Asc.PRIORITY_CHANGED,)


def test_what_ends_a_priority() -> None:
    unit = make_unit()
    a = make_target(unit)
    set_priority(a, THIS, b"\x05")
    a.nexus_loss()
    a.nexuses[0].take()
    assert report(a) == [(5, 1, transport_id(0))]
    unit.reset()
    a.nexuses[0].take()
    assert report(a) == [(0, 1, transport_id(0))]


@pytest.mark.parametrize(
    ("data", "byte"), [(parameters(1, port=7), 2), (parameters(1, number=5, port=1), 8)]
)
def test_a_nexus_that_is_not_there(data: bytes, byte: int) -> None:
    assert refused(two()[0], set_cdb(NAMED, len(data)), data_out=data) == bad_list(byte)


@pytest.mark.parametrize("length", [0, 7, 8, 31])
def test_a_name_that_is_cut(length: int) -> None:
    data = parameters(1, number=1)[:length]
    assert refused(two()[0], set_cdb(NAMED, length), data_out=data) == TOO_SHORT


def test_no_priority_for_this_nexus() -> None:
    assert refused(two()[0], set_cdb(THIS, 0)) == TOO_SHORT


def test_reserved_codes() -> None:
    a, _ = two()
    assert refused(a, set_cdb(3, 0)) == bad_cdb(2, 7)
    for code in (2, 3):
        assert refused(a, bytes([0xA3, 0x0E, code << 6])) == bad_cdb(2, 7)
