"""LOG SENSE (SPC-6): the two pages that list the supported ones, for which PC is ignored."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from vscsi_emu.scsi.cdb import Allowed, Field, command
from vscsi_emu.scsi.mode_pages import ALL_SUBPAGES
from vscsi_emu.scsi.request import Request
from vscsi_emu.scsi.sense import invalid_field_in_cdb

_SPF: Final = 0x40

_PAGES: Final[Mapping[tuple[int, int], bytes]] = MappingProxyType(
    {
        # Supported log pages (SPC-6).
        (0x00, 0x00): bytes([0x00]),
        # Supported log pages and subpages (SPC-6).
        (0x00, ALL_SUBPAGES): bytes([0x00, 0x00, 0x00, ALL_SUBPAGES]),
    }
)


@command(
    "LOG SENSE",
    0x4D,
    10,
    allowed=Allowed.ALWAYS,
    page_control=Field(2, high=7, low=6, ignored=True),
    page_code=Field(2, high=5),
    subpage_code=Field(3),
    allocation_length=Field(7, 2),
)
def log_sense(request: Request) -> bytes:
    page, subpage = request.cdb["page_code"], request.cdb["subpage_code"]
    body = _PAGES.get((page, subpage))
    if body is None:
        raise invalid_field_in_cdb(*((3, 7) if page == 0 else (2, 5)))
    return bytes([(_SPF if subpage else 0) | page, subpage]) + len(body).to_bytes(2) + body
