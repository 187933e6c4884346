"""Messages that no front end may send: that session ends or the request is refused, no more."""

import os
import socket
import struct
from collections.abc import Callable, Sequence

import pytest

from tests.conformance.attach import GUEST_BASE, attach, connect
from tests.conformance.cdb import Disk
from tests.conformance.raw import RawRing
from tests.conformance.reads import add_read, within
from tests.conformance.server import Server
from vscsi_emu.driver.front_end import BackEndError, FrontEnd, RequestRefused
from vscsi_emu.driver.vhost_user import SUPPORTED, USER_OFFSET, VhostUserBus
from vscsi_emu.driver.virtio_scsi import REQUEST_QUEUE
from vscsi_emu.driver.vring import DESC_F_WRITE
from vscsi_emu.virtio import vhost_user as vu
from vscsi_emu.virtio.vhost_user import MessageType, Payload


def header(request: int, flags: int, size: int) -> bytes:
    return struct.pack("=III", request, flags, size)


def ends(front_end: FrontEnd) -> bool:
    """Whether the server closes the connection (in time; `TimeoutError` if it does nothing)."""
    try:
        front_end.send_raw(vu.GET_FEATURES.encode())
        while front_end.receive().request != vu.GET_FEATURES.number:
            pass
    except BackEndError:
        return True
    return False


# ── Headers ─────────────────────────────────────────────────────────────────────────────────────


