"""What a unit remembers of its medium when the power fails."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.conformance.attach import attach
from tests.conformance.cdb import (
    CHECK_CONDITION,
    ILLEGAL_REQUEST,
    Disk,
    expect_good,
    expect_sense,
    pattern,
    read_16,
    test_unit_ready,
    unmap,
    write_16,
)
from tests.conformance.cluster import Cluster

MEDIUM_ERROR = 3
SANITIZE_FAILED = 0x3103
MARKED_BAD = 0x1114
IMMED = 0x80
EXIT_FAILURE_MODE = 0x1F
BLOCK_ERASE = 2


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A disk that takes its time to be overwritten."""
    image = tmp_path / "disk.img"
    with image.open("wb") as file:
        file.truncate(256 << 20)
    with Cluster(tmp_path, image.name, nodes=1) as cluster:
        yield cluster


@contextmanager
def disk(cluster: Cluster) -> Iterator[Disk]:
    with ExitStack() as stack:
        yield Disk(stack.enter_context(attach(cluster.nodes[0])).device, 0, 0)


def sanitize(action: int, length: int = 0) -> bytes:
    return struct.pack(">BB5xHx", 0x48, action, length)


def test_a_sanitize_that_the_power_cut_short_has_failed(cluster: Cluster) -> None:
    with disk(cluster) as before:
        before.ready().write(0, pattern(512))
        parameters = bytes([31, 0, 0, 1, 0x5A])
        expect_good(before.run(sanitize(IMMED | 1, len(parameters)), data_out=parameters))
        cluster.restart_after_power_loss()
    with disk(cluster) as after:
        # POWER ON OCCURRED.
        assert after.run(test_unit_ready()).status == CHECK_CONDITION
        expect_sense(after.run(test_unit_ready()), MEDIUM_ERROR, SANITIZE_FAILED)
        expect_sense(after.run(read_16(0, 1), data_in_length=512), MEDIUM_ERROR, SANITIZE_FAILED)
        expect_sense(after.run(sanitize(EXIT_FAILURE_MODE)), ILLEGAL_REQUEST, 0x2400)
        expect_good(after.run(sanitize(BLOCK_ERASE)))
        assert after.read(0, 1) == bytes(512)
        cluster.restart_after_power_loss()
    with disk(cluster) as at_last:
        assert at_last.ready().read(0, 1) == bytes(512)


def write_long(lba: int) -> bytes:
    return struct.pack(">BBIBHB", 0x3F, 0x40, lba, 0, 0, 0)


def test_blocks_marked_bad_stay_bad_until_they_are_written(cluster: Cluster) -> None:
    """Whatever wrote them, and however soon after that the power fails."""
    copy = struct.pack(">BBH4xII", 9, 0, 0, 28, 0) + struct.pack(
        ">BBHHH2xHQQ", 2, 0, 0x18, 0xFFFF, 0xFFFF, 1, 0, 14
    )
    writes = {
        10: (write_16(10, 1), bytes(512)),
        11: (struct.pack(">BBQIBB", 0x93, 0, 11, 1, 0, 0), bytes(512)),
        12: (struct.pack(">BBQIBB", 0x8E, 0, 12, 1, 0, 0), bytes(512)),
        14: (struct.pack(">BB8xIxx", 0x83, 0, len(copy)), copy),
    }
    bad = [*writes, 5, 6, 7, (1 << 19) - 1]
    with disk(cluster) as before:
        before.ready().write(0, pattern(512 * 100))
        for lba in bad:
            expect_good(before.run(write_long(lba)))
        cluster.restart_after_power_loss()
    with disk(cluster) as after:
        after.ready()
        for lba in bad:
            expect_sense(after.run(read_16(lba, 1), data_in_length=512), MEDIUM_ERROR, MARKED_BAD)
        assert after.read(0, 5) == pattern(512 * 5)
        for command, data in writes.values():
            expect_good(after.run(command, data_out=data))
        cluster.restart_after_power_loss()
    with disk(cluster) as at_last:
        at_last.ready()
        for lba in writes:
            at_last.read(lba, 1)
        for lba in bad[len(writes) :]:
            result = at_last.run(read_16(lba, 1), data_in_length=512)
            expect_sense(result, MEDIUM_ERROR, MARKED_BAD)
        unmap_list = struct.pack(">HH4xQI4x", 22, 16, 0, 8)
        expect_good(at_last.run(unmap(len(unmap_list)), data_out=unmap_list))
        at_last.read(0, 100)
    assert not list(cluster.directory.glob("*.state"))
