"""All there is to know before a device is given to a guest."""

from __future__ import annotations

from dataclasses import dataclass

from vscsi_emu.host import guest
from vscsi_emu.host.access import Access, access
from vscsi_emu.host.devices import ScsiDevice
from vscsi_emu.host.limits import QueueLimits, queue_limits
from vscsi_emu.host.use import Use, use
from vscsi_emu.host.way import Way, way
from vscsi_emu.virtio.config import ScsiConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What was found out."""

    device: ScsiDevice
    use: Use
    limits: QueueLimits
    way: Way | None
    access: Access | None
    """To the way's node; None without one."""
    config: ScsiConfig
    """Configuration space of an HBA with this device alone."""
    block_limits: bytes | None
    """Block Limits VPD page that a guest gets, with its header; None for other devices."""

    @property
    def qemu_device(self) -> str:
        return guest.qemu_device(self.config)


def probe(device: ScsiDevice) -> Probe:
    """Looks at `device`. Sends it SCSI commands: see `queue_limits`."""
    limits = queue_limits(device)
    chosen = way(device)
    return Probe(
        device=device,
        use=use(device),
        limits=limits,
        way=chosen,
        access=access(device, chosen.node) if chosen else None,
        config=guest.config([limits]),
        block_limits=guest.block_limits_page(device, limits),
    )
