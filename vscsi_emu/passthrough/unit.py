"""The logical unit that is a device of the host."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Final

from vscsi_emu import _dataplane
from vscsi_emu.passthrough.capacity import Capacity
from vscsi_emu.passthrough.device import ask
from vscsi_emu.passthrough.table import PassthroughTable
from vscsi_emu.scsi.identity import Identity
from vscsi_emu.scsi.limits import Limits, QueueLimits
from vscsi_emu.scsi.passing import Level
from vscsi_emu.scsi.sense import Asc
from vscsi_emu.scsi.unit import LogicalUnit

ABORT_SECONDS: Final = 5.0
"""The host has no call to abort one command: it ends by itself, or with a reset."""


class PassthroughUnit(LogicalUnit):
    """Modes, reservations and all else that a unit remembers are the device's; what is left here
    are the nexuses, their unit attentions and their gates."""

    abort_seconds = ABORT_SECONDS

    def __init__(
        self,
        device: _dataplane.Passthrough,
        limits: _dataplane.PassthroughLimits,
        *,
        device_type: int,
        level: Level,
        capacity: Capacity,
        max_segments: int,
        commands: int,
        identity: Identity,
        quiesce: Callable[[_dataplane.Lu], Awaitable[None]],
    ) -> None:
        """`identity` is what we call it: INQUIRY says what the device says. `commands`: in
        flight."""
        self.device: Final = device
        self.device_type = device_type
        self.capacity = capacity
        self._limits = limits
        self._max_segments, self._depth = max_segments, commands
        has_blocks = capacity.block_size > 0
        self.table: Final = PassthroughTable(
            device_type,
            level,
            partial(ask, device),
            most_bytes=self._most_bytes,
            most_blocks=self._most_blocks if has_blocks else None,
        )
        super().__init__(
            _dataplane.Engine.passthrough(device),
            identity,
            read_only=level is Level.READONLY,
            limits=Limits(max_transfer_blocks=limits.most // capacity.block_size)
            if has_blocks
            else None,
            commands=self.table,
            quiesce=quiesce,
        )

    async def interrupt(self) -> None:
        """Resets the device. Never more than that: its neighbours are not this guest's."""
        await asyncio.to_thread(self.device.reset, _dataplane.RESET_DEVICE)

    def resized(self, capacity: Capacity) -> None:
        """The device has another capacity now."""
        self.capacity = capacity
        self.device.set_capacity(*capacity)
        self.establish(Asc.CAPACITY_DATA_HAS_CHANGED)

    def limited(
        self, limits: _dataplane.PassthroughLimits, *, max_segments: int, commands: int
    ) -> None:
        """The host has other limits now, and so has the Block Limits page."""
        self._limits, self._max_segments, self._depth = limits, max_segments, commands
        self.establish(Asc.INQUIRY_DATA_HAS_CHANGED)

    @property
    def own_limits(self) -> QueueLimits:
        return QueueLimits(
            max_bytes=self._limits.most,
            max_segments=self._max_segments,
            commands=self._depth,
        )

    def _most_bytes(self) -> int:
        return self._limits.most

    def _most_blocks(self) -> int:
        return self.queue_limits.max_bytes // self.capacity.block_size

    @property
    def block_limits(self) -> Limits:
        if not self.capacity.block_size:
            return self.limits
        return replace(self.limits, max_transfer_blocks=self._most_blocks())
