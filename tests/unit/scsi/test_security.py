"""SECURITY PROTOCOL IN (SPC-4 6.40, 7.7.1) and BACKGROUND CONTROL (SBC-4 5.2)."""

from __future__ import annotations

import struct

import pytest

from tests.unit.scsi.harness import bad_cdb, good, make_target, make_unit, refused

LIST = bytes.fromhex("000000000000 0001 00")


def cdb(protocol: int, specific: int, length: int, *, inc_512: bool = False) -> bytes:
    return struct.pack(">BBHBxI", 0xA2, protocol, specific, inc_512 << 7, length)


def test_the_list_of_protocols() -> None:
    target = make_target(make_unit())
    assert good(target, cdb(0, 0, 512)) == LIST
    assert good(target, cdb(0, 0, 8)) == LIST[:8]
    assert good(target, cdb(0, 0, 1, inc_512=True)) == LIST
    assert good(target, cdb(0, 0, 0, inc_512=True)) == b""


def test_there_is_no_certificate() -> None:
    assert good(make_target(make_unit()), cdb(0, 1, 512)) == bytes(4)


@pytest.mark.parametrize("protocol", [1, 7, 0x20, 0xEF, 0xFF])
def test_protocols_that_are_not_there(protocol: int) -> None:
    assert refused(make_target(make_unit()), cdb(protocol, 0, 512)) == bad_cdb(1, 7)


@pytest.mark.parametrize("specific", [2, 0x100, 0xFFFF])
def test_pages_that_are_not_there(specific: int) -> None:
    assert refused(make_target(make_unit()), cdb(0, specific, 512)) == bad_cdb(2, None)


def test_background_control() -> None:
    target = make_target(make_unit())
    for bo_ctl in range(3):
        assert good(target, bytes([0x9E, 0x15, bo_ctl << 6, 0xFF])) == b""
    assert refused(target, bytes([0x9E, 0x15, 0xC0])) == bad_cdb(2, 7)
    # BOCS of the Block Device Characteristics VPD page says that the command is there.
    assert good(target, "12 01 b1 0040")[8] & 0x04
