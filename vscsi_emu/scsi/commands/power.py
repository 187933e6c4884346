"""START STOP UNIT (SBC-5 5.31) and PREVENT ALLOW MEDIUM REMOVAL (SPC-6 6.16)."""

from collections.abc import Awaitable
from typing import Final

from vscsi_emu.scsi.cdb import OBSOLETE_LUN, Allowed, Cdb, Feature, Field, bit, command
from vscsi_emu.scsi.power import Power
from vscsi_emu.scsi.request import Request
from vscsi_emu.scsi.sense import invalid_field_in_cdb

_START_VALID: Final = 0x0
_LU_CONTROL: Final = 0x7
_CONDITIONS: Final = {0x1: Power.ACTIVE, 0x2: Power.IDLE, 0x3: Power.STANDBY}


def _allowed(cdb: Cdb) -> Allowed:
    starts = cdb["start"] and cdb["power_condition"] == _START_VALID
    return Allowed.ALWAYS if starts else Allowed.NONE


@command(
    "START STOP UNIT",
    0x1B,
    6,
    allowed=_allowed,
    lun=OBSOLETE_LUN,
    immed=bit(1, 0),
    power_condition_modifier=Field(3, high=3),
    power_condition=Field(4, high=7, low=4),
    no_flush=bit(4, 2),
    loej=bit(4, 1, needs=Feature.REMOVABLE),
    start=bit(4, 0),
)
def start_stop_unit(request: Request) -> bytes | Awaitable[bytes]:
    """Stopping, resting and ejecting wait for running commands, then flush unless NO_FLUSH says
    not to."""
    unit, cdb = request.unit, request.cdb
    no_flush, immed = bool(cdb["no_flush"]), bool(cdb["immed"])
    if cdb["power_condition"] != _START_VALID:
        # START and LOEJ say nothing then.
        power = _condition(cdb)
        if power is None:
            return b""
        unit.set_power(power)
        loaded = power is Power.ACTIVE
    else:
        if cdb["power_condition_modifier"]:
            raise invalid_field_in_cdb(3, 3)
        loaded = bool(cdb["start"])
        if unit.removable and cdb["loej"]:
            unit.move_medium(present=loaded, by=request.nexus)
        if loaded:
            unit.start()
        elif unit.medium_present:
            unit.stop()
    if loaded or no_flush:
        return b""
    if immed:
        request.reply.good()
    return _settled(request)


def _condition(cdb: Cdb) -> Power | None:
    """None: control goes back to the timers of the power condition mode page, of which none is
    enabled."""
    condition = cdb["power_condition"]
    if condition not in _CONDITIONS and condition != _LU_CONTROL:
        raise invalid_field_in_cdb(4, 7)
    if cdb["power_condition_modifier"]:
        raise invalid_field_in_cdb(3, 3)
    return _CONDITIONS.get(condition)


async def _settled(request: Request) -> bytes:
    await request.unit.settle()
    return b""


def _allowed_removal(cdb: Cdb) -> Allowed:
    return Allowed.NONE if cdb["prevent"] else Allowed.ALWAYS


@command(
    "PREVENT ALLOW MEDIUM REMOVAL",
    0x1E,
    6,
    needs=Feature.REMOVABLE,
    allowed=_allowed_removal,
    prevent=Field(4, high=1),
)
def prevent_allow_medium_removal(request: Request) -> bytes:
    """By nexus: the medium is free when no nexus prevents."""
    match request.cdb["prevent"]:
        case 0:
            request.unit.allow_removal(request.nexus)
        case 1:
            request.unit.prevent_removal(request.nexus)
        case _:
            raise invalid_field_in_cdb(4, 1)
    return b""
