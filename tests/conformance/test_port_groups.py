"""Two ways to one disk in different access states, over real rings (SPC-4 5.16)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conformance.attach import attach
from tests.conformance.cdb import (
    CHECK_CONDITION,
    GOOD,
    UNIT_ATTENTION,
    Disk,
    expect_good,
    expect_sense,
    inquiry,
    pattern,
    read_capacity_16,
    test_unit_ready,
    write_16,
)
from tests.conformance.cluster import Cluster
from vscsi_emu.driver.virtio_scsi import REQUEST_QUEUE, Options

OPTIMIZED, NON_OPTIMIZED, STANDBY, UNAVAILABLE = range(4)
NOT_READY = 0x02


@pytest.fixture
def ways(tmp_path: Path) -> Iterator[tuple[Disk, Disk]]:
    with Cluster(tmp_path, "mem:16M") as cluster, ExitStack() as stack:
        options = Options(queue_size=256, queues=None)
        devices = [stack.enter_context(attach(node, options)).device for node in cluster.nodes]
        first, second = (Disk(device, 0, 0).ready() for device in devices)
        yield first, second


def states(disk: Disk) -> dict[int, int]:
    """Access state of each target port group; the extended format, as Linux asks for it."""
    cdb = struct.pack(">BB4xIxx", 0xA3, 0x2A, 512)
    result = disk.run(cdb, data_in_length=512)
    assert (result.response, result.status) == (0, GOOD)
    data = result.data
    assert data[4] & 0x70 == 0x10
    found, offset = {}, 8
    while offset < len(data):
        state, group, ports = struct.unpack_from(">BxHxxxB", data, offset)
        found[group] = state & 0xF
        offset += 8 + 4 * ports
    return found


def set_state(disk: Disk, group: int, state: int) -> None:
    data = struct.pack(">4xBxH", state, group)
    expect_good(disk.run(struct.pack(">BB4xIxx", 0xA4, 0x0A, len(data)), data_out=data))


def own_group(disk: Disk) -> int:
    """From the target port group designator of VPD page 83h."""
    data = disk.run(inquiry(512, 0x83), data_in_length=512).data
    offset = 4
    while data[offset + 1] & 0xF != 5:
        offset += 4 + data[offset + 3]
    return int.from_bytes(data[offset + 6 : offset + 8])


def test_each_way_knows_its_group(ways: tuple[Disk, Disk]) -> None:
    assert [own_group(disk) for disk in ways] == [1, 2]
    for disk in ways:
        assert disk.run(inquiry(96), data_in_length=96).data[5] & 0x30 == 0x30
        assert states(disk) == {1: OPTIMIZED, 2: OPTIMIZED}


def test_no_write_slips_past_standby(ways: tuple[Disk, Disk]) -> None:
    a, b = ways
    queues = range(REQUEST_QUEUE, len(b.device.queues))
    for round_ in range(5):
        items = [
            b.device.submit(
                0, 0, write_16(0, 64), data_out=bytes(32768), queue=queues[n % len(queues)]
            )
            for n in range(100)
        ]
        set_state(a, 2, STANDBY)
        mine = pattern(32768, seed=round_ + 1)
        a.write(0, mine)
        for result in b.device.wait_all(items):
            assert result.status in (GOOD, CHECK_CONDITION)
        assert a.read(0, 64) == mine
        # The unit attention, if no write has reported it.
        assert b.run(test_unit_ready()).status == CHECK_CONDITION
        expect_sense(b.run(write_16(0, 64), data_out=bytes(32768)), NOT_READY, 0x040B)
        assert a.read(0, 64) == mine
        set_state(a, 2, OPTIMIZED)
        b.run(test_unit_ready())


def test_a_failover_and_back(ways: tuple[Disk, Disk]) -> None:
    a, b = ways
    set_state(b, 1, UNAVAILABLE)
    expect_sense(a.run(test_unit_ready()), UNIT_ATTENTION, 0x2A06)
    expect_sense(a.run(test_unit_ready()), NOT_READY, 0x040C)
    assert a.run(inquiry(96), data_in_length=96).data[0] == 0x20
    assert states(a) == states(b) == {1: UNAVAILABLE, 2: OPTIMIZED}
    b.write(0, pattern(4096))
    set_state(a, 1, NON_OPTIMIZED)
    assert a.read(0, 8) == pattern(4096)


def test_a_path_in_standby_has_its_size(ways: tuple[Disk, Disk]) -> None:
    """So that a host that boots with it there can use it once it is active."""
    a, b = ways
    set_state(a, 2, STANDBY)
    expect_sense(b.run(test_unit_ready()), UNIT_ATTENTION, 0x2A06)
    data = b.run(read_capacity_16(32), data_in_length=32).data
    assert int.from_bytes(data[:8]) == (16 << 20) // 512 - 1
