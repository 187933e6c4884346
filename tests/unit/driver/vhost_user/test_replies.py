"""Answers: what a front end makes of wrong ones, and what it answers itself ("Communication",
"Back-end communication")."""

from __future__ import annotations

from socket import AF_UNIX, SOCK_STREAM, socketpair

import pytest

from tests.unit.driver.vhost_user.back_end import SECONDS, BackEnd, bus_to, played
from vscsi_emu.driver.front_end import BackEndError, FrontEnd
from vscsi_emu.driver.vhost_user import SUPPORTED
from vscsi_emu.virtio import vhost_user as vu
from vscsi_emu.virtio.vhost_user import ProtocolFeature

_U64 = bytes(8)
WRONG = {
    "another request's": vu.encode(vu.GET_QUEUE_NUM.number, _U64, vu.FLAG_REPLY),
    "a request of its own": vu.encode(vu.GET_FEATURES.number, _U64, 0),
    "version 2": vu.HEADER.pack(vu.GET_FEATURES.number, 2 | vu.FLAG_REPLY, 8) + _U64,
    "an undefined flag": vu.encode(vu.GET_FEATURES.number, _U64, vu.FLAG_REPLY | 1 << 4),
    "too short": vu.encode(vu.GET_FEATURES.number, bytes(4), vu.FLAG_REPLY),
    "too long": vu.encode(vu.GET_FEATURES.number, bytes(16), vu.FLAG_REPLY),
    "endless": vu.HEADER.pack(vu.GET_FEATURES.number, vu.VERSION | vu.FLAG_REPLY, 1 << 31),
}


@pytest.mark.normative("vu.comm.f2")
@pytest.mark.parametrize("reply", WRONG.values(), ids=WRONG.keys())
def test_a_wrong_reply_closes_the_connection(reply: bytes) -> None:
    back_end = BackEnd(instead={vu.GET_FEATURES: reply})
    with played(back_end) as sock:
        front_end = FrontEnd(sock)
        with pytest.raises(BackEndError):
            front_end.get_u64(vu.GET_FEATURES)
        assert front_end.connection.fileno() == -1


@pytest.mark.normative("vu.comm.f2")
def test_a_wrong_configuration_closes_the_connection() -> None:
    piece = vu.ConfigSpace(0, 0, bytes(3))
    back_end = BackEnd(instead={vu.GET_CONFIG: vu.GET_CONFIG.encode_reply(piece)})
    with bus_to(back_end) as bus:
        with pytest.raises(BackEndError, match="3 bytes instead of 4"):
            bus.read_config(0, 4)
        assert bus.front_end.connection.fileno() == -1


@pytest.mark.normative("vu.comm.f2")
def test_an_incomplete_send_closes_the_connection() -> None:
    """The back end reads nothing; at some point there is room for half a message."""
    ours, theirs = socketpair(AF_UNIX, SOCK_STREAM)
    with ours, FrontEnd(theirs, timeout=0.01) as front_end:
        with pytest.raises(TimeoutError, match="takes nothing"):
            front_end.send_raw(vu.SET_FEATURES.encode(vu.U64(0)) * 1_000_000)
        assert front_end.connection.fileno() == -1
        ours.settimeout(10.0)
        while ours.recv(1 << 20):  # to its end, not to a time-out
            pass


@pytest.mark.normative("vu.req.f2")
def test_a_config_change_is_answered_where_an_answer_is_wanted() -> None:
    with bus_to(back_end := BackEnd()) as bus:
        for count in (1, 2):
            reply = back_end.ask(bus.front_end, vu.BACKEND_CONFIG_CHANGE_MSG)
            assert vu.BACKEND_CONFIG_CHANGE_MSG.decode_reply(reply) == vu.U64(0)
            assert bus.front_end.config_changes == count


def test_a_config_change_without_need_reply_gets_none() -> None:
    with bus_to(back_end := BackEnd(protocol=SUPPORTED & ~ProtocolFeature.REPLY_ACK)) as bus:
        # Nothing is acknowledged here: the answer to another request says that all were taken.
        bus.front_end.get_u64(vu.GET_FEATURES)
        back_end.tell(vu.BACKEND_CONFIG_CHANGE_MSG)
        bus.front_end.poll([], SECONDS)
        assert bus.front_end.config_changes == 1
        assert back_end.back_channel is not None
        back_end.back_channel.setblocking(False)
        with pytest.raises(BlockingIOError):
            back_end.back_channel.recv(1)
