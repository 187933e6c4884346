"""Any arrangement of descriptors, any ring size, modern and legacy (virtio 1.4, 2.7)."""

import pytest

from tests.conformance import cdb
from tests.conformance.attach import Guest, attach
from tests.conformance.cdb import Disk, expect_good, expect_sense, pattern
from tests.conformance.server import Server
from vscsi_emu.driver.request import (
    Framing,
    Request,
    Result,
    cut_at,
    every,
    joined,
    paged,
    separate,
)
from vscsi_emu.driver.virtio_scsi import KNOWN, REQUEST_QUEUE, InFlight, Options
from vscsi_emu.virtio.features import Feature
from vscsi_emu.virtio.scsi import TmfType, encode_lun

NO_INDIRECT = KNOWN & ~Feature.INDIRECT_DESC
LEGACY = KNOWN & ~Feature.VERSION_1

FRAMINGS: dict[str, Framing] = {
    "separate": separate,
    "joined": joined,
    "bytes-in-threes": every(3),
    "sevens": every(7),
    "pages": paged(4096),
    "one-byte-first": cut_at(1),
    "in-lun": cut_at(5),
    "in-id": cut_at(12),
    "after-crn": cut_at(19),
    "in-cdb": cut_at(20, 40),
    "header-and-first-data": cut_at(50, 51, 52),
    "over-the-end-of-headers": cut_at(47, 60, 107, 109, 112),
}


def unpublished(guest: Guest, command: bytes, data_out: bytes = b"") -> InFlight[Result]:
    """A command to 0:0 that is in the ring, but not yet in its index."""
    length = 0 if data_out else 512
    request = Request(encode_lun(0, 0), command, guest.device.next_tag(), data_out, length)
    return guest.device.submit_request(request, publish=False)


def exercise(guest: Guest, blocks: int = 2) -> None:
    """Data both ways, sense, and a command without data."""
    disk = Disk(guest.device, 0, 0).ready()
    data = pattern(blocks * 512, seed=blocks)
    expect_good(disk.run(cdb.write_10(64, blocks), data_out=data))
    result = disk.run(cdb.read_10(64, blocks), data_in_length=len(data))
    expect_good(result)
    assert result.data == data
    expect_sense(disk.run(b"\xff" * 6), cdb.ILLEGAL_REQUEST, 0x2000)
    expect_good(disk.run(cdb.test_unit_ready()))


@pytest.mark.normative("split.frame.d1", "rsvd.leg.d3")
@pytest.mark.parametrize("framing", FRAMINGS.values(), ids=FRAMINGS.keys())
@pytest.mark.parametrize("features", [KNOWN, LEGACY], ids=["modern", "legacy-any-layout"])
def test_any_layout(server: Server, framing: Framing, features: Feature) -> None:
    # Finer pieces than seg_max allows a driver: the layout is what is tested.
    options = Options(
        features=features, framing=framing, queue_size=1024, align=1, obey_limits=False
    )
    with attach(server, options) as guest:
        exercise(guest)


@pytest.mark.normative("split.frame.d1", "split.ind.d2")
@pytest.mark.parametrize("split", [0, 1, 2, 3, 5])
def test_direct_descriptors_before_the_indirect_one(server: Server, split: int) -> None:
    options = Options(framing=every(100), indirect_from=split)
    with attach(server, options) as guest:
        exercise(guest)


@pytest.mark.parametrize("event_idx", [False, True])
@pytest.mark.parametrize("indirect", [False, True])
@pytest.mark.parametrize("modern", [False, True])
def test_ring_features(server: Server, event_idx: bool, indirect: bool, modern: bool) -> None:
    features = KNOWN
    for wanted, feature in (
        (event_idx, Feature.EVENT_IDX),
        (indirect, Feature.INDIRECT_DESC),
        (modern, Feature.VERSION_1),
    ):
        if not wanted:
            features &= ~feature
    with attach(server, Options(features=features)) as guest:
        assert (Feature.EVENT_IDX in guest.device.features) is event_idx
        for _ in range(20):
            exercise(guest)


