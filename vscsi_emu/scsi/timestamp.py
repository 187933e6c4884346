"""The timestamp of a logical unit: milliseconds, running (SPC-4 5.2)."""

from __future__ import annotations

import enum
import time
from typing import Final

MAX: Final = (1 << 48) - 1


class Origin(enum.IntEnum):
    """TIMESTAMP ORIGIN: who initialized it."""

    SET_TIMESTAMP = 0b010
    OTHER = 0b011
    """The clock of this machine, as TCMOS of the Control Extension mode page says."""


class Timestamp:
    """Of one unit; milliseconds since 1970 UTC until somebody sets it. Resets leave it alone."""

    def __init__(self) -> None:
        self.origin = Origin.OTHER
        self._offset = time.time_ns() // 1_000_000 - _elapsed()

    def now(self) -> int:
        """48 bits."""
        return (self._offset + _elapsed()) & MAX

    def set(self, milliseconds: int) -> None:
        self.origin = Origin.SET_TIMESTAMP
        self._offset = milliseconds - _elapsed()


def _elapsed() -> int:
    """Not the time of day: that may be set back."""
    return time.monotonic_ns() // 1_000_000
