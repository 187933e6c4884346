"""Random vhost-user conversations: the session may end, the server may not."""

import os
import socket
from collections.abc import Callable, Sequence
from typing import NamedTuple

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conformance.attach import GUEST_BASE
from tests.conformance.server import Server
from vscsi_emu._dataplane import GuestMemory
from vscsi_emu.driver.front_end import BackEndError, FrontEnd
from vscsi_emu.driver.vhost_user import SUPPORTED, USER_OFFSET
from vscsi_emu.virtio import vhost_user as vu
from vscsi_emu.virtio.vhost_user import MessageType, Payload, ProtocolFeature

MEMORY = 1 << 20
OPEN: dict[str, Callable[[], int]] = {
    "eventfd": lambda: os.eventfd(0),
    "null": lambda: os.open(os.devnull, os.O_RDWR),
    "memfd": lambda: os.memfd_create("fuzz"),
}


class Step(NamedTuple):
    """One message as it goes out; `fds` says what comes with it: a kind of `OPEN`, or "guest"."""

    data: bytes
    fds: Sequence[str] = ()


small = st.integers(0, 7)
u32 = st.one_of(small, st.integers(0, 0xFFFFFFFF))
u64 = st.one_of(small, st.integers(0, 0xFFFF_FFFF_FFFF_FFFF))
offsets = st.one_of(st.integers(0, 255).map(lambda n: n * 4096), st.integers(0, MEMORY + 4096))
users = st.one_of(offsets.map(lambda n: USER_OFFSET + GUEST_BASE + n), u64)
guests = st.one_of(offsets.map(lambda n: GUEST_BASE + n), u64)
sizes = st.one_of(st.just(MEMORY), offsets, u64)
states = st.builds(vu.VringState, small, st.one_of(st.sampled_from([0, 1, 2, 16, 128, 1024]), u32))
regions = st.builds(vu.MemoryRegion, guests, sizes, users, st.one_of(st.just(0), u64))

PAYLOADS: dict[type[Payload], st.SearchStrategy[Payload]] = {
    vu.Empty: st.just(vu.Empty()),
    vu.U64: st.builds(vu.U64, st.one_of(u64, st.just(vu.F_PROTOCOL_FEATURES | 1 << 32 | 3 << 28))),
    vu.VringFd: st.builds(vu.VringFd, st.one_of(small, small.map(lambda n: n | 256), u64)),
    vu.VringState: states,
    vu.VringAddr: st.builds(vu.VringAddr, small, st.integers(0, 1), users, users, users, u64),
    vu.SingleRegion: st.builds(vu.SingleRegion, guests, sizes, users, st.just(0)),
    vu.MemoryTable: st.lists(regions, max_size=9).map(lambda r: vu.MemoryTable(tuple(r))),
    vu.ConfigSpace: st.builds(vu.ConfigSpace, u32, u32, st.binary(max_size=64)),
    vu.IotlbMessage: st.builds(
        vu.IotlbMessage, u64, u64, u64, st.integers(0, 255), st.integers(0, 255)
    ),
}


def _right_fds(message: MessageType, payload: Payload) -> int:
    return message.fds_of(payload) if message.fds_of else message.fds[0]


@st.composite
def well_formed(draw: st.DrawFn) -> Step:
    """A message as declared, most values plausible, usually with the right descriptors."""
    message = draw(st.sampled_from(list(vu.FRONTEND.values())))
    payload = draw(PAYLOADS[message.payload])
    count = draw(st.one_of(st.just(_right_fds(message, payload)), st.integers(0, 10)))
    kinds = ["guest", *OPEN] if message.payload in (vu.MemoryTable, vu.SingleRegion) else [*OPEN]
    fds = draw(st.lists(st.sampled_from(kinds), min_size=count, max_size=count))
    return Step(message.encode(payload, need_reply=draw(st.booleans())), fds)


malformed = st.one_of(
    st.builds(
        lambda request, flags, size, body: Step(vu.HEADER.pack(request, flags, size) + body),
        st.one_of(st.integers(0, 50), u32),
        st.one_of(st.just(1), u32),
        st.one_of(st.integers(0, 64), u32),
        st.binary(max_size=64),
    ),
    st.binary(min_size=1, max_size=100).map(Step),
)

table = vu.MemoryTable((vu.MemoryRegion(GUEST_BASE, MEMORY, USER_OFFSET + GUEST_BASE, 0),))


@st.composite
def ring_set_up(draw: st.DrawFn) -> list[Step]:
    """Everything that starts a ring, in any order, some of it missing."""
    index = draw(small)
    base = USER_OFFSET + GUEST_BASE
    steps = [
        Step(vu.SET_MEM_TABLE.encode(table), ["guest"]),
        Step(vu.SET_FEATURES.encode(vu.U64(vu.F_PROTOCOL_FEATURES | 1 << 32))),
        Step(vu.SET_VRING_NUM.encode(vu.VringState(index, 128))),
        Step(
            vu.SET_VRING_ADDR.encode(vu.VringAddr(index, 0, base, base + 0x2000, base + 0x1000, 0))
        ),
        Step(vu.SET_VRING_KICK.encode(vu.VringFd.of(index)), ["eventfd"]),
        Step(vu.SET_VRING_CALL.encode(vu.VringFd.of(index)), ["eventfd"]),
        Step(vu.SET_VRING_ENABLE.encode(vu.VringState(index, 1))),
        Step(vu.GET_VRING_BASE.encode(vu.VringState(index, 0))),
    ]
    if draw(st.booleans()):
        return steps
    return list(draw(st.permutations(steps)))[: draw(st.integers(1, 8))]


conversations = st.lists(
    st.one_of(
        ring_set_up(),
        st.lists(well_formed(), min_size=1, max_size=4),
        st.lists(malformed, min_size=1, max_size=1),
    ),
    max_size=8,
).map(lambda groups: [step for group in groups for step in group])


@settings(
    max_examples=250,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(negotiated=st.booleans(), steps=conversations, cut=st.integers(0, 11))
def test_conversations(server: Server, negotiated: bool, steps: list[Step], cut: int) -> None:
    """Once we have said all, and perhaps half a message more, the server closes, in time."""
    memory = GuestMemory.anonymous(MEMORY, GUEST_BASE)
    with FrontEnd.connect(server.socket) as front_end:
        try:
            if negotiated:
                front_end.negotiate_protocol(SUPPORTED & ~ProtocolFeature.BACKEND_REQ)
            for step in steps:
                _send(front_end, memory, step)
            if cut:
                front_end.send_raw(vu.GET_FEATURES.encode()[:cut])
            front_end.connection.shutdown(socket.SHUT_WR)
            while True:
                front_end.receive()
        except BackEndError:
            pass
    assert server.process.running, server.process.log[-4000:]


def _send(front_end: FrontEnd, memory: GuestMemory, step: Step) -> None:
    opened = {i: OPEN[kind]() for i, kind in enumerate(step.fds) if kind != "guest"}
    try:
        fds = [opened.get(i, memory.fileno()) for i in range(len(step.fds))]
        front_end.send_raw(step.data, fds)
    finally:
        vu.close_fds(list(opened.values()))
