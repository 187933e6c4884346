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
)
from tests.conformance.cluster import Cluster

MEDIUM_ERROR = 3
SANITIZE_FAILED = 0x3103
IMMED = 0x80
EXIT_FAILURE_MODE = 0x1F
BLOCK_ERASE = 2


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A disk that takes its time to be overwritten."""
    image = tmp_path / "disk.img"
    with image.open("wb") as file:
        file.truncate(1 << 30)
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
