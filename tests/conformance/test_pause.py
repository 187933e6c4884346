"""Rings that are stopped, and devices that are reset, while a unit is paused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance import cdb
from tests.conformance.attach import Guest, attach
from tests.conformance.cdb import GOOD, Disk, expect_good, pattern
from tests.conformance.reads import used_idx
from tests.conformance.server import Server
from tests.conformance.task_set import BUSY, ORDERED, Node
from vscsi_emu.control import Client
from vscsi_emu.driver.virtio_scsi import REQUEST_QUEUE, Options

OLD, NEW = pattern(512, seed=1), pattern(512, seed=2)
READ = cdb.read_16(0, 1)


@pytest.fixture
def monitor_path(tmp_path: Path) -> str:
    return str(tmp_path / "monitor")


@pytest.fixture
def server(monitor_path: str) -> Iterator[Server]:
    arguments = ["--monitor", monitor_path]
    with Server(["0:0=mem:1M", "0:1=mem:1M"], queues=2, arguments=arguments) as running:
        yield running
        running.check()


@pytest.fixture
def monitor(server: Server, monitor_path: str) -> Iterator[Client]:
    with Client(monitor_path) as client:
        yield client


@pytest.fixture
def guest(server: Server) -> Iterator[Guest]:
    with attach(server, Options(queues=2)) as attached:
        Disk(attached.device, 0, 0).ready().write(0, OLD)
        Disk(attached.device, 0, 1).ready()
        yield attached


@pytest.mark.normative("vu.vring.b7")
def test_a_ring_that_stops_gives_back_what_waits(guest: Guest, monitor: Client) -> None:
    """It cannot stay in the ring: what came behind it, for another unit, is complete."""
    node = Node(guest.device)
    monitor.lun_pause(lun="0:0")
    waiting = [
        node.send(cdb.write_16(0, 1), data_out=NEW),
        node.send(cdb.inquiry(36), data_in_length=36),
        node.send(READ, ORDERED, data_in_length=512),
    ]
    behind = node.send(READ, data_in_length=512, lun=1)
    assert node.end(behind) == (0, GOOD)
    assert all(node.waits(item) for item in waiting)
    base = guest.bus.stop_queue(REQUEST_QUEUE)
    assert base == used_idx(guest)
    assert [node.end(item) for item in waiting] == [(0, BUSY)] * 3
    guest.bus.run_queue(REQUEST_QUEUE)
    late = node.send(READ, data_in_length=512)
    assert node.waits(late)
    monitor.lun_resume(lun="0:0")
    assert guest.device.wait(late).data == OLD


def test_other_rings_go_on_waiting(guest: Guest, monitor: Client) -> None:
    node = Node(guest.device)
    monitor.lun_pause(lun="0:0")
    mine = node.send(READ, data_in_length=512)
    other = node.send(READ, data_in_length=512, queue=1)
    assert node.waits(mine)
    guest.bus.stop_queue(REQUEST_QUEUE)
    assert node.end(mine) == (0, BUSY)
    assert node.waits(other)
    monitor.lun_resume(lun="0:0")
    assert guest.device.wait(other).data == OLD


def test_a_reset_does_not_wait(guest: Guest, monitor: Client, server: Server) -> None:
    node = Node(guest.device)
    monitor.lun_pause(lun="0:0")
    item = node.send(cdb.write_16(0, 1), data_out=NEW)
    assert node.waits(item)
    guest.bus.reset()
    guest.bus.close()
    monitor.lun_resume(lun="0:0")
    with attach(server) as again:
        assert Disk(again.device, 0, 0).ready().read(0, 1) == OLD


def test_a_driver_may_go(guest: Guest, monitor: Client, server: Server) -> None:
    node = Node(guest.device)
    monitor.lun_pause(lun="0:0")
    item = node.send(cdb.write_16(0, 1), data_out=NEW)
    assert node.waits(item)
    guest.bus.close()
    with attach(server) as again:
        monitor.lun_resume(lun="0:0")
        disk = Disk(again.device, 0, 0).ready()
        assert disk.read(0, 1) == OLD
        expect_good(disk.run(cdb.synchronize_cache_10()))
