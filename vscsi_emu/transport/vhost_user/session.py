"""One front end's connection, from its first message to its last."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from vscsi_emu import _dataplane
from vscsi_emu.hba import FeatureError
from vscsi_emu.transport.vhost_user.backchannel import Backchannel
from vscsi_emu.transport.vhost_user.channel import Channel
from vscsi_emu.transport.vhost_user.errors import RefusedError, WireError
from vscsi_emu.transport.vhost_user.iotlb import Iotlb
from vscsi_emu.transport.vhost_user.rings import Rings
from vscsi_emu.virtio import vhost_user as vu
from vscsi_emu.virtio.features import Feature, Status
from vscsi_emu.virtio.scsi import Response
from vscsi_emu.virtio.vhost_user import ProtocolFeature

if TYPE_CHECKING:
    from vscsi_emu._dataplane import Queue
    from vscsi_emu.hba import Hba

log = logging.getLogger(__name__)

PROTOCOL_FEATURES: Final = (
    ProtocolFeature.MQ
    | ProtocolFeature.REPLY_ACK
    | ProtocolFeature.BACKEND_REQ
    | ProtocolFeature.CONFIG
    | ProtocolFeature.RESET_DEVICE
    | ProtocolFeature.CONFIGURE_MEM_SLOTS
    | ProtocolFeature.STATUS
    | ProtocolFeature.GPA_ADDRESSES
)
MAX_MEM_SLOTS: Final = 512
"""Regions that ADD_MEM_REG may build up: more than any machine's DIMM slots."""

CONFIG_WRITE: Final = 0
CONFIG_MIGRATION: Final = 1


