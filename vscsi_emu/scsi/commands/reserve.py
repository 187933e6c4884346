"""RESERVE and RELEASE of SPC-2, for hosts that still use them.

Third parties, extents and elements, which SPC-2 leaves optional or obsolete, are not supported.
"""

from typing import Final

from vscsi_emu.scsi.cdb import OBSOLETE_LUN, Allowed, Field, command
from vscsi_emu.scsi.request import Request

_LONG_LIST: Final = Field(7, 2, ignored=True)
"""PARAMETER LIST LENGTH: without LONGID no list is looked at."""


async def _reserve(request: Request) -> bytes:
    await request.unit.reservations.reserve(request.nexus)
    return b""


def _release(request: Request) -> bytes:
    request.unit.reservations.release(request.nexus)
    return b""


# Who conflicts with whom is decided there: the exceptions depend on registrations.
reserve_6 = command("RESERVE(6)", 0x16, 6, allowed=Allowed.ALWAYS, lun=OBSOLETE_LUN)(_reserve)
release_6 = command("RELEASE(6)", 0x17, 6, allowed=Allowed.ALWAYS, lun=OBSOLETE_LUN)(_release)
reserve_10 = command("RESERVE(10)", 0x56, 10, allowed=Allowed.ALWAYS, list_length=_LONG_LIST)(
    _reserve
)
release_10 = command("RELEASE(10)", 0x57, 10, allowed=Allowed.ALWAYS, list_length=_LONG_LIST)(
    _release
)
