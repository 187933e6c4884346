"""READ BUFFER and WRITE BUFFER (SPC-4 6.18, 6.49)."""

from __future__ import annotations

import struct

import pytest

from tests.unit.scsi.harness import Sense, bad_cdb, good, make_target, make_unit, refused
from vscsi_emu.scsi import Asc, SenseKey, Target

DATA, DESCRIPTOR, ECHO, ECHO_DESCRIPTOR = 2, 3, 0x0A, 0x0B
CAPACITY = 65536
NOTHING_WRITTEN = Sense(SenseKey.ILLEGAL_REQUEST, Asc.COMMAND_SEQUENCE_ERROR)


def read_cdb(mode: int, offset: int = 0, length: int = CAPACITY, number: int = 0) -> bytes:
    return struct.pack(">BBB", 0x3C, mode, number) + offset.to_bytes(3) + length.to_bytes(3)


def read_16_cdb(mode: int, offset: int = 0, length: int = CAPACITY, number: int = 0) -> bytes:
    return struct.pack(">BBQIBB", 0x9B, mode, offset, length, number, 0)


def write_cdb(mode: int, offset: int = 0, length: int = 0, number: int = 0) -> bytes:
    return struct.pack(">BBB", 0x3B, mode, number) + offset.to_bytes(3) + length.to_bytes(3)


def write(target: Target, mode: int, data: bytes, offset: int = 0) -> None:
    good(target, write_cdb(mode, offset, len(data)), data_out=data)


@pytest.mark.parametrize("cdb", [read_cdb, read_16_cdb])
def test_descriptors(cdb: type[bytes]) -> None:
    target = make_target(make_unit())
    assert good(target, cdb(DESCRIPTOR)) == bytes.fromhex("00 010000")
    assert good(target, cdb(ECHO_DESCRIPTOR)) == bytes.fromhex("01 00 1000")


def test_the_data_buffer_is_shared() -> None:
    unit = make_unit()
    a, b = make_target(unit), make_target(unit, number=1)
    write(a, DATA, b"abcd", offset=10)
    write(b, DATA, b"X", offset=12)
    write(a, DATA, b"last", offset=CAPACITY - 4)
    data = good(b, read_cdb(DATA))
    assert len(data) == CAPACITY
    assert data[8:16] == b"\0\0abXd\0\0"
    assert data[-4:] == b"last"
    for cdb in (read_cdb, read_16_cdb):
        assert good(a, cdb(DATA, 11, 3)) == b"bXd"
        assert good(a, cdb(DATA, CAPACITY, 3)) == b""
    # Writes of nothing, also at the end, change nothing.
    write(a, DATA, b"", offset=CAPACITY)
    assert good(b, read_cdb(DATA)) == data


def test_each_nexus_has_its_echo_buffer() -> None:
    unit = make_unit()
    a, b = make_target(unit), make_target(unit, number=1)
    assert refused(a, read_cdb(ECHO)) == NOTHING_WRITTEN
    write(a, ECHO, b"one of a")
    assert refused(b, read_cdb(ECHO)) == NOTHING_WRITTEN
    write(b, ECHO, bytes(4096))
    for cdb in (read_cdb, read_16_cdb):
        assert good(a, cdb(ECHO)) == b"one of a"
        # Buffer and offset are ignored.
        assert good(a, cdb(ECHO, 7, 3, number=9)) == b"one"
    write(a, ECHO, b"")
    assert good(a, read_cdb(ECHO)) == b""
    a.nexus_loss()
    a.nexuses[0].take()
    assert refused(a, read_cdb(ECHO)) == NOTHING_WRITTEN


@pytest.mark.parametrize("mode", set(range(32)) - {DATA, DESCRIPTOR, ECHO, ECHO_DESCRIPTOR})
def test_modes_that_are_not_there(mode: int) -> None:
    target = make_target(make_unit())
    for cdb in (read_cdb(mode), read_16_cdb(mode), write_cdb(mode)):
        assert refused(target, cdb) == bad_cdb(1, 4)


@pytest.mark.parametrize(
    ("cdb", "byte", "bit"),
    [
        (read_cdb(DATA, number=1), 2, 7),
        (read_cdb(DESCRIPTOR, number=1), 2, 7),
        (read_cdb(DATA, CAPACITY + 1), 3, None),
        (read_cdb(DESCRIPTOR, 1), 3, None),
        (read_cdb(ECHO_DESCRIPTOR, 1), 3, None),
        (read_16_cdb(DATA, number=1), 14, 7),
        (read_16_cdb(DATA, 1 << 63), 2, None),
        (write_cdb(DESCRIPTOR), 1, 4),
        (write_cdb(ECHO_DESCRIPTOR), 1, 4),
        (write_cdb(DATA, number=1), 2, 7),
        (write_cdb(DATA, CAPACITY + 1), 3, None),
        (write_cdb(DATA, CAPACITY, 1), 6, None),
        (write_cdb(DATA, 1, CAPACITY), 6, None),
        (write_cdb(ECHO, length=4097), 6, None),
    ],
)
def test_what_is_out_of_range(cdb: bytes, byte: int, bit: int | None) -> None:
    assert refused(make_target(make_unit()), cdb, data_out=bytes(CAPACITY)) == bad_cdb(byte, bit)
