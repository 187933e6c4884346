"""Whether a logical unit gets at its medium: power condition and loaded medium (SBC-4 4.20)."""

from __future__ import annotations

import enum
from types import MappingProxyType
from typing import Final

from vscsi_emu.scsi.sense import Asc


class PowerCondition(enum.Enum):
    """SPC-6, power conditions; there are no timers, so only START STOP UNIT changes it."""

    ACTIVE = enum.auto()
    IDLE_A = enum.auto()
    IDLE_B = enum.auto()
    IDLE_C = enum.auto()
    STANDBY_Y = enum.auto()
    STANDBY_Z = enum.auto()
    STOPPED = enum.auto()


_LOW_POWER: Final = MappingProxyType(
    {
        PowerCondition.IDLE_A: Asc.IDLE_CONDITION_ACTIVATED_BY_COMMAND,
        PowerCondition.IDLE_B: Asc.IDLE_B_CONDITION_ACTIVATED_BY_COMMAND,
        PowerCondition.IDLE_C: Asc.IDLE_C_CONDITION_ACTIVATED_BY_COMMAND,
        PowerCondition.STANDBY_Y: Asc.STANDBY_Y_CONDITION_ACTIVATED_BY_COMMAND,
        PowerCondition.STANDBY_Z: Asc.STANDBY_CONDITION_ACTIVATED_BY_COMMAND,
    }
)


_MAX_COUNT: Final = 0xFFFF_FFFF


class Readiness:
    """State that a reset takes back to active, with the medium as it is."""

    def __init__(self) -> None:
        self.power = PowerCondition.ACTIVE
        self.loaded = True
        self.starts = 0
        """How often it was started after a stop."""
        self.loads = 0
        """How often a medium was loaded."""

    def reset(self) -> None:
        self.enter(PowerCondition.ACTIVE)

    def enter(self, condition: PowerCondition) -> None:
        if self.power is PowerCondition.STOPPED and condition is not PowerCondition.STOPPED:
            self.starts = min(self.starts + 1, _MAX_COUNT)
        self.power = condition

    def eject(self) -> None:
        self.loaded = False

    def load(self) -> bool:
        """Whether there was no medium before."""
        if self.loaded:
            return False
        self.loaded = True
        self.loads = min(self.loads + 1, _MAX_COUNT)
        return True

    @property
    def fast(self) -> bool:
        """Whether media commands need no look at this state."""
        return self.loaded and self.power is PowerCondition.ACTIVE

    @property
    def not_ready(self) -> Asc | None:
        """Why TEST UNIT READY ends with NOT READY; None: it does not."""
        if not self.loaded:
            return Asc.MEDIUM_NOT_PRESENT
        if self.power is PowerCondition.STOPPED:
            return Asc.INITIALIZING_COMMAND_REQUIRED
        return None

    @property
    def low_power(self) -> Asc | None:
        """What REQUEST SENSE says of an idle or standby condition (SPC-6, power conditions)."""
        return _LOW_POWER.get(self.power)

    def wake(self) -> bool:
        """A command needs the medium: idle and standby end. Whether they did."""
        if self.power not in _LOW_POWER:
            return False
        self.power = PowerCondition.ACTIVE
        return True
