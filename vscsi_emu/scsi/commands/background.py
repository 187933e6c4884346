"""BACKGROUND CONTROL (SBC-4 5.2, 4.31)."""

from typing import Final

from vscsi_emu.scsi.cdb import Field, command
from vscsi_emu.scsi.request import Request

_RESERVED: Final = 0b11
_BO_TIME: Final = Field(3, ignored=True)
"""How long an operation may take; none ever begins."""


@command(
    "BACKGROUND CONTROL",
    0x9E,
    16,
    service_action=0x15,
    bo_ctl=Field(2, high=7, low=6),
    bo_time=_BO_TIME,
)
def background_control(request: Request) -> bytes:
    """The medium needs no advanced background operations: to start them is to be done with them,
    and to stop them while there are none is no error."""
    if request.cdb["bo_ctl"] == _RESERVED:
        raise request.cdb.invalid("bo_ctl")
    return b""
