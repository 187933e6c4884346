"""INQUIRY (SPC-6): standard data here, vital product data in `vpd`."""

import struct
from typing import Final

from vscsi_emu.scsi.cdb import OBSOLETE_LUN, Allowed, Field, Flag, bit, command
from vscsi_emu.scsi.lun import REPORT_LUNS_WLUN
from vscsi_emu.scsi.peripheral import Peripheral
from vscsi_emu.scsi.port_groups import AccessState
from vscsi_emu.scsi.request import Request
from vscsi_emu.scsi.sense import invalid_field_in_cdb
from vscsi_emu.scsi.vpd import PageContext, vpd_page

_TARGET_NAMES: Final = (b"VSCSIEMU", b"Target".ljust(16), b"0001")
"""Vendor, product and revision where no logical unit has its own."""

_RMB: Final = 0x80
_SPC_4: Final = 6
_NORMACA: Final = 0x20
_HISUP: Final = 0x10
_RESPONSE_DATA_FORMAT: Final = 2
_TPGS: Final = 0x30
"""Asymmetric access is managed both implicitly and explicitly."""
_3PC: Final = 0x08
_MULTIP: Final = 0x10
_CMDQUE: Final = 0x02
_VERSION_DESCRIPTORS: Final[tuple[int, ...]] = (
    0x00A0,  # SAM-5
    0x0460,  # SPC-4
)
_SBC_3: Final = 0x04C0
_SIZE: Final = 96
_LAYOUT: Final = struct.Struct(">8B8s16s4s22x8H22x")
assert _LAYOUT.size == _SIZE


@command(
    "INQUIRY",
    0x12,
    6,
    flags=Flag.SKIPS_ATTENTION | Flag.ANY_LUN | Flag.WELL_KNOWN | Flag.ANY_ACCESS_STATE,
    allowed=Allowed.ALWAYS,
    lun=OBSOLETE_LUN,
    evpd=bit(1, 0),
    page_code=Field(2),
    allocation_length=Field(3, 2),
)
def inquiry(request: Request) -> bytes:
    """Standard INQUIRY data, or the VPD page asked for."""
    peripheral = _peripheral(request)
    if request.cdb["evpd"]:
        nexus = request.target.find(request.lun)
        context = PageContext(peripheral, nexus.unit if nexus else None, request.target)
        page = vpd_page(request.cdb["page_code"], context)
        if page is None:
            raise invalid_field_in_cdb(2, 7)
        return page
    if request.cdb["page_code"]:
        raise invalid_field_in_cdb(2, 7)
    return _standard(request, peripheral)


def _peripheral(request: Request) -> Peripheral:
    if (nexus := request.target.find(request.lun)) is not None:
        # SPC-4 5.16.2.4.5.
        unavailable = nexus.access_state is AccessState.UNAVAILABLE
        return Peripheral.UNAVAILABLE if unavailable else nexus.unit.peripheral
    return Peripheral.WELL_KNOWN if request.lun == REPORT_LUNS_WLUN else Peripheral.ABSENT


def _standard(request: Request, peripheral: Peripheral) -> bytes:
    nexus = request.target.find(request.lun)
    names, versions = _TARGET_NAMES, _VERSION_DESCRIPTORS
    rmb = normaca = ports = multip = 0
    if nexus is None or nexus.unit.peripheral is Peripheral.DIRECT_ACCESS:
        versions += (_SBC_3,)
    if nexus is not None:
        ports = _TPGS | _3PC if nexus.unit.peripheral is Peripheral.DIRECT_ACCESS else 0
        rmb = _RMB if nexus.unit.removable else 0
        normaca = _NORMACA
        multip = _MULTIP if nexus.unit.multiport else 0
        identity = nexus.unit.identity
        names = (identity.vendor_field, identity.product_field, identity.revision_field)
    descriptors = (*versions, *(0,) * (8 - len(versions)))
    return _LAYOUT.pack(
        peripheral,
        rmb,
        _SPC_4,
        normaca | _HISUP | _RESPONSE_DATA_FORMAT,
        _SIZE - 5,
        ports,
        multip,
        _CMDQUE,
        *names,
        *descriptors,
    )
