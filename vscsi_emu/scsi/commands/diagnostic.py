"""SEND DIAGNOSTIC (SPC-6 6.42): the default self-test, no diagnostic pages."""

from collections.abc import Awaitable

from vscsi_emu.scsi.cdb import bit, command
from vscsi_emu.scsi.request import Request
from vscsi_emu.scsi.sense import Asc, ScsiError, SenseKey
from vscsi_emu.scsi.unit import LogicalUnit


@command("SEND DIAGNOSTIC", 0x1D, 6, self_test=bit(1, 2))
def send_diagnostic(request: Request) -> bytes | Awaitable[bytes]:
    """SELFTEST: the storage below us takes what was written; without it there is nothing to do."""
    return _self_test(request.unit) if request.cdb["self_test"] else b""


async def _self_test(unit: LogicalUnit) -> bytes:
    try:
        await unit.flush()
    except ScsiError as error:
        raise ScsiError(SenseKey.HARDWARE_ERROR, Asc.LOGICAL_UNIT_FAILED_SELF_TEST) from error
    return b""
