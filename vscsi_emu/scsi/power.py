"""Power conditions (SPC-6 5.13, SBC-5 4.20)."""

from collections.abc import Mapping
from enum import Enum, auto
from types import MappingProxyType
from typing import Final

from vscsi_emu.scsi.sense import Asc


class Power(Enum):
    """There are no timers: START STOP UNIT alone changes it, and a media command that wakes."""

    ACTIVE = auto()
    IDLE = auto()
    """idle_a."""
    STANDBY = auto()
    """standby_z."""
    STOPPED = auto()


RESTING: Final[Mapping[Power, Asc]] = MappingProxyType(
    {
        Power.IDLE: Asc.IDLE_CONDITION_ACTIVATED_BY_COMMAND,
        Power.STANDBY: Asc.STANDBY_CONDITION_ACTIVATED_BY_COMMAND,
    }
)
"""Conditions that a media command ends, with what REQUEST SENSE says of them."""
