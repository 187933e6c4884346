"""START STOP UNIT (SBC-5 5.31). Neither power conditions nor a removable medium are supported."""

from collections.abc import Awaitable

from vscsi_emu.scsi.cdb import OBSOLETE_LUN, Allowed, Cdb, bit, command
from vscsi_emu.scsi.request import Request


def _allowed(cdb: Cdb) -> Allowed:
    return Allowed.ALWAYS if cdb["start"] else Allowed.NONE


@command(
    "START STOP UNIT",
    0x1B,
    6,
    allowed=_allowed,
    lun=OBSOLETE_LUN,
    immed=bit(1, 0),
    no_flush=bit(4, 2),
    start=bit(4, 0),
)
def start_stop_unit(request: Request) -> bytes | Awaitable[bytes]:
    """Stopping waits for running commands, then flushes unless NO_FLUSH says not to."""
    unit, immed = request.unit, bool(request.cdb["immed"])
    no_flush = bool(request.cdb["no_flush"])
    if request.cdb["start"]:
        unit.start()
        return b""
    unit.stop()
    if no_flush:
        return b""
    if immed:
        request.reply.good()
    return _settled(request)


async def _settled(request: Request) -> bytes:
    await request.unit.settle()
    return b""
