"""Rings that no driver may make: the session's ring breaks, the server lives (virtio 1.4, 2.7)."""

import random
from collections.abc import Callable

import pytest

from tests.conformance.attach import GUEST_BASE, GUEST_SIZE, Guest, attach
from tests.conformance.raw import (
    CANARY,
    REQUEST_BYTES,
    RESPONSE_BYTES,
    RawRing,
    pack,
)
from tests.conformance.server import Server
from vscsi_emu.driver.virtio_scsi import (
    CONTROL_QUEUE,
    EVENT_QUEUE,
    KNOWN,
    REQUEST_QUEUE,
    Options,
)
from vscsi_emu.driver.vring import DESC_F_INDIRECT, DESC_F_WRITE, Segment
from vscsi_emu.virtio.features import Feature

END = GUEST_BASE + GUEST_SIZE
START_STOP_UNIT = 0x1B


def _self_loop(ring: RawRing) -> None:
    ring.descriptor(0, ring.request, 0, 0)
    ring.expose(0)


def _long_loop(ring: RawRing) -> None:
    ring.descriptor(0, ring.request, 0, 1)
    ring.descriptor(1, ring.response, DESC_F_WRITE, 2)
    ring.descriptor(2, ring.data, DESC_F_WRITE, 1)
    ring.expose(0)


def _next_out_of_range(ring: RawRing) -> None:
    ring.descriptor(0, ring.request, 0, ring.layout.size)
    ring.expose(0)


def _next_far_out_of_range(ring: RawRing) -> None:
    ring.descriptor(0, ring.request, 0, 0xFFFF)
    ring.expose(0)


def _head_out_of_range(ring: RawRing) -> None:
    ring.expose(ring.layout.size)


def _head_far_out_of_range(ring: RawRing) -> None:
    ring.expose(0xFFFF)


def _index_too_far(ring: RawRing) -> None:
    ring.good_chain()
    ring.set_avail_idx(ring.memory.load_u16_acquire(ring.layout.avail_idx) + ring.layout.size + 1)


def _index_backwards(ring: RawRing) -> None:
    ring.set_avail_idx(ring.memory.load_u16_acquire(ring.layout.avail_idx) - 1)


def _bad_buffer(segment: Segment, flags: int) -> Callable[[RawRing], None]:
    def build(ring: RawRing) -> None:
        ring.good_chain()
        if flags:
            ring.descriptor(1, ring.response, DESC_F_WRITE, 2)
            ring.descriptor(2, segment, flags)
        else:
            ring.descriptor(0, segment, 0, 1)
        ring.expose(0)

    return build


def _indirect(length: int) -> Callable[[RawRing], None]:
    """An indirect table of `length` bytes, around a chain that is good."""

    def build(ring: RawRing) -> None:
        table = ring.table(
            pack(ring.request, 0, 1),
            pack(ring.response, DESC_F_WRITE, 2),
            pack(ring.data, DESC_F_WRITE),
            bytes(1 << 16),
        )
        ring.descriptor(0, Segment(table.address, length), DESC_F_INDIRECT)
        ring.expose(0)

    return build


def _indirect_outside(ring: RawRing) -> None:
    ring.descriptor(0, Segment(END - 16, 48), DESC_F_INDIRECT)
    ring.expose(0)


def _indirect_with_next(ring: RawRing) -> None:
    table = ring.table(pack(ring.request))
    ring.descriptor(0, table, DESC_F_INDIRECT, 1)
    ring.descriptor(1, ring.response, DESC_F_WRITE)
    ring.expose(0)


def _indirect_nested(ring: RawRing) -> None:
    inner = ring.table(pack(ring.request, 0, 1), pack(ring.response, DESC_F_WRITE))
    outer = ring.table(pack(inner, DESC_F_INDIRECT))
    ring.descriptor(0, outer, DESC_F_INDIRECT)
    ring.expose(0)


def _indirect_of_itself(ring: RawRing) -> None:
    table = ring.buffer(16)
    ring.memory.write(table.address, pack(table, DESC_F_INDIRECT))
    ring.descriptor(0, table, DESC_F_INDIRECT)
    ring.expose(0)


def _indirect_loop(ring: RawRing) -> None:
    table = ring.table(pack(ring.request, 0, 1), pack(ring.response, DESC_F_WRITE, 0))
    ring.descriptor(0, table, DESC_F_INDIRECT)
    ring.expose(0)


def _indirect_next_out_of_table(ring: RawRing) -> None:
    table = ring.table(pack(ring.request, 0, 2), pack(ring.response, DESC_F_WRITE))
    ring.descriptor(0, table, DESC_F_INDIRECT)
    ring.expose(0)


def _readable_after_writable(ring: RawRing) -> None:
    ring.descriptor(0, ring.response, DESC_F_WRITE, 1)
    ring.descriptor(1, ring.request)
    ring.expose(0)