MALFORMED = {
    "version 0": header(1, 0, 0),
    "version 2": header(1, 2, 0),
    "version 3": header(1, 3, 0),
    "undefined flags": header(1, 1 | 1 << 4, 0),
    "top flag": header(1, 1 | 1 << 31, 0),
    "reply flag": header(1, 1 | 4, 0),
    "request 0": header(0, 1, 0),
    "request 99": header(99, 1, 0),
    "request 2^32 - 1": header(0xFFFFFFFF, 1, 0),
    "4 GiB payload": header(2, 1, 0xFFFFFFFF),
    "2 GiB payload": header(2, 1, 0x7FFFFFFF),
    "64 KiB payload": header(2, 1, 65536) + bytes(65536),
    "payload where none is": header(1, 1, 8) + bytes(8),
    "no payload where one is": header(2, 1, 0),
    "all ones": b"\xff" * 12,
    "an HTTP client": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_message(server: Server, data: bytes) -> None:
    with FrontEnd.connect(server.socket) as front_end:
        front_end.send_raw(data)
        assert ends(front_end)


def _sample(message: MessageType) -> Payload:
    """A payload of the right shape, mostly zeros."""
    if message.payload is vu.MemoryTable:
        return vu.MemoryTable((vu.MemoryRegion(0, 4096, 0, 0),))
    if message.payload is vu.ConfigSpace:
        return vu.ConfigSpace(0, 0, bytes(4))
    size = message.payload.STRUCT.size
    return message.payload.unpack(bytes(size))


WRONG_LENGTHS = [
    (message, len(_sample(message).pack()) + difference)
    for message in vu.FRONTEND.values()
    for difference in (-1, 1, 200)
    if len(_sample(message).pack()) + difference >= 0
    # SET_MEM_TABLE may come with room for all regions.
    and not (message is vu.SET_MEM_TABLE and difference > 0)
]


@pytest.mark.parametrize(
    ("message", "size"), WRONG_LENGTHS, ids=[f"{m}-{n}" for m, n in WRONG_LENGTHS]
)
def test_payload_of_the_wrong_length(server: Server, message: MessageType, size: int) -> None:
    with FrontEnd.connect(server.socket) as front_end:
        front_end.negotiate_protocol(SUPPORTED)
        data = header(message.number, vu.VERSION, size) + bytes(size)
        fds = [front_end.connection.fileno()] * message.fds[0]
        front_end.send_raw(data, fds)
        assert ends(front_end)


def _allowed_fds(message: MessageType) -> range:
    if message.fds_of is not None:
        count = message.fds_of(_sample(message))
        return range(count, count + 1)
    return range(message.fds[0], message.fds[1] + 1)


WRONG_COUNTS = [
    (message, count)
    for message in vu.FRONTEND.values()
    for count in (0, 1, 2, 3, 9, 32, 250)
    if count not in _allowed_fds(message)
]


@pytest.mark.parametrize(
    ("message", "count"), WRONG_COUNTS, ids=[f"{m}-{n}" for m, n in WRONG_COUNTS]
)
def test_wrong_number_of_descriptors(server: Server, message: MessageType, count: int) -> None:
    """Too few, too many, far too many: none of them stays open in the server."""
    with FrontEnd.connect(server.socket) as front_end, open(os.devnull, "rb") as null:
        front_end.negotiate_protocol(SUPPORTED)
        front_end.send_raw(message.encode(_sample(message)), [null.fileno()] * count)
        assert ends(front_end)


def test_descriptors_with_each_byte(server: Server) -> None:
    with FrontEnd.connect(server.socket) as front_end, open(os.devnull, "rb") as null:
        try:
            for byte in vu.GET_FEATURES.encode():
                front_end.send_raw(bytes([byte]), [null.fileno()] * 5)
        except BackEndError:
            return
        assert ends(front_end)


@pytest.mark.parametrize("count", [1, 4, 11, 12, 13, 19])
def test_half_a_message(server: Server, count: int) -> None:
    data = vu.SET_FEATURES.encode(vu.U64(vu.F_PROTOCOL_FEATURES))
    assert count < len(data)
    with FrontEnd.connect(server.socket) as front_end, open(os.devnull, "rb") as null:
        front_end.send_raw(data[:count], [null.fileno()])


@pytest.mark.parametrize("number", [*vu.REFUSED, 46, 1000])
def test_requests_of_features_that_are_not_offered(server: Server, number: int) -> None:
    with FrontEnd.connect(server.socket) as front_end:
        front_end.negotiate_protocol(SUPPORTED)
        front_end.send_raw(vu.encode(number, bytes(8), 0))
        assert ends(front_end)


# ── Order and values ────────────────────────────────────────────────────────────────────────────


RINGS = (
    vu.SET_VRING_NUM,
    vu.SET_VRING_BASE,
    vu.GET_VRING_BASE,
    vu.SET_VRING_ENABLE,
)


@pytest.mark.parametrize("message", RINGS, ids=str)
@pytest.mark.parametrize("index", [6, 255, 256, 0xFFFFFFFF])
def test_ring_that_is_not_there(server: Server, message: MessageType, index: int) -> None:
    with FrontEnd.connect(server.socket) as front_end:
        front_end.negotiate_protocol(SUPPORTED)
        front_end.send_raw(message.encode(vu.VringState(index, 1)))
        assert ends(front_end)


@pytest.mark.parametrize(
    "message", [vu.SET_VRING_KICK, vu.SET_VRING_CALL, vu.SET_VRING_ERR], ids=str
)
@pytest.mark.parametrize("index", [6, 255])
def test_notifier_of_a_ring_that_is_not_there(
    server: Server, message: MessageType, index: int
) -> None:
    with FrontEnd.connect(server.socket) as front_end, open(os.devnull, "rb") as null:
        front_end.negotiate_protocol(SUPPORTED)
        front_end.send_raw(message.encode(vu.VringFd.of(index)), [null.fileno()])
        assert ends(front_end)


@pytest.mark.parametrize("size", [0, 3, 100, 2048, 32768, 65536, 0xFFFFFFFF])
def test_impossible_queue_size(server: Server, size: int) -> None:
    with FrontEnd.connect(server.socket) as front_end:
        front_end.negotiate_protocol(SUPPORTED)
        front_end.send_raw(vu.SET_VRING_NUM.encode(vu.VringState(2, size)))
        assert ends(front_end)


def _kick_first(bus: VhostUserBus) -> None:
    kick = os.eventfd(0)
    try:
        bus.front_end.put(vu.SET_VRING_KICK, vu.VringFd.of(2), [kick])
    finally:
        os.close(kick)


def _enable_first(bus: VhostUserBus) -> None:
    bus.front_end.put(vu.SET_VRING_ENABLE, vu.VringState(2, 1))
    _kick_first(bus)


def _ring_at(descriptor: int, used: int, available: int) -> Callable[[VhostUserBus], None]:
    def run(bus: VhostUserBus) -> None:
        put = bus.front_end.put
        put(vu.SET_VRING_NUM, vu.VringState(2, 128))
        put(vu.SET_VRING_ADDR, vu.VringAddr(2, 0, descriptor, used, available, 0))
        _kick_first(bus)

    return run


USER = USER_OFFSET + GUEST_BASE
UNUSABLE = {
    "a kick before all else": _kick_first,
    "enabled before it is set up": _enable_first,
    "rings at 0": _ring_at(0, 0, 0),
    "rings outside memory": _ring_at(1 << 40, 1 << 40, 1 << 40),
    "used ring over the end": _ring_at(USER, USER + (1 << 20) - 8, USER + 4096),
    "odd descriptor table": _ring_at(USER + 8, USER + 8192, USER + 4096),
    "odd used ring": _ring_at(USER, USER + 8194, USER + 4096),
    "odd available ring": _ring_at(USER, USER + 8192, USER + 4097),
    "last addresses": _ring_at((1 << 64) - 16, (1 << 64) - 4, (1 << 64) - 2),
}


@pytest.mark.parametrize("run", UNUSABLE.values(), ids=UNUSABLE.keys())
def test_ring_that_cannot_start(server: Server, run: Callable[[VhostUserBus], None]) -> None:
    with connect(server, size=1 << 20) as bus:
        bus.set_driver_features(bus.device_features())
        with pytest.raises((RequestRefused, BackEndError)):
            run(bus)


def test_rings_without_memory(server: Server) -> None:
    with FrontEnd.connect(server.socket) as front_end:
        front_end.negotiate_protocol(SUPPORTED)
        front_end.put(vu.SET_VRING_NUM, vu.VringState(2, 128))
        front_end.send_raw(vu.SET_VRING_ADDR.encode(vu.VringAddr(2, 0, USER, USER, USER, 0)))
        kick = os.eventfd(0)
        front_end.send_raw(vu.SET_VRING_KICK.encode(vu.VringFd.of(2)), [kick])
        os.close(kick)
        assert ends(front_end)


@pytest.mark.parametrize(
    "message",
    [m for m in vu.FRONTEND.values() if m.needs and not m.offer_suffices],
    ids=str,
)
def test_message_without_its_protocol_feature(server: Server, message: MessageType) -> None:
    with FrontEnd.connect(server.socket) as front_end, open(os.devnull, "rb") as null:
        front_end.send_raw(message.encode(_sample(message)), [null.fileno()] * message.fds[0])
        assert ends(front_end)


def test_protocol_features_that_were_not_offered(server: Server) -> None:
    with FrontEnd.connect(server.socket) as front_end:
        front_end.send_raw(vu.SET_PROTOCOL_FEATURES.encode(vu.U64(1 << 63)))
        assert ends(front_end)


# ── Descriptors that are not what they should be ────────────────────────────────────────────────


def _full_eventfd() -> list[int]:
    fd = os.eventfd(0)
    os.eventfd_write(fd, 0xFFFF_FFFF_FFFF_FFFE)
    return [fd]


def _full_pipe() -> list[int]:
    read, write = os.pipe()
    os.set_blocking(write, False)
    try:
        while True:
            os.write(write, bytes(4096))
    except BlockingIOError:
        os.set_blocking(write, True)
    return [write, read]


def _full_socket() -> list[int]:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    try:
        while True:
            theirs.send(bytes(4096))
    except BlockingIOError:
        theirs.setblocking(True)
    return [theirs.detach(), ours.detach()]


def _broken_pipe() -> list[int]:
    read, write = os.pipe()
    os.close(read)
    return [write]


def _blocking_pipe() -> list[int]:
    return list(os.pipe())


def _blocking_eventfd() -> list[int]:
    return [os.eventfd(0)]


def _regular_file() -> list[int]:
    return [os.memfd_create("a regular file")]


def _directory() -> list[int]:
    return [os.open("/", os.O_RDONLY)]


def _null() -> list[int]:
    return [os.open(os.devnull, os.O_RDWR)]


def _path_only() -> list[int]:
    return [os.open("/", os.O_PATH)]


ODD = [
    _full_eventfd, _full_pipe, _full_socket, _broken_pipe, _blocking_pipe, _blocking_eventfd,
    _regular_file, _directory, _null, _path_only,
]  # fmt: skip


def put_odd(front_end: FrontEnd, message: MessageType, fds: Sequence[int]) -> bool:
    """Hands over the first of `fds`; whether it was taken."""
    try:
        front_end.put(message, vu.VringFd.of(REQUEST_QUEUE), fds[:1])
    except RequestRefused:
        return False
    return True


@pytest.mark.parametrize("make", ODD)
def test_odd_kick_descriptor(server: Server, make: Callable[[], list[int]]) -> None:
    """Refused, or waited on without ever blocking; other queues and messages go on."""
    fds = make()
    try:
        with attach(server) as guest:
            Disk(guest.device, 0, 0).ready()
            put_odd(guest.front_end, vu.SET_VRING_KICK, fds)
            assert guest.device.task_management(6, 0, 0) == 0
            good = vu.VringFd.of(REQUEST_QUEUE)
            kick = guest.bus.kick_fd(REQUEST_QUEUE)
            guest.front_end.put(vu.SET_VRING_KICK, good, [kick])
            Disk(guest.device, 0, 0).ready().read(0, 1)
    finally:
        vu.close_fds(fds)


@pytest.mark.parametrize("make", ODD)
def test_odd_call_descriptor(server: Server, make: Callable[[], list[int]]) -> None:
    """The worker notifies into it and goes on."""
    fds = make()
    try:
        with attach(server) as guest:
            Disk(guest.device, 0, 0).ready()
            ring = guest.device.queues[REQUEST_QUEUE].ring
            put_odd(guest.front_end, vu.SET_VRING_CALL, fds)
            for _ in range(5):
                ring.enable_notifications()
                add_read(guest)
                guest.device.publish(REQUEST_QUEUE)
                assert within(lambda: len(guest.device.reap(REQUEST_QUEUE)) == 1)
            assert guest.device.task_management(6, 0, 0) == 0
    finally:
        vu.close_fds(fds)


@pytest.mark.parametrize("make", ODD)
def test_odd_err_descriptor(server: Server, make: Callable[[], list[int]]) -> None:
    """The control thread reports the broken ring into it and goes on."""
    fds = make()
    try:
        with attach(server) as guest:
            ring = RawRing(guest)
            put_odd(guest.front_end, vu.SET_VRING_ERR, fds)
            ring.descriptor(0, ring.response, DESC_F_WRITE, 0)
            ring.expose(0)
            assert within(lambda: bool(guest.bus.status() & 64))
            ring.recover()
    finally:
        vu.close_fds(fds)


@pytest.mark.parametrize("make", [_full_pipe, _full_socket, _broken_pipe, _regular_file])
def test_odd_back_channel(server: Server, make: Callable[[], list[int]]) -> None:
    fds = make()
    try:
        with attach(server) as guest:
            try:
                guest.front_end.put(vu.SET_BACKEND_REQ_FD, fds=fds[:1])
            except RequestRefused:
                assert make is not _full_socket
            Disk(guest.device, 0, 0).ready().read(0, 1)
    finally:
        vu.close_fds(fds)
