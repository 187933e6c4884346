"""struct virtio_scsi_config, the device configuration space (virtio 1.4, 5.6.4)."""

from __future__ import annotations

import struct
from dataclasses import astuple, dataclass, replace
from typing import Final, Literal, Self

ByteOrder = Literal["<", ">"]
"""As `struct` says it: little-endian, or the byte order of a legacy big-endian guest."""

_LAYOUT: Final = "IIIIIIIHHI"
SIZE: Final = struct.calcsize("<" + _LAYOUT)
FIELDS: Final = tuple(
    (struct.calcsize("<" + _LAYOUT[:i]), struct.calcsize("<" + kind))
    for i, kind in enumerate(_LAYOUT)
)
"""(offset, size) of each field, in bytes: where registers hold the structure, a driver accesses
each at its width."""

DEFAULT_SENSE_SIZE: Final = 96
DEFAULT_CDB_SIZE: Final = 32

MIN_CDB_SIZE: Final = 16
"""A smaller field could not hold the 16-byte CDBs that large disks need."""
MAX_CDB_SIZE: Final = 260
"""The longest CDB there is: a variable-length one with 252 additional bytes (SPC-6)."""
MIN_SENSE_SIZE: Final = 18
"""Fixed format sense data whole (SPC-6); a smaller field could hide the ASC."""
MAX_SENSE_SIZE: Final = 252
"""The most sense data there is (SPC-6)."""

_SENSE_SIZE_OFFSET: Final = 20
_CDB_SIZE_OFFSET: Final = 24
_WRITABLE: Final = range(_SENSE_SIZE_OFFSET, _CDB_SIZE_OFFSET + 4)


@dataclass(frozen=True, slots=True)
class ScsiConfig:
    """The configuration space; its fields in the order of the struct. Sizes in bytes, except
    `max_sectors`: units of 512 bytes."""

    num_queues: int = 1
    seg_max: int = 126
    max_sectors: int = 0xFFFF
    cmd_per_lun: int = 128
    event_info_size: int = 16
    sense_size: int = DEFAULT_SENSE_SIZE
    cdb_size: int = DEFAULT_CDB_SIZE
    max_channel: int = 0
    max_target: int = 255
    max_lun: int = 16383

    def pack(self, order: ByteOrder = "<") -> bytes:
        return struct.pack(order + _LAYOUT, *astuple(self))

    @classmethod
    def unpack(cls, data: bytes, order: ByteOrder = "<") -> Self:
        """Raises `ValueError` for fewer bytes than the struct has; more are ignored."""
        if len(data) < SIZE:
            raise ValueError(f"virtio_scsi_config has {SIZE} bytes, not {len(data)}")
        return cls(*struct.unpack_from(order + _LAYOUT, data))

    def written(self, offset: int, data: bytes, order: ByteOrder = "<") -> Self:
        """The configuration after a driver's write of `data` at `offset`.

        A driver writes `sense_size` and `cdb_size` only (5.6.4.1); the rest of a write that
        repeats what is there is taken, as front ends may write the whole space back. Raises
        `ValueError` for a change of a read-only field, an offset outside or an unusable size.
        """
        if not 0 <= offset <= offset + len(data) <= SIZE:
            raise ValueError(
                f"bytes {offset} to {offset + len(data)} lie outside the {SIZE} bytes of config"
            )
        old = self.pack(order)
        new = old[:offset] + data + old[offset + len(data) :]
        for position, (was, becomes) in enumerate(zip(old, new, strict=True)):
            if was != becomes and position not in _WRITABLE:
                raise ValueError(
                    f"config byte {position} is read-only; only sense_size and cdb_size are not"
                )
        config = self.unpack(new, order)
        _check("sense_size", config.sense_size, MIN_SENSE_SIZE, MAX_SENSE_SIZE)
        _check("cdb_size", config.cdb_size, MIN_CDB_SIZE, MAX_CDB_SIZE)
        return config

    def after_reset(self) -> Self:
        """What a device reset leaves: the default sizes (5.6.4.2)."""
        return replace(self, sense_size=DEFAULT_SENSE_SIZE, cdb_size=DEFAULT_CDB_SIZE)


def _check(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name} {value} is not within {low} to {high}")
