"""A copy operation under way, and how it is aborted (SPC-4 5.17.4.6, 5.17.4.7)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from vscsi_emu import _dataplane
from vscsi_emu.scsi.sense import Asc, ScsiError, SenseKey


class CopyRun:
    """From the beginning of an operation to `end`; it may be several pieces of work."""

    def __init__(self) -> None:
        self.aborted = False
        self._work: _dataplane.Copy | None = None
        self._over = asyncio.Event()

    @contextmanager
    def working(self, work: _dataplane.Copy) -> Iterator[None]:
        """While `work` is done. `ScsiError` COPY ABORTED if it is, or was, aborted."""
        if self.aborted:
            raise _cleared()
        self._work = work
        try:
            yield
        except ScsiError as error:
            if self.aborted:
                raise _cleared() from error
            raise
        finally:
            self._work = None

    def abort(self) -> None:
        """Begins to; `over` says when nothing is transferred any more."""
        self.aborted = True
        if self._work is not None:
            self._work.cancel()

    def end(self) -> None:
        self._over.set()

    async def over(self) -> None:
        await self._over.wait()


def _cleared() -> ScsiError:
    return ScsiError(SenseKey.COPY_ABORTED, Asc.COMMANDS_CLEARED_BY_DEVICE_SERVER)
