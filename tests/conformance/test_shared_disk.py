"""A disk that two HBAs of one process export: reservations and unit attentions cross sockets."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.conformance.attach import attach
from tests.conformance.cdb import (
    GOOD,
    UNIT_ATTENTION,
    Disk,
    expect_good,
    expect_sense,
    pattern,
    read_16,
    test_unit_ready,
    write_16,
)
from tests.conformance.cluster import Cluster
from vscsi_emu.driver.request import Result
from vscsi_emu.driver.virtio_scsi import REQUEST_QUEUE, Options, VirtioScsi
from vscsi_emu.virtio.scsi import Response

RESERVATION_CONFLICT = 0x18
REGISTER, RESERVE, RELEASE, CLEAR, PREEMPT, PREEMPT_AND_ABORT = range(6)
WRITE_EXCLUSIVE, EXCLUSIVE_ACCESS = 1, 3
APTPL = 1
DEEP = Options(queue_size=256, queues=None)


def pr_out(
    disk: Disk, action: int, key: int = 0, action_key: int = 0, *, kind: int = 0, flags: int = 0
) -> Result:
    cdb = struct.pack(">BBB2xIB", 0x5F, action, kind, 24, 0)
    return disk.run(cdb, data_out=struct.pack(">QQ4xB3x", key, action_key, flags))


def pr_in(disk: Disk, action: int) -> bytes:
    result = disk.run(struct.pack(">BB5xHB", 0x5E, action, 512, 0), data_in_length=512)
    assert (result.response, result.status) == (0, GOOD)
    return result.data


def conflicts(result: Result) -> bool:
    return (result.response, result.status) == (0, RESERVATION_CONFLICT)


@contextmanager
def disks(cluster: Cluster) -> Iterator[list[Disk]]:
    """The shared disk as each node sees it."""
    with ExitStack() as stack:
        yield [
            Disk(stack.enter_context(attach(node, DEEP)).device, 0, 0).ready()
            for node in cluster.nodes
        ]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "shared.img"
    with path.open("wb") as file:
        file.truncate(16 << 20)
    return path


@pytest.fixture
def cluster(image: Path) -> Iterator[Cluster]:
    with Cluster(image.parent, image.name) as cluster:
        yield cluster


def test_a_reservation_excludes_the_other_node(cluster: Cluster) -> None:
    with disks(cluster) as (a, b):
        expect_good(pr_out(a, REGISTER, 0, 0xA))
        expect_good(pr_out(a, RESERVE, 0xA, kind=WRITE_EXCLUSIVE))
        a.write(0, pattern(4096))
        assert conflicts(b.run(write_16(0, 8), data_out=bytes(4096)))
        assert b.read(0, 8) == pattern(4096)
        expect_good(pr_out(b, REGISTER, 0, 0xB))
        expect_good(pr_out(b, PREEMPT, 0xB, 0xA, kind=EXCLUSIVE_ACCESS))
        expect_sense(a.run(test_unit_ready()), UNIT_ATTENTION, 0x2A05)
        assert conflicts(a.run(read_16(0, 8), data_in_length=4096))
        assert conflicts(pr_out(a, RELEASE, 0xA, kind=EXCLUSIVE_ACCESS))
        b.write(0, pattern(4096, seed=2))
        expect_good(pr_out(b, CLEAR, 0xB))
        assert a.read(0, 8) == pattern(4096, seed=2)


def test_names_in_the_full_status(cluster: Cluster) -> None:
    """Each HBA is an initiator port and, to it, a target port of its own."""
    with disks(cluster) as (a, b):
        expect_good(pr_out(a, REGISTER, 0, 0xA))
        expect_good(pr_out(b, REGISTER, 0, 0xB))
        data = pr_in(a, 3)
        assert data == pr_in(b, 3)
        (length,) = struct.unpack_from(">I", data, 4)
        assert length == 2 * 48
        ports, names = set(), set()
        for start in (8, 56):
            port, size = struct.unpack_from(">HI", data, start + 18)
            transport_id = data[start + 24 : start + 48]
            assert size == 24
            assert transport_id[:4] == bytes([6, 0, 0, 0])
            assert transport_id[4] >> 4 == 3, "locally assigned NAA"
            assert not any(transport_id[12:])
            ports.add(port)
            names.add(transport_id)
        assert len(ports) == len(names) == 2
        expect_good(pr_out(a, CLEAR, 0xA))


def test_no_write_slips_past_a_reservation(cluster: Cluster) -> None:
    """What the other node had in flight is over when RESERVE answers: nothing of it lands later."""
    with disks(cluster) as (a, b):
        expect_good(pr_out(a, REGISTER, 0, 0xA))
        queues = range(REQUEST_QUEUE, len(b.device.queues))
        for round_ in range(10):
            items = [
                b.device.submit(
                    0, 0, write_16(0, 64), data_out=bytes(32768), queue=queues[n % len(queues)]
                )
                for n in range(100)
            ]
            expect_good(pr_out(a, RESERVE, 0xA, kind=EXCLUSIVE_ACCESS))
            mine = pattern(32768, seed=round_ + 1)
            a.write(0, mine)
            for result in b.device.wait_all(items):
                assert conflicts(result) or result.status == GOOD
            assert a.read(0, 64) == mine
            expect_good(pr_out(a, RELEASE, 0xA, kind=EXCLUSIVE_ACCESS))
        expect_good(pr_out(a, CLEAR, 0xA))


def test_preempt_and_abort_ends_what_the_victim_has_in_flight(cluster: Cluster) -> None:
    with disks(cluster) as (a, b):
        queues = range(REQUEST_QUEUE, len(b.device.queues))
        for _ in range(5):
            expect_good(pr_out(a, REGISTER, 0, 0xA))
            expect_good(pr_out(b, REGISTER, 0, 0xB))
            expect_good(pr_out(b, RESERVE, 0xB, kind=WRITE_EXCLUSIVE))
            items = [
                b.device.submit(
                    0, 0, write_16(64 * n, 64), data_out=bytes(32768), queue=queues[n % len(queues)]
                )
                for n in range(100)
            ]
            expect_good(pr_out(a, PREEMPT_AND_ABORT, 0xA, 0xB, kind=WRITE_EXCLUSIVE))
            reap(b.device)
            assert all(item.done for item in items), "answered before its victims were"
            for item in items:
                result = item.parse(item.ticket.reply)
                assert result.response in (Response.OK, Response.ABORTED)
                if result.response == Response.OK and result.status not in (GOOD, 0x18):
                    assert result.sense[2] & 0xF == UNIT_ATTENTION
            b.ready()
            assert conflicts(b.run(write_16(0, 64), data_out=bytes(32768)))
            expect_good(pr_out(a, CLEAR, 0xA))


def reap(device: VirtioScsi) -> None:
    for queue in device.queues:
        if queue >= REQUEST_QUEUE:
            device.reap(queue)


def test_registrations_survive_a_disconnection(cluster: Cluster) -> None:
    with disks(cluster) as (a, _):
        expect_good(pr_out(a, REGISTER, 0, 0xA))
        expect_good(pr_out(a, RESERVE, 0xA, kind=WRITE_EXCLUSIVE))
    with disks(cluster) as (a, b):
        assert conflicts(b.run(write_16(0, 8), data_out=bytes(4096)))
        a.write(0, pattern(4096))
        expect_good(pr_out(a, CLEAR, 0xA))


def test_an_spc_2_reservation_ends_with_the_connection(cluster: Cluster) -> None:
    with attach(cluster.nodes[1]) as other:
        b = Disk(other.device, 0, 0).ready()
        with attach(cluster.nodes[0]) as one:
            expect_good(Disk(one.device, 0, 0).ready().run(bytes([0x16, 0, 0, 0, 0, 0])))
            assert conflicts(b.run(read_16(0, 8), data_in_length=4096))
        with attach(cluster.nodes[0]):
            b.read(0, 8)


def test_power_loss(cluster: Cluster, image: Path) -> None:
    """With APTPL, what was acknowledged is there after SIGKILL; without, it is gone."""
    with disks(cluster) as (a, b):
        expect_good(pr_out(a, REGISTER, 0, 0xA, flags=APTPL))
        expect_good(pr_out(b, REGISTER, 0, 0xB, flags=APTPL))
        expect_good(pr_out(a, RESERVE, 0xA, kind=EXCLUSIVE_ACCESS))
        before = pr_in(a, 3)
        cluster.restart_after_power_loss()
    with disks(cluster) as (a, b):
        assert pr_in(b, 3)[4:] == before[4:]
        assert conflicts(b.run(read_16(0, 8), data_in_length=4096))
        a.write(0, pattern(4096))
        assert Path(f"{image}.state").exists()
        expect_good(pr_out(a, REGISTER, 0xA, 0xA))
        cluster.restart_after_power_loss()
    with disks(cluster) as (_, b):
        assert pr_in(b, 0) == bytes(8)
        b.write(0, pattern(4096))
    assert not Path(f"{image}.state").exists()
