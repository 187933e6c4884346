"""Guest memory that goes away, and front ends that do, in the middle of I/O."""

import os
import random
import socket
import time
from collections.abc import Callable

import pytest

from tests.conformance import cdb
from tests.conformance.attach import GUEST_BASE, Guest, attach, connect
from tests.conformance.cdb import Disk, expect_good, pattern
from tests.conformance.reads import within
from tests.conformance.server import Server
from vscsi_emu._dataplane import GuestMemory
from vscsi_emu.driver.dma import DmaAllocator
from vscsi_emu.driver.front_end import BackEndError, RequestRefused
from vscsi_emu.driver.request import Result
from vscsi_emu.driver.vhost_user import USER_OFFSET
from vscsi_emu.driver.virtio_scsi import REQUEST_QUEUE, InFlight, Options
from vscsi_emu.driver.vring import RingLayout
from vscsi_emu.virtio import vhost_user as vu

PAGE = 4096
BUSY = Options(queue_size=256, queues=None)


def load(guest: Guest, count: int = 100) -> list[InFlight[Result]]:
    """Reads and writes of 16 KiB on all request queues."""
    queues = len(guest.device.queues) - REQUEST_QUEUE
    items = []
    for n in range(count):
        queue = REQUEST_QUEUE + n % queues
        if n % 2:
            command, out, length = cdb.read_16(32 * n, 32), b"", 32 * 512
        else:
            command, out, length = cdb.write_16(32 * n, 32), pattern(32 * 512), 0
        items.append(
            guest.device.submit(0, 0, command, data_out=out, data_in_length=length, queue=queue)
        )
    return items


# ── Tables ──────────────────────────────────────────────────────────────────────────────────────


def region(
    guest_address: int, size: int, user_address: int | None = None, offset: int = 0
) -> vu.MemoryRegion:
    user = USER_OFFSET + guest_address if user_address is None else user_address
    return vu.MemoryRegion(guest_address % (1 << 64), size, user % (1 << 64), offset)


BAD_TABLES = {
    "empty region": [region(GUEST_BASE, 0)],
    "guest addresses overlap": [
        region(GUEST_BASE, 2 * PAGE),
        region(GUEST_BASE + PAGE, PAGE, USER_OFFSET),
    ],
    "same region twice": [region(GUEST_BASE, PAGE), region(GUEST_BASE, PAGE)],
    "guest address wraps": [region(-PAGE, 2 * PAGE, 0)],
    "user address wraps": [region(GUEST_BASE, 2 * PAGE, -PAGE)],
    "size of everything": [region(0, (1 << 64) - 1, 0)],
    "huge size": [region(GUEST_BASE, 1 << 62)],
    "offset and size wrap": [region(GUEST_BASE, PAGE, offset=-PAGE % (1 << 64))],
    "odd offset": [region(GUEST_BASE, PAGE, offset=(1 << 64) - 1)],
}


@pytest.mark.parametrize("regions", BAD_TABLES.values(), ids=BAD_TABLES.keys())
def test_impossible_memory_table(guest: Guest, regions: list[vu.MemoryRegion]) -> None:
    """Refused, and the old table stays in force."""
    with pytest.raises(RequestRefused):
        guest.front_end.put(
            vu.SET_MEM_TABLE,
            vu.MemoryTable(tuple(regions)),
            [guest.memory.fileno()] * len(regions),
        )
    Disk(guest.device, 0, 0).ready().read(0, 8)


def _pipe() -> list[int]:
    return list(os.pipe())


def _socket() -> list[int]:
    return [sock.detach() for sock in socket.socketpair()]


def _directory() -> list[int]:
    return [os.open("/", os.O_RDONLY | os.O_DIRECTORY)]


def _eventfd() -> list[int]:
    return [os.eventfd(0)]


def _read_only() -> list[int]:
    return [os.open("/etc/hostname", os.O_RDONLY)]


@pytest.mark.parametrize("make", [_pipe, _socket, _directory, _eventfd, _read_only])
def test_memory_that_cannot_be_mapped(guest: Guest, make: Callable[[], list[int]]) -> None:
    fds = make()
    try:
        with pytest.raises(RequestRefused):
            guest.front_end.put(
                vu.SET_MEM_TABLE, vu.MemoryTable((region(GUEST_BASE, PAGE),)), fds[:1]
            )
    finally:
        vu.close_fds(fds)
    Disk(guest.device, 0, 0).ready().read(0, 8)


def test_add_regions_until_refused(guest: Guest) -> None:
    """There is a limit, it is the one that was told, and removal makes room again."""
    slots = guest.front_end.get_u64(vu.GET_MAX_MEM_SLOTS)
    base = GUEST_BASE + (1 << 40)
    added = []
    for n in range(slots + 1):
        extra = vu.SingleRegion(base + n * PAGE, PAGE, USER_OFFSET + base + n * PAGE, 0)
        try:
            guest.front_end.put(vu.ADD_MEM_REG, extra, [guest.memory.fileno()])
        except RequestRefused:
            break
        added.append(extra)
    assert len(added) == slots - 1
    for extra in added:
        guest.front_end.put(vu.REM_MEM_REG, extra)
    Disk(guest.device, 0, 0).ready().read(0, 8)


