"""What the back end itself asks, as it stands on the wire ("Back-end communication", "In-band
notifications")."""

from __future__ import annotations

import select
from collections.abc import Iterator
from contextlib import contextmanager
from socket import AF_UNIX, SOCK_STREAM, recv_fds, socket, socketpair

import pytest

from tests.conformance import cdb
from tests.conformance.attach import Guest, attach
from tests.conformance.cdb import Disk
from tests.conformance.raw import RawRing
from tests.conformance.reads import DEADLINE, within
from tests.conformance.server import Server
from vscsi_emu.driver.vhost_user import SUPPORTED, Notify
from vscsi_emu.driver.virtio_scsi import REQUEST_QUEUE, Options
from vscsi_emu.driver.vring import DESC_F_WRITE
from vscsi_emu.virtio import vhost_user as vu
from vscsi_emu.virtio.vhost_user import MessageType, Packet, ProtocolFeature

OTHER_QUEUE = REQUEST_QUEUE + 1
ROOM_FOR_FDS = 64
INBAND = SUPPORTED | ProtocolFeature.INBAND_NOTIFICATIONS


class Channel:
    """The front end's end of a back channel, answered when the test says so."""

    def __init__(self, ours: socket) -> None:
        ours.settimeout(DEADLINE)
        self._ours = ours

    def receive(self) -> Packet:
        assembler = vu.Assembler()
        while True:
            data, fds, _, _ = recv_fds(self._ours, assembler.wanted, ROOM_FOR_FDS)
            assert data, "the back end closed its channel"
            assert not fds, "BACKEND_SEND_FD was not negotiated"
            if packet := assembler.feed(data):
                return packet

    def expect(self, message: MessageType, payload: vu.Payload) -> None:
        """This request comes next, and wants an answer."""
        packet = self.receive()
        assert packet.request == message.number
        assert message.decode(packet) == payload
        assert packet.flags == vu.VERSION | vu.FLAG_NEED_REPLY

    def called(self) -> int:
        """The ring that is called next."""
        packet = self.receive()
        payload = vu.BACKEND_VRING_CALL.decode(packet)
        assert isinstance(payload, vu.VringState)
        assert (packet.request, payload.num) == (vu.BACKEND_VRING_CALL.number, 0)
        assert packet.need_reply
        return payload.index

    def answer(self, message: MessageType) -> None:
        self._ours.sendall(message.encode_reply(vu.U64(0)))

    @property
    def quiet(self) -> bool:
        """Whether nothing has come."""
        return not select.select([self._ours], [], [], 0)[0]


@contextmanager
def back_channel(guest: Guest) -> Iterator[Channel]:
    """The test's own from now on; its guest hears of nothing any more."""
    ours, theirs = socketpair(AF_UNIX, SOCK_STREAM)
    with ours, theirs:
        guest.front_end.put(vu.SET_BACKEND_REQ_FD, fds=[theirs.fileno()])
        yield Channel(ours)


def read(guest: Guest, queue: int) -> None:
    """One block, on `queue`; returns once the device has used it."""
    ring = guest.device.queues[queue].ring
    ring.enable_notifications()
    guest.device.submit(0, 0, cdb.read_10(0, 1), data_in_length=512, queue=queue)
    used = ring.layout.used_idx
    assert within(lambda: guest.memory.load_u16_acquire(used) != ring.used_index)


def break_ring(ring: RawRing) -> None:
    """A chain that is its own successor."""
    ring.descriptor(0, ring.response, DESC_F_WRITE, 0)
    ring.expose(0)


@pytest.mark.normative("vu.inband.b2", "vu.req.b1", "vu.req.b2", "vu.req.b3", "vu.inband.b5")
def test_calls_wait_for_each_others_answers(server: Server) -> None:
    with attach(server, Options(queues=2), call=Notify.INBAND) as guest:
        Disk(guest.device, 0, 0).ready()
        with back_channel(guest) as channel:
            read(guest, REQUEST_QUEUE)
            channel.expect(vu.BACKEND_VRING_CALL, vu.VringState(REQUEST_QUEUE, 0))
            read(guest, OTHER_QUEUE)
            assert guest.front_end.get_u64(vu.GET_FEATURES)
            assert channel.quiet, "the next request did not wait for the answer to this one"
            channel.answer(vu.BACKEND_VRING_CALL)
            # A call of the first ring may come once more: of what it used before the channel.
            while channel.called() != OTHER_QUEUE:
                channel.answer(vu.BACKEND_VRING_CALL)


@pytest.mark.normative(
    "vu.inband.b2", "vu.inband.b6", "vu.inband.b7", "vu.inband.b8", "vu.req.b2", "vu.req.b3",
    "vu.req.b6",
)  # fmt: skip
def test_a_broken_ring_without_err_descriptor_is_told_in_band(server: Server) -> None:
    with attach(server, Options(queues=2), protocol_features=INBAND) as guest:
        # In this order: making one runs commands on the first request queue.
        without = RawRing(guest, OTHER_QUEUE)
        with_fd = RawRing(guest, REQUEST_QUEUE)
        guest.front_end.put(vu.SET_VRING_ERR, vu.VringFd.of(OTHER_QUEUE, has_fd=False))
        with back_channel(guest) as channel:
            break_ring(with_fd)
            assert with_fd.failed()
            break_ring(without)
            # The first request that comes at all.
            channel.expect(vu.BACKEND_VRING_ERR, vu.VringState(OTHER_QUEUE, 0))
            channel.answer(vu.BACKEND_VRING_ERR)
            assert guest.front_end.get_u64(vu.GET_FEATURES)
            assert channel.quiet