BROKEN: dict[str, Callable[[RawRing], None]] = {
    "self-loop": _self_loop,
    "long-loop": _long_loop,
    "next-out-of-range": _next_out_of_range,
    "next-0xffff": _next_far_out_of_range,
    "head-out-of-range": _head_out_of_range,
    "head-0xffff": _head_far_out_of_range,
    "index-too-far": _index_too_far,
    "index-backwards": _index_backwards,
    "address-0": _bad_buffer(Segment(0, 512), DESC_F_WRITE),
    "address-before-memory": _bad_buffer(Segment(GUEST_BASE - 1, 512), DESC_F_WRITE),
    "address-behind-memory": _bad_buffer(Segment(END, 512), DESC_F_WRITE),
    "over-the-end-of-a-region": _bad_buffer(Segment(END - 511, 512), DESC_F_WRITE),
    "over-the-end-of-a-region-out": _bad_buffer(Segment(END - 50, 51), 0),
    "wraps-around-2^64": _bad_buffer(Segment((1 << 64) - 256, 512), DESC_F_WRITE),
    "last-address": _bad_buffer(Segment((1 << 64) - 1, 1), DESC_F_WRITE),
    "four-gib-writable": _bad_buffer(Segment(GUEST_BASE, 0xFFFFFFFF), DESC_F_WRITE),
    "four-gib-readable": _bad_buffer(Segment(GUEST_BASE, 0xFFFFFFFF), 0),
    "indirect-empty": _indirect(0),
    "indirect-odd-15": _indirect(15),
    "indirect-odd-17": _indirect(17),
    "indirect-odd-49": _indirect(49),
    "indirect-65536-entries": _indirect(1 << 20),
    "indirect-4-gib": _indirect(0xFFFFFFF0),
    "indirect-outside-memory": _indirect_outside,
    "indirect-with-next": _indirect_with_next,
    "indirect-nested": _indirect_nested,
    "indirect-of-itself": _indirect_of_itself,
    "indirect-loop": _indirect_loop,
    "indirect-next-out-of-table": _indirect_next_out_of_table,
    "readable-after-writable": _readable_after_writable,
}


@pytest.mark.normative("status.d3")
@pytest.mark.parametrize("build", BROKEN.values(), ids=BROKEN.keys())
def test_broken_ring(guest: Guest, build: Callable[[RawRing], None]) -> None:
    """Reported on the err descriptor and by DEVICE_NEEDS_RESET; a reset mends it."""
    ring = RawRing(guest)
    build(ring)
    assert ring.failed(), "the device did not notice"
    assert guest.bus.status() & 64
    ring.recover()


@pytest.mark.parametrize(
    ("queue", "build"),
    [
        (CONTROL_QUEUE, _self_loop),
        (CONTROL_QUEUE, _head_out_of_range),
        (CONTROL_QUEUE, _index_too_far),
        (EVENT_QUEUE, _index_too_far),  # its chains are looked at when there is an event
    ],
)
def test_other_queues_break_alike(
    guest: Guest, queue: int, build: Callable[[RawRing], None]
) -> None:
    ring = RawRing(guest, queue)
    build(ring)
    assert ring.failed(), "the device did not notice"
    ring.recover()


def test_indirect_that_was_not_negotiated(server: Server) -> None:
    with attach(server, Options(features=KNOWN & ~Feature.INDIRECT_DESC)) as guest:
        ring = RawRing(guest)
        _indirect(48)(ring)
        assert ring.failed()
        ring.recover()


def test_one_broken_queue_leaves_the_others(server: Server) -> None:
    with attach(server, Options(queues=2)) as guest:
        ring = RawRing(guest, REQUEST_QUEUE + 1)
        _self_loop(ring)
        assert ring.failed()
        result = guest.device.execute(0, 0, bytes(6), queue=REQUEST_QUEUE)
        assert (result.response, result.status) == (0, 0)


# ── Odd, but answered ───────────────────────────────────────────────────────────────────────────


@pytest.mark.normative("split.frame.d1")
def test_empty_descriptors_among_others(guest: Guest) -> None:
    """A zero-length descriptor carries nothing, and is no error."""
    ring = RawRing(guest)
    empty = Segment(ring.request.address, 0)
    ring.descriptor(0, empty, 0, 1)
    ring.descriptor(1, ring.request, 0, 2)
    ring.descriptor(2, empty, 0, 3)
    ring.descriptor(3, empty, DESC_F_WRITE, 4)
    ring.descriptor(4, ring.response, DESC_F_WRITE, 5)
    ring.descriptor(5, empty, DESC_F_WRITE, 6)
    ring.descriptor(6, ring.data, DESC_F_WRITE)
    ring.expose(0)
    assert ring.settled()
    ((head, length),) = ring.used()
    assert (head, length) == (0, RESPONSE_BYTES + 512)
    assert guest.memory.read(ring.response.address, 12)[11] == 0


def _lengths(readable: int, writable: int) -> Callable[[RawRing], int]:
    def build(ring: RawRing) -> int:
        index = 0
        if readable:
            segment = Segment(ring.request.address, readable)
            ring.descriptor(0, segment, 0, 1 if writable else None)
            index = 1
        if writable:
            ring.descriptor(index, Segment(ring.response.address, writable), DESC_F_WRITE)
        ring.expose(0)
        return writable

    return build


