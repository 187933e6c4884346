"""A guest with memory of its own, attached to a server."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vscsi_emu._dataplane import GuestMemory
from vscsi_emu.driver.dma import DmaAllocator
from vscsi_emu.driver.front_end import FrontEnd
from vscsi_emu.driver.vhost_user import SUPPORTED, Notify, VhostUserBus
from vscsi_emu.driver.virtio_scsi import Options, VirtioScsi
from vscsi_emu.virtio.vhost_user import MemoryRegion, ProtocolFeature

if TYPE_CHECKING:
    from tests.conformance.server import Server

GUEST_BASE = 0x4000_0000
GUEST_SIZE = 32 << 20


@dataclass(frozen=True, slots=True)
class Guest:
    device: VirtioScsi
    bus: VhostUserBus
    memory: GuestMemory

    @property
    def front_end(self) -> FrontEnd:
        return self.bus.front_end


def make_memory(size: int = GUEST_SIZE) -> tuple[GuestMemory, DmaAllocator]:
    return GuestMemory.anonymous(size, GUEST_BASE), DmaAllocator(GUEST_BASE, size)


def connect(
    server: Server,
    *,
    size: int = GUEST_SIZE,
    regions: Sequence[MemoryRegion] | None = None,
    protocol_features: ProtocolFeature = SUPPORTED,
    kick: Notify = Notify.EVENTFD,
    call: Notify = Notify.EVENTFD,
) -> VhostUserBus:
    """A connection with its memory table, and no driver on it yet."""
    memory, allocator = make_memory(size)
    return VhostUserBus(
        FrontEnd.connect(server.socket),
        memory,
        allocator,
        regions=regions,
        protocol_features=protocol_features,
        kick=kick,
        call=call,
    )


@contextmanager
def attach(
    server: Server,
    options: Options | None = None,
    *,
    size: int = GUEST_SIZE,
    regions: Sequence[MemoryRegion] | None = None,
    protocol_features: ProtocolFeature = SUPPORTED,
    kick: Notify = Notify.EVENTFD,
    call: Notify = Notify.EVENTFD,
) -> Iterator[Guest]:
    """A probed device; the connection is closed at the end."""
    bus = connect(
        server,
        size=size,
        regions=regions,
        protocol_features=protocol_features,
        kick=kick,
        call=call,
    )
    with bus:
        yield Guest(VirtioScsi(bus, options), bus, bus.memory)
