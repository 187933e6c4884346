"""One front end must not harm another, nor the server."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.unit.transport.harness import TIMEOUT, Server, attached, serving
from vscsi_emu.backends.uri import parse_uri
from vscsi_emu.config import Config, HbaConfig, LunConfig
from vscsi_emu.transport.vhost_user.backchannel import Backchannel
from vscsi_emu.virtio import vhost_user as vu


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    luns = (LunConfig("a", parse_uri("mem:1M")),)
    hbas = tuple(
        HbaConfig(str(tmp_path / name), None, 1, {(0, 0): "a"}) for name in ("1.sock", "2.sock")
    )
    with serving(Config(luns, hbas)) as running:
        yield running


def test_a_flood_of_messages_on_one_socket_stops_no_other(server: Server) -> None:
    flood = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with flood:
        flood.connect(server.sockets[0])
        flood.setblocking(False)
        message = vu.SET_OWNER.encode() * 1000
        with attached(server.sockets[1]) as device:
            for _ in range(50):
                with suppress(BlockingIOError):
                    flood.send(message)
                assert device.execute(0, 0, bytes(6)).response == 0


def test_a_front_end_that_never_reads_stops_no_other(server: Server) -> None:
    slow = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with slow:
        slow.connect(server.sockets[0])
        slow.setblocking(False)
        with suppress(BlockingIOError):  # both directions are full then
            while True:
                slow.send(vu.GET_FEATURES.encode() * 100)
        with attached(server.sockets[1]) as device:
            assert device.execute(0, 0, bytes(6)).response == 0


def test_a_back_channel_closed_before_it_began_leaks_nothing() -> None:
    async def open_and_close() -> socket.socket:
        ours, theirs = socket.socketpair()
        await Backchannel(theirs, acknowledged=True, name="test").close()
        return ours

    with asyncio.run(open_and_close()) as ours:
        ours.settimeout(TIMEOUT)
        assert ours.recv(1) == b""
