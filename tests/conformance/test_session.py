"""What a session offers, what it survives, and what starts its rings."""

from __future__ import annotations

import os

import pytest

from tests.conformance.attach import GUEST_BASE, GUEST_SIZE, Guest, connect
from tests.conformance.cdb import Disk, expect_good, pattern
from tests.conformance.reads import add_read
from tests.conformance.server import Server
from vscsi_emu.driver.front_end import FrontEnd, RequestRefused
from vscsi_emu.driver.vhost_user import USER_OFFSET
from vscsi_emu.driver.virtio_scsi import CDB_SIZE_OFFSET, REQUEST_QUEUE, VirtioScsi
from vscsi_emu.virtio import vhost_user as vu
from vscsi_emu.virtio.config import SIZE
from vscsi_emu.virtio.vhost_user import MessageType, Payload, ProtocolFeature

FAR = 1 << 40
INFLIGHT = ProtocolFeature.GET_VRING_BASE_INFLIGHT | ProtocolFeature.INFLIGHT_SHMFD


@pytest.mark.normative("vu.vring.b10")
def test_skip_drain_is_not_offered_alone(server: Server) -> None:
    with FrontEnd.connect(server.socket) as front_end:
        offered = ProtocolFeature(front_end.get_u64(vu.GET_PROTOCOL_FEATURES))
    assert ProtocolFeature.GET_VRING_BASE_SKIP_DRAIN not in offered or INFLIGHT in offered


@pytest.mark.normative("cfg.d2", "cfg.d1")
def test_the_whole_configuration_is_there_from_the_start(server: Server) -> None:
    """Whatever features bring fields of it: all that there is later is there before any status."""
    with connect(server) as bus:
        before = bus.read_config(0, SIZE)
        device = VirtioScsi(bus)
        assert bus.read_config(0, SIZE) == before == device.config.pack()


# ── Requests that cannot be done ───────────────────────────────────────────────────────────────

Refused = tuple[MessageType, Payload | None, int]
"""A request, its payload, and how many descriptors of /dev/null come with it."""
REFUSED: dict[str, Refused] = {
    "no such region": (vu.REM_MEM_REG, vu.SingleRegion(FAR, 4096, FAR, 0), 0),
    "an overlapping region": (
        vu.ADD_MEM_REG,
        vu.SingleRegion(GUEST_BASE, GUEST_SIZE, USER_OFFSET + GUEST_BASE, 0),
        1,
    ),
    "a region of a device": (vu.ADD_MEM_REG, vu.SingleRegion(FAR, 4096, FAR, 0), 1),
    "a back channel that is no socket": (vu.SET_BACKEND_REQ_FD, None, 1),
    "unknown flags": (vu.SET_CONFIG, vu.ConfigSpace(CDB_SIZE_OFFSET, 2, bytes(4)), 0),
    "a read-only field": (vu.SET_CONFIG, vu.ConfigSpace(0, 0, b"\xff" * 4), 0),
    "an unusable size": (vu.SET_CONFIG, vu.ConfigSpace(CDB_SIZE_OFFSET, 0, b"\xff" * 4), 0),
    "a logged ring": (vu.SET_VRING_ADDR, vu.VringAddr(2, vu.VRING_F_LOG, 0, 0, 0, 0), 0),
}


@pytest.mark.normative("vu.comm.b7")
@pytest.mark.parametrize("refused", REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_done_ends_no_session(guest: Guest, refused: Refused) -> None:
    """The answer says so; rings, memory and configuration are what they were."""
    message, payload, count = refused
    disk = Disk(guest.device, 0, 0).ready()
    disk.write(3, pattern(512))
    with open(os.devnull, "rb") as null, pytest.raises(RequestRefused):
        guest.front_end.put(message, payload, [null.fileno()] * count)
    assert disk.read(3, 1) == pattern(512)
    assert guest.bus.read_config(0, SIZE) == guest.device.config.pack()


@pytest.mark.normative("vu.comm.b7")
@pytest.mark.parametrize("number", [*vu.REFUSED, 1000])
def test_a_request_that_is_not_known_ends_no_session(guest: Guest, number: int) -> None:
    disk = Disk(guest.device, 0, 0).ready()
    guest.front_end.send_raw(vu.encode(number, bytes(8), vu.FLAG_NEED_REPLY))
    reply = guest.front_end.receive()
    assert (reply.request, reply.is_reply) == (number, True)
    assert reply.payload != bytes(8), "it was acknowledged as done"
    disk.read(0, 1)


# ── What starts a ring ─────────────────────────────────────────────────────────────────────────


@pytest.mark.normative("vu.ring.b7")
@pytest.mark.parametrize("early", [False, True], ids=["kicked later", "kicked before"])
def test_a_ring_runs_from_its_first_kick_on(guest: Guest, early: bool) -> None:
    """Whether the descriptor is readable already when it comes, or becomes so."""
    Disk(guest.device, 0, 0).ready()
    guest.bus.stop_queue(REQUEST_QUEUE)
    kick = os.eventfd(int(early), os.EFD_NONBLOCK)
    item = add_read(guest)
    if early:
        guest.device.queues[REQUEST_QUEUE].ring.publish()
    guest.front_end.put(vu.SET_VRING_KICK, vu.VringFd.of(REQUEST_QUEUE), [kick])
    if not early:
        guest.device.queues[REQUEST_QUEUE].ring.publish()
        os.eventfd_write(kick, 1)
    expect_good(guest.device.wait(item))
    os.close(kick)
