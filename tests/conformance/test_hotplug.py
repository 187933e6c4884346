"""Units that come, change and go while our driver uses them."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.conformance import cdb
from tests.conformance.attach import Guest, attach
from tests.conformance.cdb import Disk, expect_good, expect_sense, pattern
from tests.conformance.reads import within
from tests.conformance.server import Server
from vscsi_emu.control import Client, RpcError
from vscsi_emu.driver.virtio_scsi import REQUEST_QUEUE, Options
from vscsi_emu.virtio.scsi import (
    EVENTS_MISSED,
    Event,
    EventType,
    ResetReason,
    Response,
    TmfType,
    encode_lun,
)

MIB = 1 << 20
WAIT = 10.0
CAPACITY_CHANGED = 0x2A09
MODE_CHANGED = 0x2A01


@pytest.fixture(scope="module")
def monitored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, str]]:
    path = str(tmp_path_factory.mktemp("monitor") / "socket")
    with Server(["mem:8M"], queues=2, arguments=["--monitor", path]) as server:
        yield server, path
        assert server.process.terminate() == 0, server.process.log[-4000:]


@pytest.fixture
def server(monitored: tuple[Server, str]) -> Iterator[Server]:
    yield monitored[0]
    monitored[0].check()


@pytest.fixture
def monitor(server: Server, monitored: tuple[Server, str]) -> Iterator[Client]:
    with Client(monitored[1]) as client:
        yield client
        others = [lun.id for lun in client.hba_query().luns if lun.id != "disk-0-0"]
        if others:
            client.lun_remove(lun=others, deadline=0, force=True)


@pytest.fixture
def guest(monitor: Client, server: Server) -> Iterator[Guest]:
    with attach(server, Options(queue_size=128)) as attached:
        Disk(attached.device, 0, 0).ready()
        yield attached


def capacity(disk: Disk) -> int:
    """Bytes, by READ CAPACITY(16)."""
    result = disk.run(cdb.read_capacity_16(32), data_in_length=32)
    expect_good(result)
    return (int.from_bytes(result.data[:8]) + 1) * int.from_bytes(result.data[8:12])


@contextmanager
def load(guest: Guest) -> Iterator[None]:
    """Writes on the unit that stays, in flight meanwhile; all of them must succeed."""
    data = pattern(4096)
    items = [guest.device.submit(0, 0, cdb.write_16(8 * n, 8), data_out=data) for n in range(64)]
    yield
    for result in guest.device.wait_all(items):
        expect_good(result)


@pytest.mark.normative("scsi.evt.d9", "scsi.evt.d12", "scsi.evt.d15")
def test_events_arrive_and_data_flows_all_the_while(guest: Guest, monitor: Client) -> None:
    stays = Disk(guest.device, 0, 0)
    for cycle in range(10):
        address = (1, 300 + cycle)
        at = f"1:{300 + cycle}"
        with load(guest):
            monitor.lun_add(luns=[f"{at}=mem:1M"])
            assert guest.device.next_event(WAIT) == Event(
                EventType.TRANSPORT_RESET, encode_lun(*address), ResetReason.RESCAN
            )
            disk = Disk(guest.device, *address).ready()
            disk.write(0, pattern(512, seed=cycle))
            monitor.lun_resize(lun=at, size=2 * MIB)
            event = guest.device.next_event(WAIT)
            assert event is not None
            assert (event.event, event.reason) == (EventType.PARAM_CHANGE, 0x2A | 0x09 << 8)
            expect_sense(disk.run(cdb.test_unit_ready()), cdb.UNIT_ATTENTION, CAPACITY_CHANGED)
            assert capacity(disk) == 2 * MIB
            assert disk.read(0, 1) == pattern(512, seed=cycle)
            monitor.lun_remove(lun=[at])
            assert guest.device.next_event(WAIT) == Event(
                EventType.TRANSPORT_RESET, encode_lun(*address), ResetReason.REMOVED
            )
            assert guest.device.execute(*address, cdb.test_unit_ready()).sense[12] == 0x25
    stays.write(5, pattern(512))
    assert stays.read(5, 1) == pattern(512)


def test_a_driver_that_does_not_let_go_keeps_its_unit(guest: Guest, monitor: Client) -> None:
    monitor.lun_add(luns=["1:1=mem:1M"])
    disk = Disk(guest.device, 1, 1).ready()
    monitor.lun_pause(lun="1:1")
    item = guest.device.submit(1, 1, cdb.read_16(0, 1), data_in_length=512)
    with pytest.raises(RpcError, match=r"1:1 is still in use after 0\.8 s") as caught:
        monitor.lun_remove(lun=["1:1"], deadline=0.8)
    assert caught.value.parameter is None
    reasons = [_reason(guest) for _ in range(3)]
    assert reasons == [ResetReason.RESCAN, ResetReason.REMOVED, ResetReason.RESCAN]
    monitor.lun_resume(lun="1:1")
    expect_good(guest.device.wait(item))
    disk.write(0, pattern(512))


def _reason(guest: Guest) -> int:
    event = guest.device.next_event(WAIT)
    assert event is not None
    return event.reason


def test_force_ends_what_is_left(guest: Guest, monitor: Client) -> None:
    monitor.lun_add(luns=["1:1=mem:1M"])
    Disk(guest.device, 1, 1).ready()
    monitor.lun_pause(lun="1:1")
    items = [
        guest.device.submit(1, 1, cdb.read_16(0, 1), data_in_length=512),
        guest.device.submit(1, 1, cdb.inquiry(36), data_in_length=36),
    ]
    monitor.lun_remove(lun=["1:1"], deadline=0.6, force=True)
    for result in guest.device.wait_all(items):
        assert result.response == Response.FAILURE


def test_a_driver_has_time_to_write_back(
    guest: Guest, monitor: Client, monitored: tuple[Server, str], tmp_path: Path
) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(MIB))
    monitor.lun_add(luns=[f"1:1={image}"])
    disk = Disk(guest.device, 1, 1).ready()
    assert _reason(guest) == ResetReason.RESCAN
    with ThreadPoolExecutor() as pool, Client(monitored[1]) as other:
        removal = pool.submit(other.lun_remove, ["1:1"])
        assert _reason(guest) == ResetReason.REMOVED
        for block in range(20):
            disk.write(block, pattern(512, seed=block))
            time.sleep(0.05)
        expect_good(disk.run(cdb.synchronize_cache_10()))
        assert not removal.done()
        removal.result(WAIT)
    data = image.read_bytes()
    assert all(data[n * 512 :][:512] == pattern(512, seed=n) for n in range(20))


def test_a_paused_unit_answers_nothing_until_it_goes_on(guest: Guest, monitor: Client) -> None:
    disk = Disk(guest.device, 0, 0)
    old, new = pattern(512, seed=3), pattern(512, seed=4)
    disk.write(0, old)
    assert monitor.lun_pause(lun="0:0").drained
    items = [
        guest.device.submit(0, 0, cdb.read_16(0, 1), data_in_length=512),
        guest.device.submit(0, 0, cdb.write_16(0, 1), data_out=new),
        guest.device.submit(0, 0, cdb.inquiry(36), data_in_length=36),
    ]
    time.sleep(0.2)
    guest.device.reap(REQUEST_QUEUE)
    assert not any(item.done for item in items)
    monitor.lun_flush(lun="0:0")
    assert monitor.hba_query().luns[0].paused
    monitor.lun_resume(lun="0:0")
    read, write, inquiry = guest.device.wait_all(items)
    for result in (read, write, inquiry):
        expect_good(result)
    # In the order they came, and none behind them overtakes.
    assert read.data == old
    assert disk.read(0, 1) == new


def test_what_a_paused_unit_holds_can_be_aborted(guest: Guest, monitor: Client) -> None:
    disk = Disk(guest.device, 0, 0)
    disk.write(0, pattern(512, seed=5))
    monitor.lun_pause(lun="0:0")
    item = guest.device.submit(0, 0, cdb.write_16(0, 1), data_out=pattern(512, seed=6))
    time.sleep(0.1)
    assert guest.device.task_management(TmfType.LOGICAL_UNIT_RESET, 0, 0) == 0
    assert guest.device.wait(item).response == Response.RESET
    monitor.lun_resume(lun="0:0")
    # The unit attention of the reset is there still: no dead command took it.
    expect_sense(disk.run(cdb.test_unit_ready()), cdb.UNIT_ATTENTION, 0x2903)
    assert disk.read(0, 1) == pattern(512, seed=5)


def test_a_server_with_a_paused_unit_ends(tmp_path: Path) -> None:
    path = str(tmp_path / "monitor")
    with (
        Server(["mem:1M"], arguments=["--monitor", path]) as server,
        attach(server) as guest,
        Client(path) as monitor,
    ):
        Disk(guest.device, 0, 0).ready()
        monitor.lun_pause(lun="0:0")
        guest.device.submit(0, 0, cdb.read_16(0, 1), data_in_length=512)
        assert server.process.terminate() == 0


@pytest.mark.parametrize("kind", ["mem", "null", "file"])
def test_every_size_is_what_the_guest_gets(
    guest: Guest, monitor: Client, tmp_path: Path, kind: str
) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(MIB))
    uri = str(image) if kind == "file" else f"{kind}:1M"
    monitor.lun_add(luns=[f"1:1={uri}"])
    disk = Disk(guest.device, 1, 1).ready()
    last = pattern(512, seed=9)
    for size in (2 * MIB, MIB // 2, 4 * MIB):
        with load(guest):
            assert monitor.lun_resize(lun="1:1", size=size).size == size
        expect_sense(disk.run(cdb.test_unit_ready()), cdb.UNIT_ATTENTION, CAPACITY_CHANGED)
        assert capacity(disk) == size
        end = size // 512
        disk.write(end - 1, last)
        beyond = disk.run(cdb.read_16(end, 1), data_in_length=512)
        expect_sense(beyond, cdb.ILLEGAL_REQUEST, 0x2100)
        if kind == "file":
            assert image.stat().st_size == size
            monitor.lun_flush(lun="1:1")
            assert image.read_bytes()[-512:] == last
    if kind != "null":
        # What was cut off does not come back.
        assert disk.read(2 * MIB // 512 - 1, 1) == bytes(512)
        assert disk.read(MIB // 2 // 512 - 1, 1) == last


def test_write_protection_and_write_cache(guest: Guest, monitor: Client) -> None:
    monitor.lun_add(luns=["1:1=mem:1M"])
    disk = Disk(guest.device, 1, 1).ready()
    monitor.lun_set(lun="1:1", read_only=True, cache="writethrough")
    expect_sense(disk.run(cdb.test_unit_ready()), cdb.UNIT_ATTENTION, MODE_CHANGED)
    refused = disk.run(cdb.write_16(0, 1), data_out=bytes(512))
    expect_sense(refused, cdb.DATA_PROTECT, 0x2700)
    page = disk.run(cdb.mode_sense_10(255), data_in_length=255).data
    assert page[3] & 0x80, "WP"
    caching = page.index(b"\x08\x12")
    assert not page[caching + 2] & 0x04, "WCE"
    monitor.lun_set(lun="1:1", read_only=False)
    expect_sense(disk.run(cdb.test_unit_ready()), cdb.UNIT_ATTENTION, MODE_CHANGED)
    disk.write(0, pattern(512))


@pytest.mark.normative("scsi.evt.d2", "scsi.evt.d5")
def test_more_units_than_there_is_room_for_events(guest: Guest, monitor: Client) -> None:
    luns = [f"{2 + n // 100}:{n % 100}=mem:1M" for n in range(400)]
    monitor.lun_add(luns=luns)
    told = []
    while event := guest.device.next_event(0.5):
        told.append(event)
    assert told[-1] == Event(EventType.NO_EVENT | EVENTS_MISSED, bytes(8), 0)
    assert len(told) < len(luns)
    Disk(guest.device, 5, 99).ready().write(0, pattern(512))


def test_nothing_is_left_of_units_that_went(tmp_path: Path) -> None:
    path, image = str(tmp_path / "monitor"), tmp_path / "disk.img"
    image.write_bytes(bytes(MIB))
    # Of its own: connections of other tests may be closing.
    with (
        Server(["mem:8M"], arguments=["--monitor", path]) as server,
        Client(path) as monitor,
        attach(server, Options(queue_size=128)) as guest,
    ):
        Disk(guest.device, 0, 0).ready()

        def cycle(number: int) -> None:
            for target, uri in ((1, "mem:1M"), (2, str(image))):
                monitor.lun_add(luns=[f"{target}:{number}={uri}"])
                Disk(guest.device, target, number).ready().write(0, pattern(512))
                monitor.lun_remove(lun=[f"{target}:{number}"], deadline=0, force=True)
            while guest.device.next_event(0.0):
                pass

        for number in range(5):
            cycle(number)
        # Of the threads that used a unit's storage the last one closes it, maybe after the answer.
        assert within(lambda: storage(descriptors(server)) == 1, WAIT)
        before, threads = descriptors(server), thread_count(server)
        for number in range(30):
            cycle(number)
        assert within(lambda: descriptors(server) == before, WAIT), (before, descriptors(server))
        # asyncio's pool may have grown to its full size.
        assert thread_count(server) <= threads + 4 + (os.cpu_count() or 1)


def descriptors(server: Server) -> Counter[str]:
    """How many there are, by what they are of."""
    found: Counter[str] = Counter()
    folder = Path(f"/proc/{server.process.pid}/fd")
    for name in os.listdir(folder):
        with suppress(FileNotFoundError):  # closed meanwhile
            found[os.readlink(folder / name).partition(":[")[0]] += 1
    return found


def storage(found: Counter[str]) -> int:
    """Those of disks."""
    return sum(n for name, n in found.items() if name.startswith("/memfd:") or "disk.img" in name)


def thread_count(server: Server) -> int:
    return len(os.listdir(f"/proc/{server.process.pid}/task"))
