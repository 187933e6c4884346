"""Random ring contents on running queues: a ring may break, the server may not."""

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conformance.attach import GUEST_BASE, attach
from tests.conformance.raw import RawRing
from tests.conformance.server import Server
from vscsi_emu.driver.virtio_scsi import CONTROL_QUEUE, EVENT_QUEUE, REQUEST_QUEUE, Options
from vscsi_emu.driver.vring import DESCRIPTOR, Segment

SIZE = 1 << 20
START_STOP_UNIT = 0x1B
QUEUE = 16
OPTIONS = Options(queue_size=QUEUE)

addresses = st.one_of(
    st.integers(GUEST_BASE, GUEST_BASE + SIZE),
    st.sampled_from([0, GUEST_BASE - 1, GUEST_BASE + SIZE - 1, (1 << 64) - 1]),
    st.integers(0, (1 << 64) - 1),
)
lengths = st.one_of(st.integers(0, 600), st.sampled_from([0, 16, 51, 108, 4096, SIZE, 0xFFFFFFFF]))
flags = st.one_of(st.integers(0, 7), st.integers(0, 0xFFFF))
indices = st.one_of(st.integers(0, QUEUE - 1), st.integers(0, 0xFFFF))
descriptors = st.lists(
    st.tuples(addresses, lengths, flags, indices).map(lambda d: DESCRIPTOR.pack(*d)),
    min_size=QUEUE,
    max_size=QUEUE,
)

fuzzed = settings(
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@settings(fuzzed, max_examples=60)
@given(
    queue=st.sampled_from([REQUEST_QUEUE, CONTROL_QUEUE, EVENT_QUEUE]),
    table=descriptors,
    heads=st.lists(indices, min_size=1, max_size=QUEUE),
    jump=st.one_of(st.just(0), st.integers(0, 0xFFFF)),
)
def test_ring_contents(
    server: Server, queue: int, table: list[bytes], heads: list[int], jump: int
) -> None:
    with attach(server, OPTIONS, size=SIZE) as guest:
        ring = RawRing(guest, queue)
        guest.memory.write(ring.layout.desc, b"".join(table))
        ring.expose(*heads)
        if jump:
            ring.set_avail_idx(jump)
        ring.recover()


@st.composite
def requests(draw: st.DrawFn) -> tuple[bytes, list[int], list[int]]:
    """A request header, and how it, the data and the answer are cut into descriptors."""
    lun = draw(
        st.one_of(
            st.sampled_from([bytes([1, 0, 0x40, 0]) + bytes(4), bytes([0xC1, 1]) + bytes(6)]),
            st.binary(min_size=8, max_size=8),
        )
    )
    header = lun + draw(st.binary(min_size=11, max_size=11))
    cdb = draw(st.binary(min_size=32, max_size=32).filter(lambda c: c[0] != START_STOP_UNIT))
    pieces = st.lists(st.integers(0, 700), max_size=QUEUE // 2 - 1)
    return header + cdb, draw(pieces), draw(pieces)


@settings(fuzzed, max_examples=60)
@given(
    chains=st.lists(requests(), min_size=1, max_size=6),
    queue=st.sampled_from([REQUEST_QUEUE, CONTROL_QUEUE]),
)
def test_requests(
    server: Server, chains: list[tuple[bytes, list[int], list[int]]], queue: int
) -> None:
    """Well-formed chains of any content and cut: each one is answered or refused."""
    with attach(server, OPTIONS, size=SIZE) as guest:
        ring = RawRing(guest, queue)
        exposed = 0
        for header, readable, writable in chains:
            source = ring.buffer(sum(readable) + len(header))
            guest.memory.write(source.address, header)
            sink = ring.buffer(sum(writable) + 1)
            index = 0
            total = len(readable) + len(writable)
            for lengths, start, flag in ((readable, source, 0), (writable, sink, 2)):
                address = start.address
                for length in lengths:
                    last = index + 1 == total
                    following = None if last else index + 1
                    ring.descriptor(index, Segment(address, length), flag, following)
                    address += length
                    index += 1
            if not total:
                continue
            ring.expose(0)
            exposed += 1
            assert ring.settled(exposed), "neither answered nor refused"
            if guest.bus.status() & 64:
                break
        ring.recover()