class Session:
    """The state machine of one connection."""

    def __init__(
        self,
        connection: socket.socket,
        hba: Hba,
        *,
        name: str,
        in_band: bool = False,
        access_platform: bool = False,
    ) -> None:
        """`name` begins this session's log lines. `in_band`: offer in-band notifications.
        `access_platform`: offer ACCESS_PLATFORM, to a front end that has an IOMMU."""
        self._channel = Channel(connection)
        self._hba = hba
        self._name = name
        self._memory = _dataplane.GuestMemory()
        self._rings = Rings(hba, self._memory, name)
        self._iotlb = Iotlb(self._memory, hba.runtime, name)
        self._access_platform = access_platform
        self._offered = PROTOCOL_FEATURES
        if in_band:
            self._offered |= ProtocolFeature.INBAND_NOTIFICATIONS
        self._protocol = ProtocolFeature(0)
        self._backchannel: Backchannel | None = None
        self._config_changed = False
        self._status = Status(0)

    async def run(self) -> None:
        """Serves until the front end closes, breaks the protocol, or this task is cancelled.

        Then the rings are drained and every descriptor is closed. Never raises for what the
        front end did: one log line says why a session ended early.
        """
        self._hba.connect(self, self._iotlb if self._access_platform else None)
        gone = False
        messages = 0
        try:
            while packet := await self._channel.receive():
                messages += 1
                try:
                    await self._serve(packet)
                finally:
                    packet.close()
                # A front end that sends without a pause must not keep the loop to itself.
                await asyncio.sleep(0)
            gone = True
        except (WireError, RefusedError) as error:
            log.error("%s: session ended: %s", self._name, error)
        except ConnectionError as error:
            gone = True
            log.info("%s: front end gone: %s", self._name, error)
        finally:
            await self._close(gone)
        if messages:
            log.info("%s: front end disconnected", self._name)

    async def _close(self, gone: bool) -> None:
        # A driver that is still there sees its commands complete; a dead one's rings are left be.
        await (self._rings.discard_all() if gone else self._rings.stop_all())
        self._rings.close()
        if self._rings.inband_token is not None:
            self._hba.runtime.remove_inband(self._rings.inband_token)
        if self._backchannel:
            await self._backchannel.close()
        self._channel.close()
        await self._hba.disconnect(self)

    # ── What the HBA tells the front end (hba.Link) ────────────────────────────────────────────

    def config_changed(self) -> None:
        """BACKEND_CONFIG_CHANGE_MSG; with all rings stopped it waits for one to start."""
        self._config_changed = True
        self._tell_config_change()

    def _tell_config_change(self) -> None:
        if not self._config_changed or not self._rings.any_started:
            return
        if self._backchannel and ProtocolFeature.CONFIG in self._protocol:
            self._config_changed = False
            self._backchannel.config_changed()

    def queue_broken(self, queue: Queue, text: str) -> None:
        ring = self._rings.broken(queue, text)
        self._status |= Status.NEEDS_RESET
        inband = ProtocolFeature.INBAND_NOTIFICATIONS in self._protocol
        if ring and inband and self._backchannel:
            self._backchannel.vring_err(ring.index)

    # ── Messages ───────────────────────────────────────────────────────────────────────────────

    async def _serve(self, packet: vu.Packet) -> None:
        if packet.is_reply:
            raise WireError(f"request {packet.request} has the reply flag set")
        message = vu.FRONTEND.get(packet.request)
        handler = _HANDLERS.get(packet.request)
        if message is None or handler is None:
            name = vu.REFUSED.get(packet.request, f"request {packet.request}")
            await self._refuse(packet, f"{name} is not supported")
            return
        self._require(message)
        payload = message.decode(packet)
        log.debug("%s: %s %s", self._name, message, payload)
        try:
            reply = await handler(self, payload, packet)
        except RefusedError as error:
            await self._refuse(packet, f"{message}: {error}", fatal=error.fatal)
            return
        except FeatureError as error:
            raise WireError(f"{message}: {error}") from None
        if reply is not None:
            await self._channel.send(message.encode_reply(reply))
        elif self._wants_ack(packet):
            await self._acknowledge(packet, 0)

    def _require(self, message: vu.MessageType) -> None:
        # Some requests may be sent as soon as their feature was offered.
        features = self._offered if message.offer_suffices else self._protocol
        if message.needs not in features:
            raise WireError(f"{message} came without {message.needs.name}")

    def _wants_ack(self, packet: vu.Packet) -> bool:
        return packet.need_reply and ProtocolFeature.REPLY_ACK in self._protocol

    async def _refuse(self, packet: vu.Packet, text: str, *, fatal: bool = True) -> None:
        if self._wants_ack(packet):
            log.warning("%s: %s", self._name, text)
            await self._acknowledge(packet, 1)
        elif fatal:
            raise WireError(text)
        else:
            log.warning("%s: %s", self._name, text)

    async def _acknowledge(self, packet: vu.Packet, value: int) -> None:
        await self._channel.send(vu.encode(packet.request, vu.U64(value).pack(), vu.FLAG_REPLY))

    # Each handler gets the payload and the packet (for its descriptors, closed after it unless
    # taken) and returns the message's own reply, if it has one.

    async def _get_features(self, _payload: vu.Empty, _packet: vu.Packet) -> vu.U64:
        features = self._hba.shown_features
        if self._protocol and ProtocolFeature.BACKEND_REQ not in self._protocol:
            features &= ~Feature.ACCESS_PLATFORM
        return vu.U64(features | vu.F_PROTOCOL_FEATURES)

    async def _set_features(self, payload: vu.U64, _packet: vu.Packet) -> None:
        wanted = payload.value & ~vu.F_PROTOCOL_FEATURES
        if wanted & Feature.ACCESS_PLATFORM and ProtocolFeature.BACKEND_REQ not in self._protocol:
            raise FeatureError("ACCESS_PLATFORM needs BACKEND_REQ, to ask for translations")
        self._hba.set_features(wanted)
        # Another driver may come now; what changed while rings were stopped was not told.
        self._iotlb.flush()
        if not payload.value & vu.F_PROTOCOL_FEATURES:
            self._rings.enable_all()

    async def _get_protocol_features(self, _payload: vu.Empty, _packet: vu.Packet) -> vu.U64:
        return vu.U64(self._offered)

    async def _set_protocol_features(self, payload: vu.U64, _packet: vu.Packet) -> None:
        if unoffered := payload.value & ~int(self._offered):
            raise WireError(f"SET_PROTOCOL_FEATURES: bits {unoffered:#x} were not offered")
        wanted = ProtocolFeature(payload.value)
        for feature, needed in vu.PREREQUISITES.items():
            if feature in wanted and needed not in wanted:
                raise WireError(f"SET_PROTOCOL_FEATURES: {feature.name} needs {needed.name}")
        self._protocol = wanted
        self._rings.guest_addresses = ProtocolFeature.GPA_ADDRESSES in wanted

    async def _set_owner(self, _payload: vu.Empty, _packet: vu.Packet) -> None:
        """The session began when the connection was made."""

    async def _reset_owner(self, _payload: vu.Empty, _packet: vu.Packet) -> None:
        """Deprecated, and ignored as the specification recommends."""

    async def _get_queue_num(self, _payload: vu.Empty, _packet: vu.Packet) -> vu.U64:
        return vu.U64(self._hba.queue_count)

    # Memory

    async def _set_mem_table(self, payload: vu.MemoryTable, packet: vu.Packet) -> None:
        table = [
            (r.guest_address, r.size, r.user_address, r.mmap_offset, fd)
            for r, fd in zip(payload.regions, packet.fds, strict=True)
        ]
        self._change_memory(lambda: self._memory.replace(table))

    async def _get_max_mem_slots(self, _payload: vu.Empty, _packet: vu.Packet) -> vu.U64:
        return vu.U64(MAX_MEM_SLOTS)

    async def _add_mem_reg(self, payload: vu.SingleRegion, packet: vu.Packet) -> None:
        if len(self._memory.regions) >= MAX_MEM_SLOTS:
            raise RefusedError(f"all {MAX_MEM_SLOTS} memory slots are in use")
        r, fd = payload, packet.fds[0]
        region = (r.guest_address, r.size, r.user_address, r.mmap_offset, fd)
        self._change_memory(lambda: self._memory.add(region))

    async def _rem_mem_reg(self, payload: vu.SingleRegion, _packet: vu.Packet) -> None:
        r = payload
        self._change_memory(lambda: self._memory.remove(r.guest_address, r.user_address, r.size))

    @staticmethod
    def _change_memory(change: Callable[[], None]) -> None:
        try:
            change()
        except _dataplane.GuestMemoryError as error:
            raise RefusedError(str(error)) from None

    async def _iotlb_msg(self, payload: vu.IotlbMessage, _packet: vu.Packet) -> vu.U64:
        if Feature.ACCESS_PLATFORM not in self._hba.features:
            log.warning("%s: IOTLB_MSG came without ACCESS_PLATFORM", self._name)
            return vu.U64(1)
        return vu.U64(not await self._iotlb.change(payload))

    # Rings

    async def _set_vring_num(self, payload: vu.VringState, _packet: vu.Packet) -> None:
        await self._rings.set_size(payload.index, payload.num)

    async def _set_vring_addr(self, payload: vu.VringAddr, _packet: vu.Packet) -> None:
        if payload.flags & vu.VRING_F_LOG:
            raise RefusedError(f"ring {payload.index}: logging was not negotiated")
        await self._rings.set_addresses(payload)

    async def _set_vring_base(self, payload: vu.VringState, _packet: vu.Packet) -> None:
        await self._rings.set_base(payload.index, payload.num)

    async def _get_vring_base(self, payload: vu.VringState, _packet: vu.Packet) -> vu.VringState:
        base = await self._rings.stop(payload.index)
        if not self._rings.any_started:
            self._iotlb.flush()
        return vu.VringState(payload.index, base)

    async def _set_vring_kick(self, payload: vu.VringFd, packet: vu.Packet) -> None:
        self._rings.set_kick(payload.index, packet.fds[0] if packet.fds else -1)
        self._tell_config_change()

    async def _set_vring_call(self, payload: vu.VringFd, packet: vu.Packet) -> None:
        ring = self._rings[payload.index]
        fds = packet.take_fds()
        try:
            self._rings.set_call(ring.index, fds[0] if fds else -1)
        except ValueError as error:
            raise RefusedError(f"ring {ring.index}: {error}") from None

    async def _set_vring_err(self, payload: vu.VringFd, packet: vu.Packet) -> None:
        ring = self._rings[payload.index]
        try:
            ring.error = _dataplane.Call(packet.fds[0]) if packet.fds else None
        except ValueError as error:
            raise RefusedError(f"ring {ring.index}: {error}") from None

    async def _set_vring_enable(self, payload: vu.VringState, _packet: vu.Packet) -> None:
        if payload.num not in (0, 1):
            raise WireError(f"SET_VRING_ENABLE: ring {payload.index}: {payload.num} is not 0 or 1")
        self._rings.enable(payload.index, bool(payload.num))

    async def _vring_kick(self, payload: vu.VringState, _packet: vu.Packet) -> None:
        self._rings.kick(payload.index)
        self._tell_config_change()

    async def _set_backend_req_fd(self, _payload: vu.Empty, packet: vu.Packet) -> None:
        try:
            connection = socket.socket(fileno=packet.fds[0])
        except OSError as error:
            raise RefusedError(f"the descriptor is no socket: {error.strerror}") from None
        packet.take_fds()
        if self._backchannel:
            await self._backchannel.close()
        self._backchannel = Backchannel(
            connection,
            acknowledged=ProtocolFeature.REPLY_ACK in self._protocol,
            name=self._name,
        )
        self._iotlb.backchannel = self._backchannel
        inband = ProtocolFeature.INBAND_NOTIFICATIONS in self._protocol
        if inband and self._rings.inband_token is None:
            self._rings.inband_token = self._hba.runtime.add_inband(self._vring_call)

    def _vring_call(self, index: int) -> None:
        if self._backchannel:
            self._backchannel.vring_call(index)

    # The device

    async def _get_config(
        self, payload: vu.ConfigSpace, _packet: vu.Packet
    ) -> vu.ConfigSpace | vu.Empty:
        data = self._hba.show_config(payload.offset, len(payload.data))
        if len(data) < len(payload.data):
            log.warning(
                "%s: GET_CONFIG: %d bytes at %d reach past the end",
                self._name,
                len(payload.data),
                payload.offset,
            )
            return vu.Empty()
        return vu.ConfigSpace(payload.offset, payload.flags, data)

    async def _set_config(self, payload: vu.ConfigSpace, _packet: vu.Packet) -> None:
        if payload.flags not in (CONFIG_WRITE, CONFIG_MIGRATION):
            raise RefusedError(f"flags {payload.flags} are not 0 or 1")
        try:
            self._hba.write_config(payload.offset, payload.data)
        except ValueError as error:
            # A guest's doing, which its front end only passed on.
            raise RefusedError(str(error), fatal=False) from None

    async def _get_status(self, _payload: vu.Empty, _packet: vu.Packet) -> vu.U64:
        return vu.U64(self._status)

    async def _set_status(self, payload: vu.U64, _packet: vu.Packet) -> None:
        if payload.value > 0xFF:
            raise WireError(f"SET_STATUS: {payload.value:#x} does not fit 8 bits")
        wanted = Status(payload.value)
        if not wanted:
            await self._reset()
            return
        if Status.FEATURES_OK in wanted and not self._hba.features_valid:
            wanted &= ~Status.FEATURES_OK
        # Only the device sets NEEDS_RESET, and only a reset clears it.
        self._status = wanted & ~Status.NEEDS_RESET | self._status & Status.NEEDS_RESET

    async def _reset_device(self, _payload: vu.Empty, _packet: vu.Packet) -> None:
        await self._reset()
        for ring in self._rings:
            ring.enabled = False

    async def _reset(self) -> None:
        await self._rings.stop_all(abort=Response.RESET)
        await self._hba.reset()
        self._status = Status(0)


