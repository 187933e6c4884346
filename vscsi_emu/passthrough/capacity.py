"""How many blocks a device has (SBC-5 READ CAPACITY, MMC-6)."""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from vscsi_emu import _dataplane
from vscsi_emu.passthrough.device import Answer, probe

_SHORT: Final = struct.Struct(">II")
_LONG: Final = struct.Struct(">QI")
_LONG_BYTES: Final = 32
_SHORT_CDB: Final = struct.pack(">B9x", 0x25)
_LONG_CDB: Final = struct.pack(">BB8xIxx", 0x9E, 0x10, _LONG_BYTES)


class Capacity(NamedTuple):
    block_size: int
    """Bytes; 0 where there is no medium, or none of blocks."""
    blocks: int


NONE: Final = Capacity(0, 0)


def read_capacity(device: _dataplane.Passthrough) -> Capacity:
    """Blocks; before there are guests only, whose unit attentions it would take."""
    answer = probe(device, _SHORT_CDB, _SHORT.size)
    found = _unpacked(_SHORT, answer)
    if found.blocks > 0xFFFF_FFFF:
        found = _unpacked(_LONG, probe(device, _LONG_CDB, _LONG_BYTES))
    return found


def _unpacked(layout: struct.Struct, answer: Answer) -> Capacity:
    if not answer.good or len(answer.data) < layout.size:
        return NONE
    last, block_size = layout.unpack_from(answer.data)
    return Capacity(block_size, last + 1)