@pytest.mark.normative("split.leg.d1", "feat.leg.d1", "feat.leg.d3")
@pytest.mark.parametrize("queue_size", [4, 64, 128, 256, 1024])
def test_bare_legacy_driver(server: Server, queue_size: int) -> None:
    """No feature at all, rings in one block, headers in single descriptors."""
    options = Options(features=Feature(0), queue_size=queue_size)
    with attach(server, options) as guest:
        assert guest.device.features == 0
        for _ in range(10):
            exercise(guest)


@pytest.mark.normative("split.vq.d1", "vu.vring.b1")
@pytest.mark.parametrize("size", [2, 4, 8, 16, 32, 64, 128, 256, 512, 1024])
def test_queue_sizes(server: Server, size: int) -> None:
    """A ring of 2 holds a request and its response, data joined to them."""
    options = Options(features=NO_INDIRECT, framing=joined, queue_size=size, event_buffers=2)
    with attach(server, options) as guest:
        disk = Disk(guest.device, 0, 0).ready()
        rounds = 3 * size if size < 128 else size + 10  # so that the ring wraps
        for start in range(0, rounds, 32):
            items = [
                guest.device.submit(0, 0, cdb.read_16(i, 1), data_in_length=512)
                for i in range(start, min(start + 32, rounds))
            ]
            for result in guest.device.wait_all(items):
                expect_good(result)
        disk.write(3, pattern(512))
        assert disk.read(3, 1) == pattern(512)


@pytest.mark.normative("vu.mem.b1", "vu.mem.b2", "vu.mem.b3", "rsvd.d9")
@pytest.mark.parametrize("pieces", [1, 2, 3, 8])
def test_buffers_across_adjacent_regions(server: Server, pieces: int) -> None:
    """A buffer may lie in two regions that follow one another."""
    with attach(server, size=1 << 20, pieces=pieces) as guest:
        disk = Disk(guest.device, 0, 0).ready()
        data = pattern(400 * 512, seed=pieces)
        disk.write(0, data)
        assert disk.read(0, 400) == data


@pytest.mark.normative("split.ind.d1")
def test_write_flag_on_the_indirect_descriptor_means_nothing(server: Server) -> None:
    with attach(server) as guest:
        disk = Disk(guest.device, 0, 0).ready()
        ring = guest.device.queues[REQUEST_QUEUE].ring
        request = cdb.read_10(0, 1)
        item = unpublished(guest, request)
        (head,) = ring.heads
        address = ring.layout.descriptor(head) + 12
        flags = guest.memory.load_u16_acquire(address)
        guest.memory.store_u16_release(address, flags | 2)
        guest.device.publish(REQUEST_QUEUE)
        expect_good(guest.device.wait(item))
        expect_good(disk.run(request, data_in_length=512))


@pytest.mark.normative("split.desc.d1", "split.desc.d4", "split.used.d4")
def test_readable_buffers_and_descriptors_are_left_alone(server: Server) -> None:
    options = Options(features=NO_INDIRECT, framing=every(64))
    with attach(server, options) as guest:
        Disk(guest.device, 0, 0).ready()
        ring = guest.device.queues[REQUEST_QUEUE].ring
        item = unpublished(guest, cdb.write_10(0, 1), pattern(512))
        table = guest.memory.read(ring.layout.desc, 16 * ring.layout.size)
        before = [guest.memory.read(*s) for s in item.ticket.readable]
        guest.device.publish(REQUEST_QUEUE)
        expect_good(guest.device.wait(item))
        assert guest.memory.read(ring.layout.desc, 16 * ring.layout.size) == table
        assert [guest.memory.read(*s) for s in item.ticket.readable] == before


@pytest.mark.normative("scsi.ctl.d9")
def test_control_requests_in_any_layout(server: Server) -> None:
    """TMF and asynchronous notification requests, however they are cut."""
    with attach(server, Options(framing=every(5))) as guest:
        Disk(guest.device, 0, 0).ready()
        for _ in range(5):
            response = guest.device.task_management(TmfType.LOGICAL_UNIT_RESET, 0, 0, tag=0xDEAD)
            assert response in (0, 10)
