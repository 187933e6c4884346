"""A device of the host as the unit itself asks it."""

from __future__ import annotations

import asyncio
from typing import Final, NamedTuple

from vscsi_emu import _dataplane
from vscsi_emu.scsi.sense import SenseKey
from vscsi_emu.scsi.status import Status

_ATTEMPTS: Final = 8
"""Several unit attentions may be pending, one for each thing that happened."""
_FIXED: Final = (0x70, 0x71)


class Answer(NamedTuple):
    """How the device ended a command."""

    response: int
    """VIRTIO_SCSI_S_*."""
    status: int
    sense: bytes
    data: bytes

    @property
    def good(self) -> bool:
        return self.response == 0 and self.status == Status.GOOD

    @property
    def key(self) -> int | None:
        """The sense key of CHECK CONDITION."""
        if self.response or self.status != Status.CHECK_CONDITION or len(self.sense) < 3:
            return None
        fixed = self.sense[0] & 0x7F in _FIXED
        return self.sense[2 if fixed else 1] & 0x0F


async def ask(device: _dataplane.Passthrough, cdb: bytes, data_in_length: int) -> Answer:
    """As the device answers; for a guest."""
    work = asyncio.to_thread(device.execute, cdb, data_in_length=data_in_length)
    return Answer(*await work)


def probe(device: _dataplane.Passthrough, cdb: bytes, data_in_length: int) -> Answer:
    """Blocks. Unit attentions are taken out of the way: there is no guest yet to have them."""
    answer = Answer(*device.execute(cdb, data_in_length=data_in_length))
    for _ in range(_ATTEMPTS):
        if answer.key != SenseKey.UNIT_ATTENTION:
            break
        answer = Answer(*device.execute(cdb, data_in_length=data_in_length))
    return answer
