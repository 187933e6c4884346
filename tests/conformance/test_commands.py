"""Commands that Python answers, over real rings: what is kept, counted and echoed (SPC-4)."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.conformance.attach import attach
from tests.conformance.cdb import (
    GOOD,
    ILLEGAL_REQUEST,
    UNIT_ATTENTION,
    Disk,
    expect_good,
    expect_sense,
    pattern,
    read_16,
    test_unit_ready,
)
from tests.conformance.cluster import Cluster
from vscsi_emu.driver.virtio_scsi import Options

SIZE = 16 << 20
MEDIUM_ERROR = 3


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    with path.open("wb") as file:
        file.truncate(SIZE)
    return path


@pytest.fixture
def cluster(image: Path) -> Iterator[Cluster]:
    with Cluster(image.parent, image.name) as cluster:
        yield cluster


@contextmanager
def disks(cluster: Cluster) -> Iterator[list[Disk]]:
    with ExitStack() as stack:
        yield [
            Disk(stack.enter_context(attach(node, Options())).device, 0, 0).ready()
            for node in cluster.nodes
        ]


def data_in(disk: Disk, cdb: bytes, length: int) -> bytes:
    result = disk.run(cdb, data_in_length=length)
    assert (result.response, result.status) == (0, GOOD), result.sense.hex()
    return result.data


def set_information(disk: Disk, text: bytes) -> None:
    cdb = struct.pack(">BB4xIBx", 0xA4, 0x06, len(text), 0b10 << 1)
    expect_good(disk.run(cdb, data_out=text))


def information(disk: Disk) -> bytes:
    return data_in(disk, struct.pack(">BB4xIBx", 0xA3, 0x05, 256, 0b10 << 1), 256)[4:]


def caching_page(disk: Disk, control: int) -> bytes:
    return data_in(disk, bytes([0x1A, 0x08, control << 6 | 0x08, 0, 24, 0]), 24)[4:]


def test_what_outlives_a_power_loss(cluster: Cluster) -> None:
    with disks(cluster) as (a, b):
        set_information(a, b"shelf 3\0")
        expect_sense(b.run(test_unit_ready()), UNIT_ATTENTION, 0x3F05)
        assert information(b) == b"shelf 3\0"
        without_wce = bytes(4) + b"\x08\x12" + bytes(18)
        select = bytes([0x15, 0x11, 0, 0, len(without_wce), 0])
        expect_good(a.run(select, data_out=without_wce))
        expect_sense(b.run(test_unit_ready()), UNIT_ATTENTION, 0x2A01)
    cluster.restart_after_power_loss()
    with disks(cluster) as (a, b):
        assert information(b) == b"shelf 3\0"
        for control, wce in ((0, 0), (2, 0x04), (3, 0)):
            assert caching_page(a, control)[2] & 0x04 == wce


def errors(disk: Disk, page: int) -> int:
    """Total uncorrected errors of an error counter page."""
    data = data_in(disk, struct.pack(">BBBB3xHx", 0x4D, 0, 0x40 | page, 0, 64), 64)
    return int.from_bytes(data[8:])


def self_test(disk: Disk, code: int) -> tuple[int, int]:
    """Its result and the address of the first failure."""
    disk.run(bytes([0x1D, code << 5, 0, 0, 0, 0]))
    deadline = time.monotonic() + 30
    while True:
        data = data_in(disk, struct.pack(">BBBB3xHx", 0x4D, 0, 0x50, 0, 24), 24)
        result, address = data[8] & 0xF, int.from_bytes(data[12:20])
        if result != 0xF:
            return result, address
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("code", [0b010, 0b110])
def test_errors_are_counted_and_found(cluster: Cluster, image: Path, code: int) -> None:
    """The second half of the image is cut off under the server."""
    with disks(cluster) as (a, b):
        a.write(0, pattern(4096))
        assert self_test(a, code) == (0, 0xFFFF_FFFF_FFFF_FFFF)
        assert [errors(a, page) for page in (2, 3, 5)] == [0, 0, 0]
        os.truncate(image, SIZE // 2)
        bad = SIZE // 2 // 512
        for _ in range(3):
            result = b.run(read_16(bad + 8, 8), data_in_length=4096)
            expect_sense(result, MEDIUM_ERROR, 0x1100)
        verify = struct.pack(">BBQIBB", 0x8F, 0, bad, 8, 0, 0)
        expect_sense(b.run(verify), MEDIUM_ERROR, 0x1100)
        assert [errors(a, page) for page in (2, 3, 5)] == [0, 3, 1]
        assert self_test(a, code) == (6, bad)
        expect_good(a.run(struct.pack(">BBB4xHx", 0x4C, 0x02, 0, 0)))
        assert [errors(a, page) for page in (2, 3, 5)] == [0, 0, 0]
        expect_sense(b.run(test_unit_ready()), UNIT_ATTENTION, 0x2A02)


def write_buffer(mode: int, length: int, offset: int = 0) -> bytes:
    return bytes([0x3B, mode, 0]) + offset.to_bytes(3) + length.to_bytes(3) + b"\0"


def read_buffer(mode: int, length: int, offset: int = 0) -> bytes:
    return bytes([0x3C, mode, 0]) + offset.to_bytes(3) + length.to_bytes(3) + b"\0"


def test_buffers(cluster: Cluster) -> None:
    with disks(cluster) as (a, b):
        mine, whole = pattern(4096, seed=3), pattern(65536, seed=4)
        expect_good(a.run(write_buffer(0x0A, 4096), data_out=mine))
        expect_sense(b.run(read_buffer(0x0A, 64), data_in_length=64), ILLEGAL_REQUEST, 0x2C00)
        expect_good(b.run(write_buffer(0x02, 65536), data_out=whole))
        assert data_in(a, read_buffer(0x0A, 4096), 4096) == mine
        assert data_in(a, read_buffer(0x02, 65536), 65536) == whole
        result = a.run(write_buffer(0x02, 2, 65535), data_out=b"xy")
        expect_sense(result, ILLEGAL_REQUEST, 0x2400)
