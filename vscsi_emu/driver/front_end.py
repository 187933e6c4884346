"""The front end's side of a vhost-user connection: messages out, replies checked, no wait for ever.

Clauses are those of the vhost-user protocol specification.
"""

import os
import select
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from socket import AF_UNIX, SOCK_STREAM, recv_fds, send_fds, socket, socketpair
from typing import Final, Self

from vscsi_emu.virtio import vhost_user as vu
from vscsi_emu.virtio.vhost_user import MessageType, Packet, Payload, ProtocolFeature

RECEIVE_FDS: Final = vu.MAX_FDS


class BackEndError(RuntimeError):
    """The back end broke the protocol or closed the connection; the connection is closed."""


class RequestRefused(RuntimeError):
    """The back end answered a request by failure; the connection goes on."""


class NotNegotiated(RuntimeError):
    """A request whose protocol feature was not negotiated; it was not sent."""


class _Stream:
    """A socket and the message that is arriving on it."""

    def __init__(self, sock: socket) -> None:
        self.sock = sock
        self._assembler = vu.Assembler()

    def receive(self) -> Packet | None:
        """Reads what is there; the message if it is whole now. `EOFError` at the end."""
        data, fds, _, _ = recv_fds(self.sock, self._assembler.wanted, RECEIVE_FDS)
        if not data:
            raise EOFError
        return self._assembler.feed(data, fds)

    def close(self) -> None:
        self._assembler.close()
        self.sock.close()


