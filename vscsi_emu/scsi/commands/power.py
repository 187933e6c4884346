"""START STOP UNIT (SBC-4 5.31), PREVENT ALLOW MEDIUM REMOVAL (SPC-6)."""

from collections.abc import Awaitable, Mapping
from types import MappingProxyType
from typing import Final

from vscsi_emu.scsi.cdb import OBSOLETE_LUN, Allowed, Cdb, Feature, Field, bit, command
from vscsi_emu.scsi.readiness import PowerCondition
from vscsi_emu.scsi.request import Request
from vscsi_emu.scsi.sense import invalid_field_in_cdb

_START_VALID: Final = 0x0
_LU_CONTROL: Final = 0x7
_CONDITIONS: Final[Mapping[int, tuple[PowerCondition, ...]]] = MappingProxyType(
    {
        0x1: (PowerCondition.ACTIVE,),
        0x2: (PowerCondition.IDLE_A, PowerCondition.IDLE_B, PowerCondition.IDLE_C),
        0x3: (PowerCondition.STANDBY_Z, PowerCondition.STANDBY_Y),
    }
)
"""By POWER CONDITION, then by POWER CONDITION MODIFIER."""
_FLUSHES: Final = frozenset(
    {PowerCondition.STANDBY_Y, PowerCondition.STANDBY_Z, PowerCondition.STOPPED}
)
"""What a cache is written back before, unless NO_FLUSH."""


def _starts(cdb: Cdb) -> Allowed:
    starts = cdb["start"] and cdb["power_condition"] == _START_VALID
    return Allowed.ALWAYS if starts else Allowed.NONE


def _allows(cdb: Cdb) -> Allowed:
    return Allowed.NONE if cdb["prevent"] else Allowed.ALWAYS


@command(
    "START STOP UNIT",
    0x1B,
    6,
    allowed=_starts,
    lun=OBSOLETE_LUN,
    immed=bit(1, 0),
    power_condition_modifier=Field(3, high=3),
    power_condition=Field(4, high=7, low=4),
    no_flush=bit(4, 2),
    loej=bit(4, 1, needs=Feature.REMOVABLE),
    start=bit(4, 0),
)
def start_stop_unit(request: Request) -> bytes | Awaitable[bytes]:
    """Stopping, standby and ejecting wait for running commands, then flush unless NO_FLUSH."""
    if not _enter(request):
        return b""
    if request.cdb["no_flush"]:
        return b""
    if request.cdb["immed"]:
        request.reply.good()
    return _settled(request)


def _enter(request: Request) -> bool:
    """Does what is asked; whether that calls for a flush. Ends a background self-test (SPC-4
    5.15.4.3)."""
    cdb, unit = request.cdb, request.unit
    unit.self_tests.abort()
    if cdb["power_condition"] != _START_VALID:
        # START and LOEJ then say nothing. LU_CONTROL starts timers, of which there are none.
        if cdb["power_condition"] == _LU_CONTROL:
            return False
        condition = _condition(request)
    elif cdb["power_condition_modifier"]:
        raise invalid_field_in_cdb(3, 3)
    elif request.unit.removable and cdb["loej"]:
        if cdb["start"]:
            unit.load(by=request.nexus)
            return False
        unit.eject()
        return True
    else:
        condition = PowerCondition.ACTIVE if cdb["start"] else PowerCondition.STOPPED
    unit.enter(condition)
    return condition in _FLUSHES


def _condition(request: Request) -> PowerCondition:
    conditions = _CONDITIONS.get(request.cdb["power_condition"])
    if conditions is None:
        raise invalid_field_in_cdb(4, 7)
    modifier = request.cdb["power_condition_modifier"]
    if modifier >= len(conditions):
        raise invalid_field_in_cdb(3, 3)
    return conditions[modifier]


async def _settled(request: Request) -> bytes:
    await request.unit.settle(by=request.nexus)
    return b""


@command("PREVENT ALLOW MEDIUM REMOVAL", 0x1E, 6, allowed=_allows, prevent=Field(4, high=1))
def prevent_allow_medium_removal(request: Request) -> bytes:
    """Each nexus prevents removal for itself. Nothing is removed from a fixed medium anyway."""
    if request.cdb["prevent"] > 1:
        # 10b and 11b are obsolete, once for the medium changer that is attached.
        raise invalid_field_in_cdb(4, 1)
    request.nexus.prevents_removal = bool(request.cdb["prevent"])
    return b""
