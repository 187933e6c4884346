"""Our driver as the front end of a vhost-user socket, whoever serves it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from vscsi_emu._dataplane import GuestMemory
from vscsi_emu.driver.dma import DmaAllocator
from vscsi_emu.driver.front_end import FrontEnd
from vscsi_emu.driver.host import ScsiHost
from vscsi_emu.driver.vhost_user import VhostUserBus
from vscsi_emu.driver.virtio_scsi import Options, VirtioScsi

_GUEST_BASE: Final = 0x4000_0000
GUEST_SIZE: Final = 32 << 20


@contextmanager
def attach(
    socket: str | os.PathLike[str], options: Options | None = None, *, memory: int = GUEST_SIZE
) -> Iterator[ScsiHost]:
    """A probed device, its units not scanned yet. `memory`: the guest's, in bytes."""
    ram = GuestMemory.anonymous(memory, _GUEST_BASE)
    heap = DmaAllocator(_GUEST_BASE, memory)
    with VhostUserBus(FrontEnd.connect(socket), ram, heap) as bus:
        yield ScsiHost(VirtioScsi(bus, options))
