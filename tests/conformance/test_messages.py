"""The vhost-user conversation itself: headers, replies, acknowledgements, negotiation."""

import os

import pytest

from tests.conformance.attach import Guest, attach, connect
from tests.conformance.cdb import Disk
from tests.conformance.server import Server
from vscsi_emu.driver.front_end import BackEndError, FrontEnd, RequestRefused
from vscsi_emu.driver.vhost_user import SUPPORTED
from vscsi_emu.virtio import vhost_user as vu
from vscsi_emu.virtio.vhost_user import MessageType, Payload, ProtocolFeature

GETS = [vu.GET_FEATURES, vu.GET_PROTOCOL_FEATURES]


@pytest.fixture
def fresh(server: Server) -> FrontEnd:
    """A connection on which nothing was said yet."""
    return FrontEnd.connect(server.socket)


@pytest.mark.normative(
    "vu.msg.b1", "vu.msg.b2", "vu.msg.b3", "vu.msg.b4", "vu.comm.b1", "vu.ack.b3"
)
@pytest.mark.parametrize("message", GETS, ids=str)
@pytest.mark.parametrize("need_reply", [False, True])
def test_header_of_a_reply(fresh: FrontEnd, message: MessageType, need_reply: bool) -> None:
    """Version 1, reply flag, the payload's size; and one reply only, whatever need_reply says."""
    with fresh:
        fresh.negotiate_protocol(SUPPORTED)
        fresh.send_raw(message.encode(need_reply=need_reply))
        packet = fresh.receive()
        assert packet.request == message.number
        assert packet.flags == vu.VERSION | vu.FLAG_REPLY
        assert len(packet.payload) == 8
        fresh.send_raw(vu.GET_QUEUE_NUM.encode())
        assert fresh.receive().request == vu.GET_QUEUE_NUM.number


@pytest.mark.normative("vu.feat.b1", "vu.feat.b2", "vu.feat.b3", "vu.mq.b2")
def test_protocol_features_before_features(fresh: FrontEnd) -> None:
    with fresh:
        assert fresh.get_u64(vu.GET_FEATURES) & vu.F_PROTOCOL_FEATURES
        offered = ProtocolFeature(fresh.get_u64(vu.GET_PROTOCOL_FEATURES))
        assert SUPPORTED in offered
        assert fresh.negotiate_protocol(SUPPORTED) == SUPPORTED
        fresh.put_u64(vu.SET_FEATURES, vu.F_PROTOCOL_FEATURES)


@pytest.mark.normative("vu.mq.b3")
def test_queue_number(server: Server, fresh: FrontEnd) -> None:
    with fresh:
        fresh.negotiate_protocol(SUPPORTED)
        assert fresh.get_u64(vu.GET_QUEUE_NUM) == server.queues + 2


SILENT: list[tuple[MessageType, Payload | None]] = [
    (vu.SET_OWNER, None),
    (vu.SET_FEATURES, vu.U64(vu.F_PROTOCOL_FEATURES)),
    (vu.SET_VRING_NUM, vu.VringState(2, 128)),
    (vu.SET_VRING_BASE, vu.VringState(2, 0)),
    (vu.SET_VRING_ENABLE, vu.VringState(2, 1)),
    (vu.SET_STATUS, vu.U64(1)),
    (vu.SET_CONFIG, vu.ConfigSpace(24, 0, (32).to_bytes(4, "little"))),
    (vu.RESET_DEVICE, None),
    (vu.RESET_OWNER, None),
]


@pytest.mark.normative("vu.comm.b4", "vu.feat.b5")
@pytest.mark.parametrize(("message", "payload"), SILENT, ids=[str(m) for m, _ in SILENT])
@pytest.mark.parametrize("reply_ack", [False, True])
def test_no_reply_unless_asked(
    fresh: FrontEnd, message: MessageType, payload: Payload | None, reply_ack: bool
) -> None:
    with fresh:
        wanted = SUPPORTED if reply_ack else SUPPORTED & ~ProtocolFeature.REPLY_ACK
        fresh.negotiate_protocol(wanted)
        # need_reply means nothing unless REPLY_ACK was negotiated.
        fresh.send_raw(message.encode(payload, need_reply=not reply_ack))
        fresh.send_raw(vu.GET_FEATURES.encode())
        assert fresh.receive().request == vu.GET_FEATURES.number


@pytest.mark.normative("vu.ack.b1", "vu.ack.b2")
@pytest.mark.parametrize(("message", "payload"), SILENT, ids=[str(m) for m, _ in SILENT])
def test_acknowledged_when_asked(
    fresh: FrontEnd, message: MessageType, payload: Payload | None
) -> None:
    with fresh:
        fresh.negotiate_protocol(SUPPORTED)
        fresh.send_raw(message.encode(payload, need_reply=True))
        packet = fresh.receive()
        assert (packet.request, packet.flags) == (message.number, vu.VERSION | vu.FLAG_REPLY)
        assert packet.payload == bytes(8)


@pytest.mark.normative("vu.ack.b2", "vu.ack.b1")
def test_failure_is_acknowledged_too(guest: Guest) -> None:
    with pytest.raises(RequestRefused):
        guest.front_end.put(vu.REM_MEM_REG, vu.SingleRegion(1 << 40, 4096, 1 << 40, 0))
    Disk(guest.device, 0, 0).ready()


@pytest.mark.normative("vu.inband.b1")
def test_in_band_notifications_without_their_needs(fresh: FrontEnd) -> None:
    """The connection is closed (SHOULD)."""
    with fresh:
        fresh.put_u64(vu.SET_PROTOCOL_FEATURES, ProtocolFeature.INBAND_NOTIFICATIONS)
        with pytest.raises(BackEndError):
            fresh.get_u64(vu.GET_FEATURES)


@pytest.mark.normative("vu.req.b4")
def test_back_channel_is_acknowledged(server: Server) -> None:
    with connect(server) as bus:
        bus.front_end.open_back_channel()  # a second one replaces the first
        assert bus.front_end.get_u64(vu.GET_FEATURES)


@pytest.mark.normative("vu.req.b4")
def test_back_channel_that_is_no_socket(fresh: FrontEnd) -> None:
    with fresh, open(os.devnull, "rb") as null:
        fresh.negotiate_protocol(SUPPORTED)
        with pytest.raises(RequestRefused):
            fresh.put(vu.SET_BACKEND_REQ_FD, fds=[null.fileno()])
        assert fresh.get_u64(vu.GET_FEATURES)


def test_a_message_in_single_bytes(server: Server, fresh: FrontEnd) -> None:
    with fresh:
        for byte in vu.GET_FEATURES.encode():
            fresh.send_raw(bytes([byte]))
        assert fresh.receive().request == vu.GET_FEATURES.number


def test_messages_in_one_write(fresh: FrontEnd) -> None:
    with fresh:
        fresh.send_raw(vu.GET_FEATURES.encode() * 20)
        for _ in range(20):
            assert fresh.receive().request == vu.GET_FEATURES.number


@pytest.mark.parametrize(
    "protocol_features",
    [
        ProtocolFeature.CONFIG,
        ProtocolFeature.CONFIG | ProtocolFeature.MQ,
        ProtocolFeature.CONFIG | ProtocolFeature.STATUS,
        ProtocolFeature.CONFIG | ProtocolFeature.REPLY_ACK,
        ProtocolFeature.CONFIG | ProtocolFeature.BACKEND_REQ,
    ],
)
def test_few_protocol_features(server: Server, protocol_features: ProtocolFeature) -> None:
    with attach(server, protocol_features=protocol_features) as guest:
        Disk(guest.device, 0, 0).ready().read(0, 1)
