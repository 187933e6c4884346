"""ACCESS_PLATFORM: the server behind the IOMMU of its front end."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.conformance import cdb
from tests.conformance.attach import GUEST_BASE, GUEST_SIZE, Guest, attach
from tests.conformance.cdb import Disk, expect_good, pattern
from tests.conformance.raw import RawRing
from tests.conformance.reads import add_read, within
from tests.conformance.server import Server
from vscsi_emu._dataplane import GuestMemory
from vscsi_emu.driver.coherency.iommu import PAGE
from vscsi_emu.driver.dma import Direction, DmaAllocator
from vscsi_emu.driver.front_end import BackEndError, FrontEnd
from vscsi_emu.driver.request import Result
from vscsi_emu.driver.vhost_user import SUPPORTED, USER_OFFSET, VhostUserBus
from vscsi_emu.driver.vhost_user_iommu import IommuAllocator, IommuBus, IommuFrontEnd
from vscsi_emu.driver.virtio_scsi import KNOWN, REQUEST_QUEUE, InFlight, Options, VirtioScsi
from vscsi_emu.driver.vring import DESC_F_WRITE, Segment
from vscsi_emu.virtio import vhost_user as vu
from vscsi_emu.virtio.features import Feature, Status
from vscsi_emu.virtio.vhost_user import (
    IotlbMessage,
    IotlbType,
    MessageType,
    Payload,
    ProtocolFeature,
)

QUIET_SECONDS = 0.05
FEATURES = KNOWN | Feature.ACCESS_PLATFORM


@pytest.fixture(scope="module")
def running_server() -> Iterator[Server]:
    with Server(["0:0=mem:64M"], arguments=["--access-platform"]) as server:
        yield server
        assert server.process.terminate() == 0, server.process.log[-4000:]


@contextmanager
def behind_iommu(server: Server, options: Options | None = None) -> Iterator[Guest]:
    connection = IommuFrontEnd.connect(server.socket)
    memory = GuestMemory.anonymous(GUEST_SIZE, GUEST_BASE)
    allocator = IommuAllocator(GUEST_BASE, GUEST_SIZE, connection)
    with IommuBus(connection, memory, allocator) as bus:
        device = VirtioScsi(bus, options or Options(features=FEATURES))
        assert Feature.ACCESS_PLATFORM in device.features
        yield Guest(device, bus, memory)


def iommu_of(guest: Guest) -> IommuFrontEnd:
    assert isinstance(guest.front_end, IommuFrontEnd)
    return guest.front_end


def read_one(guest: Guest, lba: int, queue: int = REQUEST_QUEUE) -> InFlight[Result]:
    return guest.device.submit(0, 0, cdb.read_16(lba, 1), data_in_length=512, queue=queue)


def eventually(guest: Guest, condition: Callable[[], bool]) -> bool:
    """Whether `condition` holds in time, the back channel served meanwhile."""

    def look() -> bool:
        guest.front_end.poll([], 0.01)
        return condition()

    return within(look)


def breaks(guest: Guest) -> bool:
    return eventually(guest, lambda: guest.bus.ring_failed(REQUEST_QUEUE))


@pytest.mark.normative(
    "rsvd.d3", "rsvd.r4", "vu.mem.b4", "vu.mem.b5",
    "vu.iotlb.b1", "vu.iotlb.b2", "vu.iotlb.b4", "vu.iotlb.f1", "vu.iotlb.f2", "vu.iotlb.f3",
    "vu.iotlb.f4",
)  # fmt: skip
@pytest.mark.parametrize("indirect", [False, True])
def test_io_behind_an_iommu(server: Server, indirect: bool) -> None:
    """Nothing is mapped but what the driver maps, and the regions' guest addresses are wrong."""
    features = FEATURES if indirect else FEATURES & ~Feature.INDIRECT_DESC
    with behind_iommu(server, Options(features=features)) as guest:
        disk = Disk(guest.device, 0, 0).ready()
        for length in (512, 4096, 40 * 512):
            data = pattern(length)
            disk.write(7, data)
            assert disk.read(7, length // 512) == data
        front_end = iommu_of(guest)
        layout = guest.device.queues[REQUEST_QUEUE].ring.layout
        asked = {(miss.iova, miss.permissions) for miss in front_end.misses}
        assert {(layout.desc, 1), (layout.driver, 1), (layout.device, 2)} <= asked
        assert all(miss.size == 0 for miss in front_end.misses)
        assert not front_end.access_failures
        assert not guest.bus.ring_failed(REQUEST_QUEUE)


def test_many_commands_at_once_while_mappings_come_and_go(server: Server) -> None:
    with behind_iommu(server, Options(features=FEATURES, queues=4)) as guest:
        disk = Disk(guest.device, 0, 0).ready()
        blocks = [pattern(512, n) for n in range(64)]
        for n, block in enumerate(blocks):
            disk.write(n, block)
        layouts = [queue.ring.layout for queue in guest.device.queues.values()]
        for turn in range(6):
            items = [read_one(guest, n, REQUEST_QUEUE + n % 4) for n in range(48)]
            # Rings too: their translation is asked for again.
            layout = layouts[turn % len(layouts)]
            iommu_of(guest).invalidate(layout.device, PAGE)
            for n, result in enumerate(guest.device.wait_all(items)):
                expect_good(result)
                assert result.data == blocks[n]


@pytest.mark.normative("split.anotif.d2")
def test_no_kicks_are_wanted_while_a_chain_waits_for_its_translation(server: Server) -> None:
    """A look at the ring that began and did not end: nothing changes before the front end acts."""
    options = Options(features=FEATURES & ~Feature.EVENT_IDX)
    with behind_iommu(server, options) as guest:
        Disk(guest.device, 0, 0).ready()
        ring = guest.device.queues[REQUEST_QUEUE].ring

        def flags() -> int:
            return guest.memory.load_u16_acquire(ring.layout.used_flags)

        assert within(lambda: flags() == 0)
        item = read_one(guest, 0)
        assert within(lambda: flags() == 1)
        another = add_read(guest)
        assert not ring.publish(), "the driver kicks"
        assert not item.done
        for result in guest.device.wait_all([item, another]):
            expect_good(result)
        assert within(lambda: flags() == 0)


@pytest.mark.normative("vu.iotlb.b5")
def test_misses_want_an_answer(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted: list[bool] = []
    take = IommuFrontEnd._take

    def noting(
        front_end: IommuFrontEnd, message: MessageType, payload: Payload, need_reply: bool
    ) -> int:
        wanted.append(need_reply)
        return take(front_end, message, payload, need_reply)

    monkeypatch.setattr(IommuFrontEnd, "_take", noting)
    with behind_iommu(server) as guest:
        Disk(guest.device, 0, 0).ready().read(0, 1)
        assert len(wanted) == len(iommu_of(guest).misses)
    assert wanted
    assert all(wanted)


@pytest.mark.normative("vu.iotlb.b4")
def test_a_miss_consumes_nothing_and_waits(server: Server) -> None:
    """The front end is slow to answer; the other queue goes on meanwhile."""
    with behind_iommu(server, Options(features=FEATURES, queues=2)) as guest:
        front_end = iommu_of(guest)
        Disk(guest.device, 0, 0).ready()
        before = len(front_end.misses)
        item = read_one(guest, 0)
        time.sleep(QUIET_SECONDS)
        assert not item.done
        base = guest.bus.stop_queue(REQUEST_QUEUE)
        ring = guest.device.queues[REQUEST_QUEUE].ring
        assert base == guest.memory.load_u16_acquire(ring.layout.avail_idx) - 1 & 0xFFFF
        guest.bus.run_queue(REQUEST_QUEUE)
        result = guest.device.wait(item)
        expect_good(result)
        assert len(front_end.misses) > before


@pytest.mark.normative("vu.iotlb.b3")
@pytest.mark.parametrize(
    ("direction", "flags", "wanted"),
    [(Direction.TO_DEVICE, DESC_F_WRITE, 2), (Direction.FROM_DEVICE, 0, 1)],
)
def test_a_forbidden_access_is_reported_and_breaks_the_ring(
    server: Server, direction: Direction, flags: int, wanted: int
) -> None:
    with behind_iommu(server) as guest:
        raw = RawRing(guest)
        address = guest.bus.allocator.alloc(PAGE, PAGE)
        guest.bus.allocator.map(address, PAGE, direction)
        raw.descriptor(0, Segment(address + 8, 100), flags)
        raw.expose(0)
        assert breaks(guest)
        assert eventually(guest, lambda: bool(iommu_of(guest).access_failures))
        (failure,) = iommu_of(guest).access_failures
        assert (failure.iova, failure.permissions, failure.size) == (address + 8, wanted, 0)
        assert guest.bus.status() & Status.NEEDS_RESET


def test_an_address_without_a_mapping_breaks_the_ring(server: Server) -> None:
    with behind_iommu(server) as guest:
        raw = RawRing(guest)
        raw.descriptor(0, Segment(0xDEAD_0000, 100))
        raw.expose(0)
        assert breaks(guest)
        assert guest.bus.status() & Status.NEEDS_RESET


@pytest.mark.normative("vu.iotlb.b1", "vu.iotlb.f3")
def test_updates_outside_the_regions_are_refused(server: Server) -> None:
    with behind_iommu(server) as guest:
        front_end = iommu_of(guest)
        user = USER_OFFSET + GUEST_BASE

        def ask(iova: int, size: int, address: int, permissions: int = 3, kind: int = 2) -> int:
            return front_end.iotlb(IotlbMessage(iova, size, address, permissions, kind))

        assert ask(0, PAGE, user) == 0
        assert ask(0, GUEST_SIZE, user) == 0
        for iova, size, address, permissions in (
            (0, GUEST_SIZE + 1, user, 3),
            (0, PAGE, user - 1, 3),
            (0, PAGE, GUEST_BASE, 3),
            (0, 0, user, 3),
            (0, PAGE, user, 0),
            (0, PAGE, user, 4),
            (0, PAGE, (1 << 64) - 1, 3),
            ((1 << 64) - PAGE + 1, PAGE, user, 3),
        ):
            assert ask(iova, size, address, permissions) != 0
        for kind in (0, IotlbType.MISS, IotlbType.ACCESS_FAIL, 5, 6, 255):
            assert ask(0, PAGE, user, 3, kind) != 0
        # Whatever an invalidation names is gone.
        for iova, size in ((0, 0), (0, (1 << 64) - 1), ((1 << 64) - 1, 1), (5, (1 << 64) - 1)):
            assert ask(iova, size, 0, 0, IotlbType.INVALIDATE) == 0
        Disk(guest.device, 0, 0).ready()


@pytest.mark.normative("rsvd.d9", "vu.mem.b3", "vu.iotlb.b6")
def test_without_the_feature_nothing_is_translated(server: Server) -> None:
    connection = IommuFrontEnd.connect(server.socket)
    memory = GuestMemory.anonymous(GUEST_SIZE, GUEST_BASE)
    with VhostUserBus(connection, memory, DmaAllocator(GUEST_BASE, GUEST_SIZE)) as bus:
        guest = Guest(VirtioScsi(bus), bus, memory)
        assert Feature.ACCESS_PLATFORM not in guest.device.features
        disk = Disk(guest.device, 0, 0).ready()
        disk.write(1, data := pattern(512))
        # A mapping is refused, and changes nothing.
        user = USER_OFFSET + GUEST_BASE
        message = IotlbMessage(GUEST_BASE, GUEST_SIZE, user + PAGE, 3, IotlbType.UPDATE)
        assert connection.iotlb(message) != 0
        assert disk.read(1, 1) == data
        assert connection.misses == connection.access_failures == []


def test_the_feature_needs_a_back_channel(server: Server) -> None:
    with attach(server, protocol_features=SUPPORTED & ~ProtocolFeature.BACKEND_REQ) as guest:
        features = guest.front_end.get_u64(vu.GET_FEATURES)
        assert not features & Feature.ACCESS_PLATFORM
        with pytest.raises(BackEndError):
            guest.front_end.put_u64(vu.SET_FEATURES, features | Feature.ACCESS_PLATFORM)


@pytest.mark.normative("rsvd.d3")
def test_the_feature_is_offered_on_request_only() -> None:
    with Server(["0:0=mem:8M"]) as server, FrontEnd.connect(server.socket) as front_end:
        assert not front_end.get_u64(vu.GET_FEATURES) & Feature.ACCESS_PLATFORM


def test_a_front_end_that_dies_behind_its_misses(server: Server) -> None:
    with behind_iommu(server) as guest:
        Disk(guest.device, 0, 0).ready()
        read_one(guest, 0)
        guest.front_end.connection.shutdown(socket.SHUT_RDWR)


def test_permissions_of_a_page_in_use(server: Server) -> None:
    """A writable mapping that becomes read-only while commands use it."""
    with behind_iommu(server) as guest:
        front_end = iommu_of(guest)
        disk = Disk(guest.device, 0, 0).ready()
        for _ in range(20):
            items = [
                guest.device.submit(0, 0, cdb.read_16(n, 8), data_in_length=4096) for n in range(8)
            ]
            front_end.invalidate(GUEST_BASE, GUEST_SIZE)
            for result in guest.device.wait_all(items):
                expect_good(result)
        disk.read(0, 1)
        assert not front_end.access_failures
