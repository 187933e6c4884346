"""SECURITY PROTOCOL IN (SPC-4 6.40, 7.7.1): the list of protocols, which has but itself."""

import struct
from typing import Final

from vscsi_emu.scsi.cdb import Allowed, Field, bit, command
from vscsi_emu.scsi.request import Request

_INFORMATION: Final = 0x00
_PROTOCOLS: Final = bytes([_INFORMATION])
_SUPPORTED_PROTOCOLS: Final = struct.pack(">6xH", len(_PROTOCOLS)) + _PROTOCOLS
_NO_CERTIFICATE: Final = struct.pack(">2xH", 0)
_PAGES: Final = (_SUPPORTED_PROTOCOLS, _NO_CERTIFICATE)
"""By SECURITY PROTOCOL SPECIFIC."""
_INCREMENT: Final = 512


@command(
    "SECURITY PROTOCOL IN",
    0xA2,
    12,
    allowed=Allowed.WRITE_EXCLUSIVE,
    security_protocol=Field(1),
    security_protocol_specific=Field(2, 2),
    inc_512=bit(4, 7),
    data_in_length=Field(6, 4),
)
def security_protocol_in(request: Request) -> bytes:
    cdb = request.cdb
    # ALLOCATION LENGTH, in another unit than that of all other commands.
    length = cdb["data_in_length"] * (_INCREMENT if cdb["inc_512"] else 1)
    page = cdb["security_protocol_specific"]
    if cdb["security_protocol"] != _INFORMATION:
        raise cdb.invalid("security_protocol")
    if page >= len(_PAGES):
        raise cdb.invalid("security_protocol_specific")
    return _PAGES[page][:length]
