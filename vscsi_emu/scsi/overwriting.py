"""SANITIZE and FORMAT UNIT under way, and what a failed one leaves (SBC-4 4.11, 4.33)."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from vscsi_emu import _dataplane
from vscsi_emu.scsi.sense import Asc, ScsiError, SenseKey


@dataclass(frozen=True, slots=True)
class Failure:
    """The medium holds neither the old nor the new data; commands on it end with `error`.

    `restricted`: only a SANITIZE that succeeds ends that (the failed one was without AUSE).
    """

    code: Asc
    restricted: bool = False

    @property
    def error(self) -> ScsiError:
        return ScsiError(SenseKey.MEDIUM_ERROR, self.code)


@dataclass(frozen=True, slots=True)
class Overwriting:
    """`in_progress`: what other commands get meanwhile."""

    work: _dataplane.Overwrite
    in_progress: Asc
    failure: Failure

    @property
    def error(self) -> ScsiError:
        return ScsiError(SenseKey.NOT_READY, self.in_progress, progress=self.work.progress)

    async def run(self) -> None:
        """Until all is on stable storage; `OSError` where that fails."""
        try:
            await asyncio.to_thread(self.work.run)
        except asyncio.CancelledError:
            self.work.cancel()
            raise
