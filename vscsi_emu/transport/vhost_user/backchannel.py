"""What the back end asks of the front end, over the descriptor of SET_BACKEND_REQ_FD."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable

from vscsi_emu.transport.vhost_user.channel import Channel
from vscsi_emu.virtio import vhost_user as vu

log = logging.getLogger(__name__)


class Backchannel:
    """Sends one request at a time; with REPLY_ACK, the next goes after the acknowledgement.

    A request that is still waiting is not queued twice, so what waits is bounded by the number
    of rings however slow the front end is.
    """

    def __init__(self, connection: socket.socket, *, acknowledged: bool, name: str) -> None:
        self._channel = Channel(connection)
        self._acknowledged = acknowledged
        self._name = name
        self._waiting: dict[tuple[vu.MessageType, vu.Payload], list[Callable[[], None]]] = {}
        """With whom to tell if the front end fails the request."""
        self._wake = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._run())

    def config_changed(self) -> None:
        self._post(vu.BACKEND_CONFIG_CHANGE_MSG, vu.Empty())

    def vring_call(self, index: int) -> None:
        self._post(vu.BACKEND_VRING_CALL, vu.VringState(index, 0))

    def vring_err(self, index: int) -> None:
        self._post(vu.BACKEND_VRING_ERR, vu.VringState(index, 0))

    def iotlb_miss(self, iova: int, access: int, refused: Callable[[], None]) -> None:
        """`refused` is called if the front end says that it has no such mapping."""
        payload = vu.IotlbMessage(iova, 0, 0, access, vu.IotlbType.MISS)
        self._post(vu.BACKEND_IOTLB_MSG, payload, refused)

    def iotlb_access_failure(self, iova: int, access: int) -> None:
        payload = vu.IotlbMessage(iova, 0, 0, access, vu.IotlbType.ACCESS_FAIL)
        self._post(vu.BACKEND_IOTLB_MSG, payload)

    def _post(
        self, message: vu.MessageType, payload: vu.Payload, *failed: Callable[[], None]
    ) -> None:
        self._waiting.setdefault((message, payload), []).extend(failed)
        self._wake.set()

    async def _run(self) -> None:
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._waiting:
                    message, payload = next(iter(self._waiting))
                    failed = self._waiting.pop((message, payload))
                    if not await self._request(message, payload):
                        log.warning("%s: the front end failed %s", self._name, message)
                        for tell in failed:
                            tell()
        except (ConnectionError, vu.WireError) as error:
            log.warning("%s: back-end channel lost: %s", self._name, error)
            self._channel.close()

    async def _request(self, message: vu.MessageType, payload: vu.Payload) -> bool:
        """Whether the front end did it, as far as it says."""
        await self._channel.send(message.encode(payload, need_reply=self._acknowledged))
        if not self._acknowledged:
            return True
        packet = await self._channel.receive()
        if packet is None:
            raise ConnectionError("the front end closed it")
        try:
            answer = message.decode_reply(packet)
        finally:
            packet.close()
        return answer == vu.U64(0)

    async def close(self) -> None:
        self._task.cancel()
        # Not by suppressing CancelledError: that could be our own, of a server that is told to end.
        await asyncio.gather(self._task, return_exceptions=True)
        # Not in the task, which may never have begun.
        self._channel.close()
