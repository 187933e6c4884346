"""REQUEST SENSE and TEST UNIT READY (SPC-6)."""

from vscsi_emu.scsi.cdb import OBSOLETE_LUN, Allowed, Field, Flag, bit, command
from vscsi_emu.scsi.lun import REPORT_LUNS_WLUN
from vscsi_emu.scsi.port_groups import AccessState
from vscsi_emu.scsi.request import Request
from vscsi_emu.scsi.sense import Asc, ScsiError, SenseKey


@command(
    "TEST UNIT READY",
    0x00,
    6,
    flags=Flag.NEEDS_READY | Flag.WELL_KNOWN,
    allowed=Allowed.PERSISTENT,
    lun=OBSOLETE_LUN,
)
def test_unit_ready(request: Request) -> bytes:
    return b""


@command(
    "REQUEST SENSE",
    0x03,
    6,
    flags=Flag.SKIPS_ATTENTION | Flag.ANY_LUN | Flag.WELL_KNOWN | Flag.ANY_ACCESS_STATE,
    allowed=Allowed.ALWAYS,
    lun=OBSOLETE_LUN,
    desc=bit(1, 0),
    allocation_length=Field(4),
)
def request_sense(request: Request) -> bytes:
    """Sense data as parameter data. A unit attention reported so is pending no more."""
    return _state(request).sense(descriptor=bool(request.cdb["desc"]))


def _state(request: Request) -> ScsiError:
    nexus = request.target.find(request.lun)
    # INQUIRY says of either that no device is there (SPC-4 6.39).
    if nexus is None or nexus.access_state is AccessState.UNAVAILABLE:
        if request.lun != REPORT_LUNS_WLUN:
            return ScsiError(SenseKey.ILLEGAL_REQUEST, Asc.LOGICAL_UNIT_NOT_SUPPORTED)
    elif (
        (error := request.target.take(nexus)) is not None
        or (error := nexus.unit.unready) is not None
        or (error := nexus.unit.self_tests.in_progress) is not None
    ):
        return error
    elif (condition := nexus.unit.readiness.low_power) is not None:
        return ScsiError(SenseKey.NO_SENSE, condition)
    return ScsiError(SenseKey.NO_SENSE, Asc.NO_ADDITIONAL_SENSE)
