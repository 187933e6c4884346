"""The vrings of one session: their configuration and life cycle ("Ring states")."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from vscsi_emu import _dataplane
from vscsi_emu.transport.vhost_user.errors import RefusedError, WireError
from vscsi_emu.virtio.features import Feature
from vscsi_emu.virtio.scsi import Response

if TYPE_CHECKING:
    from vscsi_emu._dataplane import Call, GuestMemory, Notifier, Queue
    from vscsi_emu.hba import Hba
    from vscsi_emu.virtio.vhost_user import VringAddr

log = logging.getLogger(__name__)

MAX_SIZE: Final = 1024
"""Largest split ring served, in entries."""


class Vring:
    """One ring. Stopped and disabled at first; it keeps its configuration while stopped."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.size = 0
        self.base = 0
        self.addresses: VringAddr | None = None
        self.enabled = False
        self.call_set = False
        """SET_VRING_CALL was received; without it calls go in-band, if that was negotiated."""
        self.call_fd = -1
        self.error: Call | None = None
        """What SET_VRING_ERR wants signalled."""
        self.queue: Queue | None = None

    @property
    def started(self) -> bool:
        return self.queue is not None

    def set_call_fd(self, fd: int) -> None:
        """Takes over `fd`; -1: the front end polls."""
        _close(self.call_fd)
        self.call_fd, self.call_set = fd, True


class Rings:
    """All rings of a session. Owns the queues that it starts on the HBA."""

    def __init__(self, hba: Hba, memory: GuestMemory, name: str) -> None:
        self._hba = hba
        self._memory = memory
        self._name = name
        self._rings = [Vring(index) for index in range(hba.queue_count)]
        self.guest_addresses = False
        """GPA_ADDRESSES was negotiated: ring addresses are guest-physical."""
        self.inband_token: int | None = None
        """Of the back-end channel, once in-band notifications were negotiated and it is there."""

    def __iter__(self) -> Iterator[Vring]:
        return iter(self._rings)

    def __getitem__(self, index: int) -> Vring:
        if index >= len(self._rings):
            raise WireError(f"ring {index}: there are {len(self._rings)}")
        return self._rings[index]

    @property
    def any_started(self) -> bool:
        return any(ring.started for ring in self._rings)

    # ── Configuration ──────────────────────────────────────────────────────────────────────────

    async def set_size(self, index: int, size: int) -> None:
        if not 1 <= size <= MAX_SIZE or size & (size - 1):
            raise WireError(f"ring {index}: size {size} is not a power of two up to {MAX_SIZE}")
        ring = self[index]
        if size != ring.size:
            await self._pause(ring)
            ring.size = size

    async def set_addresses(self, addresses: VringAddr) -> None:
        ring = self[addresses.index]
        if addresses != ring.addresses:
            await self._pause(ring)
            ring.addresses = addresses

    async def set_base(self, index: int, base: int) -> None:
        if base > 0xFFFF:
            raise WireError(f"ring {index}: base {base:#x} is above 0xffff")
        ring = self[index]
        await self._pause(ring)
        ring.base = base

    def enable(self, index: int, enabled: bool) -> None:
        """Remembered while the ring is stopped."""
        ring = self[index]
        ring.enabled = enabled
        if ring.queue:
            ring.queue.set_enabled(enabled)

    def enable_all(self) -> None:
        for ring in self._rings:
            self.enable(ring.index, True)

    def set_call(self, index: int, fd: int) -> None:
        """Takes over `fd`; -1: the front end polls."""
        ring = self[index]
        ring.set_call_fd(fd)
        if ring.queue:
            ring.queue.set_notifier(self._notifier(ring))

    # ── Life cycle ─────────────────────────────────────────────────────────────────────────────

    def set_kick(self, index: int, fd: int) -> None:
        """Starts a stopped ring; a running one gets the new descriptor. -1: none, so poll unless
        kicks come in-band."""
        ring = self[index]
        poll = fd < 0 and self.inband_token is None
        try:
            if ring.queue:
                ring.queue.set_kick_fd(fd, poll=poll)
            else:
                self._start(ring, fd, poll=poll)
        except ValueError as error:
            raise RefusedError(f"ring {index}: {error}") from None

    def kick(self, index: int) -> None:
        """An in-band kick, which starts a stopped ring."""
        ring = self[index]
        if ring.queue is None:
            self._start(ring, -1)
        assert ring.queue is not None
        ring.queue.kick()

    async def stop(self, index: int) -> int:
        """Drains the ring; the index of the next request. It may be started again."""
        ring = self[index]
        await self._pause(ring)
        return ring.base

    async def stop_all(self, *, abort: Response | None = None) -> None:
        """Drains all rings; with `abort`, commands that have not begun end with that."""
        await asyncio.gather(*(self._pause(ring, abort=abort) for ring in self._rings))

    async def discard_all(self) -> None:
        """The driver is gone: nothing is written to its rings any more."""
        await asyncio.gather(*(self._drop(ring) for ring in self._rings))

    def broken(self, queue: Queue, text: str) -> Vring | None:
        """Tells the driver through the err descriptor, if there is one. The ring, for the caller
        to tell otherwise, if there is none."""
        ring = next((ring for ring in self._rings if ring.queue == queue), None)
        if ring is None:
            return None
        log.warning("%s: ring %d is broken and was stopped: %s", self._name, ring.index, text)
        if ring.error is None:
            return ring
        ring.error.signal()
        return None

    def close(self) -> None:
        for ring in self._rings:
            _close(ring.call_fd)

    def _start(self, ring: Vring, kick_fd: int, *, poll: bool = False) -> None:
        if not ring.size or ring.addresses is None:
            missing = "size" if not ring.size else "addresses"
            raise WireError(f"ring {ring.index} is started before its {missing} are set")
        address, size = ring.addresses, ring.size
        try:
            ring.queue = self._hba.start_queue(
                ring.index,
                self._memory,
                size=size,
                desc=self._to_guest(address.descriptor, 16 * size),
                driver=self._to_guest(address.available, 4 + 2 * size),
                device=self._to_guest(address.used, 4 + 8 * size),
                next_avail=ring.base,
                enabled=ring.enabled,
                notifier=self._notifier(ring),
                kick_fd=kick_fd,
                poll=poll,
            )
        except _dataplane.DataplaneError as error:
            raise RefusedError(f"ring {ring.index} cannot start: {error}") from None

    def _notifier(self, ring: Vring) -> Notifier:
        if ring.call_fd >= 0:
            return _dataplane.Notifier.fd(ring.call_fd)
        if not ring.call_set and self.inband_token is not None:
            return _dataplane.Notifier.inband(self.inband_token)
        return _dataplane.Notifier.none()

    def _to_guest(self, address: int, length: int) -> int:
        if self.guest_addresses or Feature.ACCESS_PLATFORM in self._hba.features:
            return address
        return self._memory.user_to_guest(address, length)

    async def _pause(self, ring: Vring, *, abort: Response | None = None) -> None:
        if queue := ring.queue:
            ring.base = await self._hba.stop_queue(queue, abort=abort)
            ring.queue = None

    async def _drop(self, ring: Vring) -> None:
        if queue := ring.queue:
            ring.queue = None
            await self._hba.discard_queue(queue)


def _close(fd: int) -> None:
    if fd >= 0:
        os.close(fd)
