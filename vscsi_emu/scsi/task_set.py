"""Who is aborted with whom, and how the others learn of it (SAM-6, TST 000b).

The order of commands, and ACA conditions, are the data plane's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable
from typing import TYPE_CHECKING

from vscsi_emu.scsi.mode_pages import Qerr
from vscsi_emu.scsi.sense import Asc
from vscsi_emu.scsi.status import Status

if TYPE_CHECKING:
    from vscsi_emu.scsi.nexus import Nexus
    from vscsi_emu.scsi.unit import LogicalUnit


class AcaActive(Exception):
    """The ACA condition of another nexus excludes the command: status ACA ACTIVE."""


def abort_others(nexuses: Iterable[Nexus], *, until: int | None = None) -> Awaitable[None]:
    """Aborts what nexuses have in a task set on account of another one. Begins at once.

    Where TAS is set their commands end with TASK ABORTED. Otherwise each nexus that lost any gets
    a unit attention condition. `until`: as for `scsi.nexus.Abort`.
    """
    return _gather([_abort_other(nexus, until) for nexus in nexuses])


def _abort_other(nexus: Nexus, until: int | None) -> Awaitable[None]:
    tas = nexus.unit.mode_pages.task_aborted_status
    aborted = nexus.abort(status=Status.TASK_ABORTED if tas else None, until=until)
    informed = asyncio.ensure_future(_inform(nexus, aborted, attention=not tas))
    nexus.settle_after(informed)
    return informed


async def _inform(nexus: Nexus, aborted: Awaitable[int], *, attention: bool) -> None:
    if await aborted and attention:
        nexus.establish(Asc.COMMANDS_CLEARED_BY_ANOTHER_INITIATOR)


async def _gather(work: Iterable[Awaitable[object]]) -> None:
    await asyncio.gather(*work)


def clear(unit: LogicalUnit, by: Nexus, *, until: int | None = None) -> Awaitable[None]:
    """Aborts all commands of a unit on account of one nexus. Begins at once."""
    others = [nexus for nexus in unit.nexuses if nexus is not by]
    with unit.data_plane.hold():
        return _gather([by.abort(until=until), abort_others(others, until=until)])


def check_condition(nexus: Nexus, until: int) -> Awaitable[None]:
    """What QERR says when a command of `nexus` ends so (SPC-6, Control mode page)."""
    match nexus.unit.mode_pages.qerr:
        case Qerr.ABORTS_ALL:
            return clear(nexus.unit, nexus, until=until)
        case Qerr.ABORTS_OWN:
            return _gather([nexus.abort(until=until)])
        case Qerr.NOTHING:
            return _gather([])
