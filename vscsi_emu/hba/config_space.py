"""The configuration space of an HBA (virtio 1.4, 5.6.4)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from threading import Lock
from typing import TYPE_CHECKING, Final

from vscsi_emu.virtio.config import ScsiConfig
from vscsi_emu.virtio.scsi import MAX_LUN, MAX_TARGET

if TYPE_CHECKING:
    from vscsi_emu._dataplane import Port
    from vscsi_emu.scsi.limits import QueueLimits
    from vscsi_emu.virtio.config import ByteOrder

DEFAULTS: Final = ScsiConfig()
MAX_SECTORS: Final = 0xFFFF
"""`max_sectors` where no unit has a limit, in 512 bytes."""
_SECTOR: Final = 512


class ConfigSpace:
    """What a driver reads there and writes, from any thread, and what workers obey of it."""

    def __init__(
        self,
        port: Port,
        queues: int,
        *,
        max_sectors: int | None,
        seg_max: int,
        cmd_per_lun: int,
    ) -> None:
        self._port = port
        self._max_sectors, self._seg_max, self._cmd_per_lun = max_sectors, seg_max, cmd_per_lun
        self._now = ScsiConfig(num_queues=queues, max_target=MAX_TARGET, max_lun=MAX_LUN)
        self._lock = Lock()
        """Held to replace it: the driver's stores may come from a guest CPU's thread."""

    @property
    def now(self) -> ScsiConfig:
        return self._now

    def read(self, offset: int, length: int, order: ByteOrder) -> bytes:
        """Fewer bytes where `length` reaches past the end."""
        return self._now.pack(order)[offset : offset + length]

    def write(self, offset: int, data: bytes, order: ByteOrder) -> None:
        """Raises `ValueError` for a read-only field or an unusable size."""
        with self._lock:
            self._set(self._now.written(offset, data, order))

    def reset(self) -> None:
        with self._lock:
            self._set(self._now.after_reset())

    def _set(self, config: ScsiConfig) -> None:
        self._now = config
        self._port.cdb_size = config.cdb_size
        self._port.sense_size = config.sense_size

    def limit(self, limits: Iterable[QueueLimits]) -> None:
        """No more than each of all units takes, from now on."""
        units = list(limits)
        sectors = [unit.max_bytes // _SECTOR for unit in units if unit.max_bytes]
        if self._max_sectors is not None:
            sectors.append(self._max_sectors)
        segments = [unit.max_segments for unit in units if unit.max_segments]
        commands = [unit.commands for unit in units if unit.commands]
        with self._lock:
            self._now = replace(
                self._now,
                max_sectors=min(sectors, default=MAX_SECTORS),
                seg_max=min([self._seg_max, *segments]),
                cmd_per_lun=min([self._cmd_per_lun, *commands]),
            )


def lowered(before: ScsiConfig, after: ScsiConfig) -> bool:
    """Whether a driver that knows `before` asks for too much."""
    return (
        after.max_sectors < before.max_sectors
        or after.seg_max < before.seg_max
        or after.cmd_per_lun < before.cmd_per_lun
    )
