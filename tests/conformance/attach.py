"""A guest with memory of its own, attached to a server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypedDict, Unpack

from vscsi_emu._dataplane import GuestMemory
from vscsi_emu.driver.dma import DmaAllocator
from vscsi_emu.driver.front_end import FrontEnd
from vscsi_emu.driver.vhost_user import Notify, VhostUserBus
from vscsi_emu.driver.virtio_scsi import Options, VirtioScsi
from vscsi_emu.virtio.vhost_user import ProtocolFeature

GUEST_BASE = 0x4000_0000
GUEST_SIZE = 32 << 20


class Listening(Protocol):
    """A server, as far as a guest sees it."""

    @property
    def socket(self) -> Path: ...


@dataclass(frozen=True, slots=True)
class Guest:
    device: VirtioScsi
    bus: VhostUserBus
    memory: GuestMemory

    @property
    def front_end(self) -> FrontEnd:
        return self.bus.front_end


class BusOptions(TypedDict, total=False):
    """Keyword arguments of `VhostUserBus`."""

    pieces: int
    protocol_features: ProtocolFeature
    kick: Notify
    call: Notify
    enable: bool


def connect(
    server: Listening, *, size: int = GUEST_SIZE, **options: Unpack[BusOptions]
) -> VhostUserBus:
    """A connection with its memory table, and no driver on it yet."""
    memory = GuestMemory.anonymous(size, GUEST_BASE)
    allocator = DmaAllocator(GUEST_BASE, size)
    return VhostUserBus(FrontEnd.connect(server.socket), memory, allocator, **options)


@contextmanager
def attach(
    server: Listening,
    options: Options | None = None,
    *,
    size: int = GUEST_SIZE,
    **bus_options: Unpack[BusOptions],
) -> Iterator[Guest]:
    """A probed device; the connection is closed at the end."""
    with connect(server, size=size, **bus_options) as bus:
        yield Guest(VirtioScsi(bus, options), bus, bus.memory)
