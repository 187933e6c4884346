"""SEND DIAGNOSTIC (SPC-6): the default self-test, no diagnostic pages."""

from collections.abc import Awaitable
from typing import Final

from vscsi_emu.scsi.cdb import Field, bit, command
from vscsi_emu.scsi.request import Request
from vscsi_emu.scsi.sense import Asc, ScsiError, SenseKey
from vscsi_emu.scsi.unit import LogicalUnit

_PF: Final = Field(1, high=4, low=4, ignored=True)
"""The format of diagnostic pages, none of which can follow."""
_OFFLINE: Final = Field(1, high=1, low=0, ignored=True)
"""SCSI_DEVOFFL and UNITOFFL allow a self-test what this one does not do."""


@command("SEND DIAGNOSTIC", 0x1D, 6, pf=_PF, self_test=bit(1, 2), offline=_OFFLINE)
def send_diagnostic(request: Request) -> bytes | Awaitable[bytes]:
    """SELFTEST: the storage below us takes what was written; without it there is nothing to do."""
    return _self_test(request.unit) if request.cdb["self_test"] else b""


async def _self_test(unit: LogicalUnit) -> bytes:
    try:
        await unit.flush()
    except ScsiError as error:
        raise ScsiError(SenseKey.HARDWARE_ERROR, Asc.LOGICAL_UNIT_FAILED_SELF_TEST) from error
    return b""
