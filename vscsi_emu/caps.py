"""Limits that are told lower than they are: of an HBA, or of one unit.

Each is a field of the configuration space (virtio 1.4, 5.6.4).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from vscsi_emu.scsi.limits import QueueLimits
from vscsi_emu.virtio.config import ScsiConfig

if TYPE_CHECKING:
    from vscsi_emu.backends import Backend, LunSpec

FIELDS: Final = ("max_sectors", "seg_max", "cmd_per_lun")
_DEFAULTS: Final = ScsiConfig()
SECTOR: Final = 512
"""Bytes that `max_sectors` counts in."""


class CapError(ValueError):
    """A limit that cannot be that low, or that high. `field` is which."""

    def __init__(self, field: str, text: str) -> None:
        super().__init__(f"{option(field)} {text}")
        self.field = field


def option(field: str) -> str:
    """As configurations write it."""
    return field.replace("_", "-")


def check(field: str, cap: int, backends: Iterable[Backend]) -> None:
    """Raises `CapError` for more than all of `backends` take, or less than a block of one."""
    figures = [(int(getattr(_DEFAULTS, field)), "the most that is offered")]
    for backend in backends:
        if (limit := backend.limit(field)) is not None:
            figures.append(limit)
        if field == "max_sectors" and cap * SECTOR < backend.block_size:
            raise CapError(field, f"{cap} is less than a block of {backend.block_size} bytes")
    most, source = min(figures)
    if cap > most:
        raise CapError(field, f"{cap} is above {most}, {source}; it can only be lowered")


def check_unit(spec: LunSpec, backend: Backend) -> None:
    """The same of a unit's own."""
    for field in FIELDS:
        if (cap := getattr(spec, field)) is not None:
            check(field, cap, [backend])


def of_unit(spec: LunSpec) -> QueueLimits:
    """What a unit is lowered to."""
    return QueueLimits(
        max_bytes=(spec.max_sectors or 0) * SECTOR,
        max_segments=spec.seg_max or 0,
        commands=spec.cmd_per_lun or 0,
    )
