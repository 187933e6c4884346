"""What guests are told of the limits of the devices behind an HBA."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from vscsi_emu.host import block_limits
from vscsi_emu.host.devices import SECTOR, ScsiDevice
from vscsi_emu.host.limits import QueueLimits
from vscsi_emu.virtio.config import ScsiConfig


def config(limits: Iterable[QueueLimits], base: ScsiConfig | None = None) -> ScsiConfig:
    """The configuration space of an HBA: no limit in `base` raised, each lowered to the least of
    all its logical units'."""
    least = base or ScsiConfig()
    for unit in limits:
        least = replace(
            least,
            max_sectors=min(least.max_sectors, unit.max_sectors.value),
            seg_max=min(least.seg_max, unit.seg_max.value),
            cmd_per_lun=max(1, min(least.cmd_per_lun, unit.cmd_per_lun.value)),
        )
    return least


def block_limits_page(device: ScsiDevice, limits: QueueLimits) -> bytes | None:
    """The device's own limits as its Block Limits VPD page; None for a device without blocks."""
    if not device.has_blocks or not limits.block_size:
        return None
    blocks = max(1, limits.max_sectors.value * SECTOR // limits.block_size)
    return block_limits.for_guest(limits.block_limits, device.type, min(blocks, 0xFFFF_FFFF))


def qemu_device(space: ScsiConfig) -> str:
    """QEMU's option, as it tells guests its own properties and never asks for `space`. It has
    none for seg_max, which is always 126."""
    return (
        "-device vhost-user-scsi-pci,chardev=hba,"
        f"max_sectors={space.max_sectors},cmd_per_lun={space.cmd_per_lun}"
    )
