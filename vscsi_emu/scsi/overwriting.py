"""SANITIZE and FORMAT UNIT under way, and what a failed one leaves (SBC-4 4.11, 4.33)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from vscsi_emu import _dataplane
from vscsi_emu.scsi.sense import Asc, ScsiError, SenseKey
from vscsi_emu.scsi.store import SavedStateError


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

    def to_json(self) -> dict[str, Any]:
        return {"code": f"{self.code:04x}", "restricted": self.restricted}

    @staticmethod
    def from_json(value: Any) -> Failure:
        """Raises `SavedStateError`."""
        try:
            code, restricted = Asc(int(value["code"], 16)), value["restricted"]
        except (KeyError, TypeError, ValueError) as error:
            raise SavedStateError(f"a saved failure of the medium is damaged: {error!r}") from None
        if code not in _CODES or not isinstance(restricted, bool):
            raise SavedStateError("a saved failure of the medium is none")
        return Failure(code, restricted)


_CODES: Final = (Asc.SANITIZE_COMMAND_FAILED, Asc.MEDIUM_FORMAT_CORRUPTED)


def _nothing() -> None:
    pass


@dataclass(frozen=True, slots=True)
class Overwriting:
    """`in_progress`: what other commands get meanwhile. `began` is called when it is certain that
    the medium is filled or has failed, whatever happens to this process."""

    work: _dataplane.Overwrite
    in_progress: Asc
    failure: Failure
    began: Callable[[], None] = _nothing

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
