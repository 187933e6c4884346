"""What T10 defines (SAM-6, SPC-6, SBC-5): logical units, nexuses, commands. Knows no transport."""

from vscsi_emu.scsi.cdb import Feature, Route
from vscsi_emu.scsi.dispatch import handle
from vscsi_emu.scsi.identity import Identity
from vscsi_emu.scsi.limits import Limits
from vscsi_emu.scsi.lun import MAX_LUN, REPORT_LUNS_WLUN, decode_lun, encode_lun
from vscsi_emu.scsi.nexus import Nexus
from vscsi_emu.scsi.request import Command
from vscsi_emu.scsi.sense import Asc, DataOutTooShort, ScsiError, SenseKey
from vscsi_emu.scsi.status import Status
from vscsi_emu.scsi.table import route_table
from vscsi_emu.scsi.target import Target
from vscsi_emu.scsi.unit import LogicalUnit

__all__ = [
    "MAX_LUN",
    "REPORT_LUNS_WLUN",
    "Asc",
    "Command",
    "DataOutTooShort",
    "Feature",
    "Identity",
    "Limits",
    "LogicalUnit",
    "Nexus",
    "Route",
    "ScsiError",
    "SenseKey",
    "Status",
    "Target",
    "decode_lun",
    "encode_lun",
    "handle",
    "route_table",
]
