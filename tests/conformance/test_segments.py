"""How many segments a command may have, and what the device does not touch (virtio 1.4, 2.7.5.1
and 5.6.4)."""

from __future__ import annotations

import os

import pytest

from tests.conformance import cdb
from tests.conformance.attach import GUEST_BASE, Guest, attach
from tests.conformance.cdb import Disk, expect_good, pattern
from tests.conformance.raw import CANARY, RESPONSE_BYTES, RawRing, pack
from tests.conformance.server import Server
from vscsi_emu.driver.request import Request, paged
from vscsi_emu.driver.virtio_scsi import KNOWN, Options
from vscsi_emu.driver.vring import DESC_F_INDIRECT, DESC_F_WRITE, Segment
from vscsi_emu.virtio.features import Feature
from vscsi_emu.virtio.scsi import Response, encode_lun

BLOCK = 512
PAGE = 4096
PAGES = 8
HUGE = 2 << 20
LONGEST = 1024
"""Descriptors of a chain: as many as the largest ring has."""


@pytest.mark.normative("scsi.cfg.d8")
@pytest.mark.parametrize("indirect", [False, True])
def test_seg_max_segments_each_way(server: Server, indirect: bool) -> None:
    """A command that has them both ways at once is refused as such, and no broken chain."""
    features = KNOWN if indirect else KNOWN & ~Feature.INDIRECT_DESC
    options = Options(features=features, framing=paged(BLOCK), queue_size=1024)
    with attach(server, options) as guest:
        disk = Disk(guest.device, 0, 0).ready()
        blocks = guest.device.config.seg_max
        data = pattern(blocks * BLOCK)
        expect_good(disk.run(cdb.write_10(0, blocks), data_out=data))
        result = disk.run(cdb.read_10(0, blocks), data_in_length=len(data))
        expect_good(result)
        assert result.data == data
        both = disk.run(cdb.write_10(0, blocks), data_out=data, data_in_length=len(data))
        assert both.response == Response.FAILURE
        assert disk.read(0, 1) == data[:BLOCK]


@pytest.mark.normative("split.frame.d2")
@pytest.mark.parametrize(("descriptors", "taken"), [(LONGEST, True), (LONGEST + 1, False)])
def test_the_longest_chain(guest: Guest, descriptors: int, taken: bool) -> None:
    """A READ of two blocks: header, response and single bytes; the last takes what is left."""
    disk = Disk(guest.device, 0, 0).ready()
    disk.write(0, pattern(2 * BLOCK))
    ring = RawRing(guest)
    header = Request(encode_lun(0, 0), cdb.read_10(0, 2), 1).pack_header(32)
    guest.memory.write(ring.request.address, header)
    data = ring.buffer(2 * BLOCK)
    bytes_alone = descriptors - 3
    pieces = [Segment(data.address + at, 1) for at in range(bytes_alone)]
    pieces.append(Segment(data.address + bytes_alone, data.length - bytes_alone))
    chain = [(ring.request, 0), *((segment, DESC_F_WRITE) for segment in (ring.response, *pieces))]
    table = ring.table(
        *(pack(*entry, at + 1) for at, entry in enumerate(chain[:-1])), pack(*chain[-1])
    )
    ring.descriptor(0, table, DESC_F_INDIRECT)
    ring.expose(0)
    assert ring.settled()
    assert len(ring.used()) == taken
    assert (guest.memory.read(*data) == pattern(2 * BLOCK)) == taken


@pytest.mark.normative("split.desc.d2")
def test_what_is_in_a_writable_buffer_does_not_matter(server: Server) -> None:
    """The same answer, byte for byte."""
    answers = set()
    for content in (0x00, 0xFF, CANARY):
        with attach(server) as guest:
            Disk(guest.device, 0, 0).ready().write(0, pattern(BLOCK))
            ring = RawRing(guest)
            for segment in (ring.response, ring.data):
                guest.memory.write(segment.address, bytes([content]) * segment.length)
            ring.expose(ring.good_chain())
            assert ring.settled()
            [used] = ring.used()
            assert used.length == ring.response.length + ring.data.length
            answers.add((guest.memory.read(*ring.response), guest.memory.read(*ring.data)))
    assert answers == {(bytes(RESPONSE_BYTES), pattern(BLOCK))}


@pytest.mark.normative("split.desc.d2")
@pytest.mark.parametrize(
    ("command", "written"),
    [
        (cdb.read_10(0, 1), 1),
        (cdb.read_10(0, 9), 2),
        (b"\xff" * 6, 0),
        (cdb.read_10(1 << 31, 8), 0),
    ],
    ids=["one block", "nine blocks", "unknown", "out of range"],
)
def test_what_is_not_written_is_not_touched(server: Server, command: bytes, written: int) -> None:
    """A look at a page of guest memory that nobody has touched yet would show: it has no storage
    until then. `written`: pages that the device has reason to write to."""
    with attach(server) as guest:
        Disk(guest.device, 0, 0).ready()
        ring = RawRing(guest)
        area, other = (guest.bus.allocator.alloc(HUGE, HUGE) for _ in range(2))
        guest.memory.write(other, b"x")
        at_once = pages_with_storage(guest, other)  # more than 1 where memory comes in huge pages
        ring.data = Segment(area, PAGES * PAGE)
        header = Request(encode_lun(0, 0), command, 1).pack_header(32)
        guest.memory.write(ring.request.address, header)
        assert pages_with_storage(guest, area) == 0
        ring.expose(ring.good_chain())
        assert ring.settled()
        assert pages_with_storage(guest, area) == min(written * at_once, PAGES)


def pages_with_storage(guest: Guest, area: int) -> int:
    """How many of the first `PAGES` pages of `area` somebody has touched."""
    start = area - GUEST_BASE
    fd = guest.memory.fileno()
    pages = range(start, start + PAGES * PAGE, PAGE)
    return sum(os.lseek(fd, page, os.SEEK_HOLE) != page for page in pages)