_Handler = Callable[[Session, Any, vu.Packet], Awaitable[vu.Payload | None]]

_SERVED: Final[Mapping[vu.MessageType, _Handler]] = {
    vu.GET_FEATURES: Session._get_features,
    vu.SET_FEATURES: Session._set_features,
    vu.SET_OWNER: Session._set_owner,
    vu.RESET_OWNER: Session._reset_owner,
    vu.SET_MEM_TABLE: Session._set_mem_table,
    vu.IOTLB_MSG: Session._iotlb_msg,
    vu.SET_VRING_NUM: Session._set_vring_num,
    vu.SET_VRING_ADDR: Session._set_vring_addr,
    vu.SET_VRING_BASE: Session._set_vring_base,
    vu.GET_VRING_BASE: Session._get_vring_base,
    vu.SET_VRING_KICK: Session._set_vring_kick,
    vu.SET_VRING_CALL: Session._set_vring_call,
    vu.SET_VRING_ERR: Session._set_vring_err,
    vu.GET_PROTOCOL_FEATURES: Session._get_protocol_features,
    vu.SET_PROTOCOL_FEATURES: Session._set_protocol_features,
    vu.GET_QUEUE_NUM: Session._get_queue_num,
    vu.SET_VRING_ENABLE: Session._set_vring_enable,
    vu.SET_BACKEND_REQ_FD: Session._set_backend_req_fd,
    vu.GET_CONFIG: Session._get_config,
    vu.SET_CONFIG: Session._set_config,
    vu.RESET_DEVICE: Session._reset_device,
    vu.VRING_KICK: Session._vring_kick,
    vu.GET_MAX_MEM_SLOTS: Session._get_max_mem_slots,
    vu.ADD_MEM_REG: Session._add_mem_reg,
    vu.REM_MEM_REG: Session._rem_mem_reg,
    vu.SET_STATUS: Session._set_status,
    vu.GET_STATUS: Session._get_status,
}
"""What this back end serves; the other requests that are declared belong to features that it
does not offer."""

_HANDLERS: Final = MappingProxyType({m.number: handler for m, handler in _SERVED.items()})