class FrontEnd:
    """One connection to a back end. `timeout` (seconds) bounds every wait for it."""

    def __init__(self, sock: socket, *, timeout: float = 10.0) -> None:
        self.timeout = timeout
        self.offered_features = ProtocolFeature(0)
        self.protocol_features = ProtocolFeature(0)
        self.config_changes = 0
        self.called: set[int] = set()
        """Rings with in-band calls not yet looked at; `failed`: with in-band errors."""
        self.failed: set[int] = set()
        sock.settimeout(timeout)
        self._main = _Stream(sock)
        self._back_channel: _Stream | None = None

    @classmethod
    def connect(cls, path: str | os.PathLike[str], *, timeout: float = 10.0) -> Self:
        sock = socket(AF_UNIX, SOCK_STREAM)
        try:
            sock.settimeout(timeout)
            sock.connect(os.fspath(path))
        except OSError:
            sock.close()
            raise
        return cls(sock, timeout=timeout)

    @property
    def connection(self) -> socket:
        """The connection; still this object's."""
        return self._main.sock

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._main.close()
        if self._back_channel is not None:
            self._back_channel.close()

    # ── Requests ────────────────────────────────────────────────────────────────────────────────

    def get(self, message: MessageType, payload: Payload | None = None) -> Payload:
        """A request that has a reply of its own."""
        self._send(message, payload)
        return self._reply(message)

    def get_u64(self, message: MessageType) -> int:
        reply = self.get(message)
        assert isinstance(reply, vu.U64)
        return reply.value

    def put(
        self, message: MessageType, payload: Payload | None = None, fds: Sequence[int] = ()
    ) -> None:
        """A request without reply; with REPLY_ACK its success is waited for and checked."""
        acknowledged = ProtocolFeature.REPLY_ACK in self.protocol_features
        self._send(message, payload, fds, need_reply=acknowledged)
        if acknowledged:
            answer = self._reply(message)
            assert isinstance(answer, vu.U64)
            if answer.value:
                raise RequestRefused(f"{message} failed: {answer.value}")

    def put_u64(self, message: MessageType, value: int) -> None:
        self.put(message, vu.U64(value))

    def get_config(self, offset: int, length: int) -> bytes:
        self._send(vu.GET_CONFIG, vu.ConfigSpace(offset, 0, bytes(length)))
        packet = self.receive()
        if packet.request == vu.GET_CONFIG.number and packet.is_reply and not packet.payload:
            raise RequestRefused(f"GET_CONFIG of {length} bytes at {offset} failed")
        reply = self._decode(vu.GET_CONFIG, packet)
        assert isinstance(reply, vu.ConfigSpace)
        if len(reply.data) != length:
            raise self._broken(f"GET_CONFIG gave {len(reply.data)} bytes instead of {length}")
        return reply.data

    def _send(
        self,
        message: MessageType,
        payload: Payload | None,
        fds: Sequence[int] = (),
        *,
        need_reply: bool = False,
    ) -> None:
        """Nothing that the protocol, as negotiated, has no place for: `NotNegotiated`, or
        `WireError` for a wrong number of descriptors."""
        features = self.offered_features if message.offer_suffices else self.protocol_features
        if message.needs not in features:
            raise NotNegotiated(f"{message} needs {message.needs.name}, which was not negotiated")
        payload = vu.Empty() if payload is None else payload
        message.check_fds(payload, len(fds))
        self.send_raw(message.encode(payload, need_reply=need_reply), fds)

    def send_raw(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Bytes as they are, descriptors with the first of them."""
        view = memoryview(data)
        try:
            sent = send_fds(self._main.sock, [view], list(fds))
            if sent < len(data):
                self._main.sock.sendall(view[sent:])
        except ConnectionError as error:
            raise self._broken("the back end closed the connection") from error
        except TimeoutError:
            self.close()  # half a message may be out
            raise TimeoutError(f"the back end takes nothing within {self.timeout} s") from None

    def receive(self) -> Packet:
        """The next message from the back end; its own requests are answered meanwhile."""
        deadline = time.monotonic() + self.timeout
        main = self._main.sock.fileno()
        while True:
            if main not in self.poll([main], deadline - time.monotonic()):
                if time.monotonic() < deadline:
                    continue
                self.close()
                raise TimeoutError(f"no answer from the back end within {self.timeout} s")
            try:
                packet = self._main.receive()
            except EOFError:
                raise self._broken("the back end closed the connection") from None
            except (OSError, vu.WireError) as error:
                raise self._broken(str(error)) from error
            if packet is not None:
                return packet

    def _reply(self, message: MessageType) -> Payload:
        return self._decode(message, self.receive())

    def _decode(self, message: MessageType, packet: Packet) -> Payload:
        packet.close()
        try:
            return message.decode_reply(packet)
        except vu.WireError as error:
            raise self._broken(str(error)) from None

    def _broken(self, text: str) -> BackEndError:
        """Closes on a wrong reply, as "Communication" demands."""
        self.close()
        return BackEndError(text)

    # ── Negotiation ─────────────────────────────────────────────────────────────────────────────

    def negotiate_protocol(self, wanted: ProtocolFeature) -> ProtocolFeature:
        """Takes what of `wanted` is offered, with what it needs; returns it. To be called if
        GET_FEATURES shows bit 30."""
        self.offered_features = ProtocolFeature(self.get_u64(vu.GET_PROTOCOL_FEATURES))
        accepted = self.offered_features & wanted
        for feature, needed in vu.PREREQUISITES.items():
            if needed not in accepted:
                accepted &= ~feature
        self.put_u64(vu.SET_PROTOCOL_FEATURES, accepted)
        self.protocol_features = accepted
        return accepted

    def open_back_channel(self) -> None:
        """SET_BACKEND_REQ_FD. From here on every wait also answers the back end's requests."""
        ours, theirs = socketpair(AF_UNIX, SOCK_STREAM)
        ours.settimeout(self.timeout)
        self._back_channel = _Stream(ours)
        with theirs:
            self.put(vu.SET_BACKEND_REQ_FD, fds=[theirs.fileno()])

    # ── Waiting ─────────────────────────────────────────────────────────────────────────────────

    def poll(self, fds: Collection[int], timeout: float) -> set[int]:
        """Waits up to `timeout` seconds until one of `fds` is readable or the back end has asked
        something, which is answered. Returns the readable ones of `fds`."""
        poller = select.poll()
        for fd in fds:
            poller.register(fd, select.POLLIN)
        if self._back_channel is not None:
            poller.register(self._back_channel.sock, select.POLLIN)
        ready = {fd for fd, _ in poller.poll(max(0.0, timeout) * 1000)}
        if self._back_channel is not None and self._back_channel.sock.fileno() in ready:
            self._serve_back_channel(self._back_channel)
        return ready & set(fds)

    def _serve_back_channel(self, channel: _Stream) -> None:
        try:
            packet = channel.receive()
            if packet is None:
                return
            packet.close()
            message = vu.BACKEND.get(packet.request)
            if message is None or packet.is_reply:
                raise vu.WireError(f"unknown request {packet.request} on the back channel")
            status = self._take(message, message.decode(packet), packet.need_reply)
        except (EOFError, ConnectionError):
            channel.close()
            self._back_channel = None
            return
        except vu.WireError as error:
            raise self._broken(str(error)) from None
        if packet.need_reply:
            with suppress(ConnectionError):  # the back end may be gone by now
                channel.sock.sendall(message.encode_reply(vu.U64(status)))

    def _take(self, message: MessageType, payload: Payload, need_reply: bool) -> int:
        """The status that the back end gets if it wants one: 0, or an error."""
        if message is vu.BACKEND_CONFIG_CHANGE_MSG:
            self.config_changes += 1
        elif isinstance(payload, vu.VringState):
            if payload.num or not need_reply:  # "In-band notifications"
                raise vu.WireError(f"{message}: num {payload.num}, need_reply {need_reply}")
            rings = self.called if message is vu.BACKEND_VRING_CALL else self.failed
            rings.add(payload.index)
        return 0