SHORT = {
    "no-response": _lengths(REQUEST_BYTES, 0),
    "no-request": _lengths(0, RESPONSE_BYTES),
    "request-1": _lengths(1, RESPONSE_BYTES),
    "request-without-cdb": _lengths(19, RESPONSE_BYTES),
    "request-50": _lengths(REQUEST_BYTES - 1, RESPONSE_BYTES),
    "response-1": _lengths(REQUEST_BYTES, 1),
    "response-11": _lengths(REQUEST_BYTES, 11),
    "response-without-sense": _lengths(REQUEST_BYTES, 12),
    "response-107": _lengths(REQUEST_BYTES, RESPONSE_BYTES - 1),
    "nothing-much": _lengths(1, 1),
}


@pytest.mark.parametrize("build", SHORT.values(), ids=SHORT.keys())
def test_truncated_headers(guest: Guest, build: Callable[[RawRing], int]) -> None:
    """Given back or reported, but never left lying, nor written past its end."""
    ring = RawRing(guest)
    writable = build(ring)
    assert ring.settled(), "the chain was neither used nor refused"
    for _, length in ring.used():
        assert length <= writable
    rest = guest.memory.read(ring.response.address + writable, RESPONSE_BYTES - writable)
    assert rest == bytes([CANARY]) * len(rest), "written past the end of the buffer"
    ring.recover()


@pytest.mark.parametrize("queue", [CONTROL_QUEUE, EVENT_QUEUE])
@pytest.mark.parametrize(("readable", "writable"), [(1, 0), (0, 1), (3, 1), (24, 0), (16, 4)])
def test_truncated_control_requests_and_event_buffers(
    guest: Guest, queue: int, readable: int, writable: int
) -> None:
    ring = RawRing(guest, queue)
    _lengths(readable, writable)(ring)
    if queue == CONTROL_QUEUE:
        assert ring.settled(), "the chain was neither used nor refused"
    ring.recover()


def test_the_same_head_many_times(guest: Guest) -> None:
    """Each exposure is a request of its own, or the ring breaks; no third way."""
    ring = RawRing(guest)
    head = ring.good_chain()
    ring.expose(*[head] * 50)
    assert ring.settled(50)
    ring.recover()


def test_headers_in_the_rings_themselves(guest: Guest) -> None:
    """Buffers that overlap the ring they came on."""
    ring = RawRing(guest)
    layout = ring.layout
    ring.descriptor(0, ring.request, 0, 1)
    ring.descriptor(1, Segment(layout.device, RESPONSE_BYTES), DESC_F_WRITE, 2)
    ring.descriptor(2, Segment(layout.desc, 512), DESC_F_WRITE)
    ring.expose(0)
    ring.failed(0.2)
    ring.recover()


def test_two_gib_of_overlapping_data(guest: Guest) -> None:
    """One megabyte two thousand times, for a WRITE of as much: bounded, and answered."""
    with_table = RawRing(guest)
    size = with_table.layout.size
    chunk = Segment(GUEST_BASE, 16 << 20)
    entries = [pack(with_table.request, 0, 1)]
    entries += [pack(chunk, 0, i + 2) for i in range(size - 2)]
    entries.append(pack(with_table.response, DESC_F_WRITE))
    with_table.descriptor(0, with_table.table(*entries), DESC_F_INDIRECT)
    with_table.expose(0)
    assert with_table.settled()
    with_table.recover()


@pytest.mark.parametrize("seed", range(5))
def test_the_ring_changes_while_the_device_reads_it(guest: Guest, seed: int) -> None:
    ring = RawRing(guest)
    rng = random.Random(seed)
    good = [ring.good_chain(3 * i) for i in range(10)]
    for _ in range(300):
        ring.expose(*rng.sample(good, 3))
        for _ in range(10):
            where = ring.layout.desc + rng.randrange(0, 16 * 30)
            ring.memory.write(where, bytes([rng.choice((0, 1, 2, 3, 4, 0xFF, rng.randrange(256)))]))
        if guest.bus.ring_failed(REQUEST_QUEUE):
            break
    ring.recover()


@pytest.mark.parametrize("queue", [REQUEST_QUEUE, CONTROL_QUEUE])
@pytest.mark.parametrize("seed", range(5))
def test_requests_of_random_bytes(guest: Guest, seed: int, queue: int) -> None:
    """Each is answered: lun, task attribute, CDB and control types out of thin air."""
    rng = random.Random(seed)
    ring = RawRing(guest, queue)
    for n in range(1, 101):
        header = bytearray(rng.randbytes(REQUEST_BYTES))
        if rng.random() < 0.7:
            header[:8] = bytes([1, 0, 0x40, rng.choice((0, 0, 1)), 0, 0, 0, 0])
        if header[19] == START_STOP_UNIT:  # obeyed, it would stop the unit for all tests
            header[19] = 0
        ring.memory.write(ring.request.address, bytes(header))
        ring.good_chain()
        ring.expose(0)
        assert ring.settled(n), f"request {header.hex()} was not answered"
    ring.recover()
