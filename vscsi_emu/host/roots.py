"""Where the kernel shows itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final


@dataclass(frozen=True, slots=True)
class Roots:
    """Mount points of sysfs, of the device nodes and of procfs."""

    sysfs: Path = Path("/sys")
    dev: Path = Path("/dev")
    proc: Path = Path("/proc")


THIS_MACHINE: Final = Roots()