# ── Memory that goes away ───────────────────────────────────────────────────────────────────────


@pytest.mark.normative("vu.slots.b3", "vu.ring.b13")
def test_memory_removed_while_io_runs(server: Server) -> None:
    for _ in range(10):
        with attach(server, BUSY) as guest:
            Disk(guest.device, 0, 0).ready()
            load(guest)
            r = guest.bus.regions[0]
            gone = vu.SingleRegion(r.guest_address, r.size, r.user_address, 0)
            guest.front_end.put(vu.REM_MEM_REG, gone)
            # Everything is gone: the rings themselves too. Kicks must not bring anybody down.
            for queue in guest.device.queues:
                guest.bus.notify(queue)
            assert guest.front_end.get_u64(vu.GET_FEATURES)


def test_memory_replaced_while_io_runs(server: Server) -> None:
    """The rings turn into zeros under the device's hands."""
    for _ in range(10):
        with attach(server, BUSY) as guest:
            Disk(guest.device, 0, 0).ready()
            load(guest)
            other = GuestMemory.anonymous(guest.bus.regions[0].size, GUEST_BASE)
            guest.front_end.put(
                vu.SET_MEM_TABLE, vu.MemoryTable(guest.bus.regions), [other.fileno()]
            )
            for queue in guest.device.queues:
                guest.bus.notify(queue)
            assert guest.front_end.get_u64(vu.GET_FEATURES)


@pytest.mark.parametrize("left", [0, PAGE, 1 << 20])
def test_memory_truncated_while_io_runs(server: Server, left: int) -> None:
    """The front end's memfd shrinks: SIGBUS in a naive back end."""
    for _ in range(5):
        with attach(server, BUSY) as guest:
            Disk(guest.device, 0, 0).ready()
            load(guest)
            os.ftruncate(guest.memory.fileno(), left)
            for queue in guest.device.queues:
                guest.bus.notify(queue)
            time.sleep(0.02)
            assert guest.front_end.get_u64(vu.GET_FEATURES)


def test_memory_truncated_while_idle(server: Server) -> None:
    with attach(server) as guest:
        Disk(guest.device, 0, 0).ready()
        os.ftruncate(guest.memory.fileno(), 0)
        guest.bus.notify(REQUEST_QUEUE)
        guest.bus.stop_queue(REQUEST_QUEUE)


def test_memory_that_is_less_than_it_claims(server: Server) -> None:
    """The table may be refused, the ring may be, or it breaks; nothing else."""
    with connect(server, size=1 << 20) as bus:
        bus.regions = (region(GUEST_BASE, 64 << 20),)
        layout = RingLayout.modern(DmaAllocator(GUEST_BASE + (32 << 20), 1 << 20), 128)
        try:
            bus.set_memory_table()
            bus.set_driver_features(bus.device_features())
            bus.configure_queue(REQUEST_QUEUE, layout, base=0)
            bus.run_queue(REQUEST_QUEUE)
        except (RequestRefused, BackEndError):
            return
        assert within(lambda: bus.ring_failed(REQUEST_QUEUE))


# ── Front ends that go away ─────────────────────────────────────────────────────────────────────


def test_disconnect_in_the_middle_of_io(server: Server) -> None:
    rng = random.Random(7)
    for _ in range(40):
        with attach(server, BUSY, size=8 << 20) as guest:
            Disk(guest.device, 0, 0).ready()
            load(guest, rng.randrange(1, 120))
            time.sleep(rng.choice((0, 0, 0.0005, 0.002)))


def test_what_was_acknowledged_before_the_disconnect_is_there_after(server: Server) -> None:
    rng = random.Random(11)
    for n in range(10):
        data = {}
        with attach(server, BUSY) as guest:
            Disk(guest.device, 0, 0).ready()
            items = [
                guest.device.submit(0, 0, cdb.write_16(i, 1), data_out=pattern(512, seed=i + n))
                for i in range(100)
            ]
            for i in range(rng.randrange(100)):
                expect_good(guest.device.wait(items[i]))
                data[i] = pattern(512, seed=i + n)
        with attach(server) as guest:
            disk = Disk(guest.device, 0, 0).ready()
            for lba, written in data.items():
                assert disk.read(lba, 1) == written


@pytest.mark.parametrize("how", [socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR])
def test_half_closed_connections(server: Server, how: int) -> None:
    with attach(server, BUSY) as guest:
        Disk(guest.device, 0, 0).ready()
        load(guest)
        guest.front_end.connection.shutdown(how)
        time.sleep(0.05)


def test_connections_that_say_nothing(server: Server) -> None:
    for _ in range(20):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.connect(str(server.socket))
