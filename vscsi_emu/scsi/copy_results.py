"""What RECEIVE COPY RESULTS is asked about: the copies of one I_T_L nexus by LIST IDENTIFIER."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Final

from vscsi_emu.scsi.copy_run import CopyRun
from vscsi_emu.scsi.sense import ScsiError

HOLD_SECONDS: Final = 5.0
"""How long the result of a copy that is over is held, if nobody asks for it."""


@dataclass(slots=True)
class CopyResult:
    """`ended`: seconds of the monotonic clock; None while it runs."""

    segments: int = 0
    transferred: int = 0
    """Bytes."""
    error: ScsiError | None = None
    """Why it failed."""
    ended: float | None = None
    run: CopyRun = field(default_factory=CopyRun)


class CopyResults:
    """Few: a new copy takes the place of an old one with its identifier, of which there are 256."""

    def __init__(self) -> None:
        self._results: dict[int, CopyResult] = {}
        self._failures: dict[int, ScsiError] = {}

    def running(self) -> dict[int, CopyRun]:
        """Those that are not over, by list identifier."""
        return {key: each.run for key, each in self._results.items() if each.ended is None}

    def start(self, list_id: int) -> CopyResult:
        self._failures.pop(list_id, None)
        result = self._results[list_id] = CopyResult()
        return result

    def end(self, list_id: int, *, error: ScsiError | None, hold: bool) -> None:
        result = self._results[list_id]
        result.error, result.ended = error, time.monotonic()
        result.run.end()
        if error is not None:
            self._failures[list_id] = error
        elif not hold:
            del self._results[list_id]

    def take_failure(self, list_id: int) -> ScsiError | None:
        """Why a copy failed, told once. None for one that did not; `KeyError` if nothing is known
        of it, or it still runs."""
        if (error := self._failures.pop(list_id, None)) is not None:
            return error
        if list_id in self.running():
            raise KeyError(list_id)
        return self._results[list_id].error

    def forget(self) -> None:
        """Results of what is over."""
        self._failures.clear()
        self._results = {
            list_id: result for list_id, result in self._results.items() if result.ended is None
        }

    def take(self, list_id: int) -> CopyResult | None:
        """The state of a copy; what is over is told once, and not for long."""
        result = self._results.get(list_id)
        if result is None or result.ended is None:
            return result
        del self._results[list_id]
        return result if time.monotonic() - result.ended < HOLD_SECONDS else None
