"""A vhost-user back end played in Python, which remembers what a front end sent."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import reduce
from operator import or_
from socket import AF_UNIX, SOCK_STREAM, recv_fds, socket, socketpair
from typing import Final, Unpack

from tests.conformance.attach import BusOptions
from vscsi_emu._dataplane import GuestMemory
from vscsi_emu.driver.dma import DmaAllocator
from vscsi_emu.driver.front_end import FrontEnd
from vscsi_emu.driver.vhost_user import SUPPORTED, VhostUserBus
from vscsi_emu.virtio import vhost_user as vu
from vscsi_emu.virtio.config import ScsiConfig
from vscsi_emu.virtio.features import Feature
from vscsi_emu.virtio.vhost_user import MessageType, Packet, Payload, ProtocolFeature

SECONDS: Final = 20.0
GUEST_BASE: Final = 0x4000_0000
GUEST_SIZE: Final = 1 << 20
FEATURES: Final = int(Feature.VERSION_1 | Feature.EVENT_IDX) | vu.F_PROTOCOL_FEATURES
EVERYTHING: Final = reduce(or_, ProtocolFeature)
"""Every protocol feature that there is."""


@dataclass(frozen=True, slots=True)
class Sent:
    """A message as it came. `fds`: how many descriptors; `fds_at_once`: with its first byte."""

    message: MessageType
    payload: Payload
    flags: int
    fds: int
    fds_at_once: int

    @property
    def need_reply(self) -> bool:
        return bool(self.flags & vu.FLAG_NEED_REPLY)


@dataclass
class BackEnd:
    """Answers each request that has an answer, as a device without any rings of its own."""

    features: int = FEATURES
    protocol: int = SUPPORTED
    queues: int = 8
    config: bytes = field(default_factory=ScsiConfig(num_queues=3).pack)
    sent: list[Sent] = field(default_factory=list)
    """What came, in order. Whole once the front end is closed and `played` has ended."""
    instead: dict[MessageType, bytes] = field(default_factory=dict)
    """What some requests get for an answer."""
    refused: frozenset[MessageType] = frozenset()
    """Requests whose acknowledgement says that they failed."""
    back_channel: socket | None = None
    kicks: dict[int, int] = field(default_factory=dict)
    """Kick descriptor of each ring that got one."""
    status: int = 0

    def named(self, *messages: MessageType) -> list[Sent]:
        return [sent for sent in self.sent if sent.message in messages]

    def numbers(self) -> set[int]:
        return {sent.message.number for sent in self.sent}

    @property
    def accepted(self) -> ProtocolFeature:
        """The protocol features that the front end set."""
        chosen = self.named(vu.SET_PROTOCOL_FEATURES)
        if not chosen:
            return ProtocolFeature(0)
        assert isinstance(chosen[-1].payload, vu.U64)
        return ProtocolFeature(chosen[-1].payload.value)

    def serve(self, connection: socket) -> None:
        """Until the front end closes. What it sent before is read, unless it closes with an answer
        unread."""
        with suppress(ConnectionResetError):
            while came := _receive(connection):
                if answer := self._take(*came):
                    with suppress(BrokenPipeError):
                        connection.sendall(answer)

    def _take(self, packet: Packet, fds_at_once: int) -> bytes:
        """The bytes of the answer, none where there is none."""
        message = vu.FRONTEND[packet.request]
        payload = message.decode(packet)
        self.sent.append(Sent(message, payload, packet.flags, len(packet.fds), fds_at_once))
        self._keep(message, payload, packet)
        packet.close()
        if message in self.instead:
            return self.instead[message]
        if message.reply is not None:
            return message.encode_reply(self._answer(message, payload))
        if packet.need_reply:
            return message.encode_reply(vu.U64(message in self.refused))
        return b""

    def _keep(self, message: MessageType, payload: Payload, packet: Packet) -> None:
        if message is vu.SET_BACKEND_REQ_FD:
            self.back_channel = socket(fileno=packet.take_fds()[0])
            self.back_channel.settimeout(SECONDS)
        elif message is vu.SET_VRING_KICK and packet.fds:
            assert isinstance(payload, vu.VringFd)
            self.kicks[payload.index] = packet.take_fds()[0]
        elif message is vu.SET_STATUS:
            assert isinstance(payload, vu.U64)
            self.status = payload.value

    def _answer(self, message: MessageType, payload: Payload) -> Payload:
        if isinstance(payload, vu.ConfigSpace):
            piece = self.config[payload.offset : payload.offset + len(payload.data)]
            return vu.ConfigSpace(payload.offset, payload.flags, piece)
        if isinstance(payload, vu.VringState):
            return vu.VringState(payload.index, 0)
        numbers = {
            vu.GET_FEATURES: self.features,
            vu.GET_PROTOCOL_FEATURES: self.protocol,
            vu.GET_QUEUE_NUM: self.queues,
            vu.GET_STATUS: self.status,
            vu.IOTLB_MSG: 0,
        }
        return vu.U64(numbers[message])

    def tell(self, message: MessageType, payload: Payload | None = None) -> None:
        """A request of the back end's own that wants no answer."""
        self._ask(message, payload, need_reply=False)

    def ask(
        self, front_end: FrontEnd, message: MessageType, payload: Payload | None = None
    ) -> Packet:
        """A request of the back end's own; the answer that `front_end` gives."""
        channel = self._ask(message, payload, need_reply=True)
        for _ in range(4):  # it may take the request in pieces
            if channel.fileno() in front_end.poll([channel.fileno()], SECONDS):
                break
        came = _receive(channel)
        assert came is not None
        return came[0]

    def _ask(self, message: MessageType, payload: Payload | None, *, need_reply: bool) -> socket:
        assert self.back_channel is not None
        self.back_channel.sendall(message.encode(payload, need_reply=need_reply))
        return self.back_channel

    def close(self) -> None:
        vu.close_fds(list(self.kicks.values()))
        self.kicks.clear()
        if self.back_channel is not None:
            self.back_channel.close()


def _receive(sock: socket) -> tuple[Packet, int] | None:
    """A message, and how many descriptors came with its first byte; None at the end."""
    assembler = vu.Assembler()
    size, at_once = 1, None
    while True:
        data, fds, _, _ = recv_fds(sock, size, vu.MAX_FDS)
        if not data:
            return None
        at_once = len(fds) if at_once is None else at_once
        if packet := assembler.feed(data, fds):
            return packet, at_once
        size = assembler.wanted


@contextmanager
def played(back_end: BackEnd) -> Iterator[socket]:
    """The front end's socket; all that it sent is known when this has ended."""
    ours, theirs = socketpair(AF_UNIX, SOCK_STREAM)
    failures: list[BaseException] = []

    def serve() -> None:
        try:
            back_end.serve(ours)
        except BaseException as error:
            failures.append(error)
        finally:
            ours.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield theirs
    finally:
        theirs.close()
        thread.join(SECONDS)
        back_end.close()
        if failures:
            raise failures[0]
    assert not thread.is_alive()


@contextmanager
def bus_to(back_end: BackEnd, **options: Unpack[BusOptions]) -> Iterator[VhostUserBus]:
    memory = GuestMemory.anonymous(GUEST_SIZE, GUEST_BASE)
    allocator = DmaAllocator(GUEST_BASE, GUEST_SIZE)
    with (
        played(back_end) as sock,
        VhostUserBus(FrontEnd(sock, timeout=SECONDS), memory, allocator, **options) as bus,
    ):
        yield bus


def kicked(back_end: BackEnd, index: int) -> int:
    """What the kick descriptor of a ring counts."""
    return os.eventfd_read(back_end.kicks[index])
