"""From a command to its answer: table, unit attention, CDB check, reservations, handler.

SAM-6; SPC-6, persistent reservations.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Coroutine, Iterator
from contextlib import contextmanager

from vscsi_emu.scsi.bad_blocks import written_blocks
from vscsi_emu.scsi.cdb import CommandType, Flag, Route
from vscsi_emu.scsi.lun import REPORT_LUNS_WLUN
from vscsi_emu.scsi.nexus import Nexus
from vscsi_emu.scsi.persistent import ReservationConflict
from vscsi_emu.scsi.request import Command, Reply, Request
from vscsi_emu.scsi.sense import Asc, DataOutTooShort, ScsiError, SenseKey
from vscsi_emu.scsi.table import absent_table, well_known_table
from vscsi_emu.scsi.target import Target
from vscsi_emu.scsi.task_set import AcaActive
from vscsi_emu.scsi.unit import LogicalUnit

log = logging.getLogger(__name__)


def handle(command: Command, target: Target, lun: int | None) -> Coroutine[None, None, None] | None:
    """Answers a command, or hands a media command back to the data plane.

    `lun`: 0 to 16383, `REPORT_LUNS_WLUN`, or None for one that cannot be decoded. A command that
    must wait comes back as a coroutine: run it, and the command is answered when it ends.
    Raises, or the coroutine does, `DataOutTooShort` only: the answer is then the transport's.
    """
    nexus = target.find(lun)
    reply = Reply(command, nexus)
    with _answering(reply):
        found = _find(command.cdb, lun, nexus)
        if nexus is not None and Flag.SKIPS_ATTENTION not in found.flags:
            if (settled := nexus.settled()) is not None:
                return _handle_later(settled, command, target, lun)
            attention = target.take(nexus)
            if attention is not None:
                raise attention
        cdb = found.parse(command.cdb)
        if nexus is not None:
            nexus.unit.reservations.check(nexus, found.allowed_for(cdb))
            if (refusal := nexus.refusal(found.flags)) is not None:
                raise refusal
            if found.handler is None:
                nexus.unit.wake()
        if found.handler is None:
            if nexus is not None and nexus.unit.bad_blocks and found.route is Route.WRITE:
                return _execute_later(reply, nexus.unit, written_blocks(cdb, nexus.unit.blocks))
            reply.execute()
            return None
        request = Request(command, target, lun, cdb, reply)
        answer = found.handler(request)
        if not isinstance(answer, bytes):
            return _answer_later(request, answer)
        if not reply.given:
            reply.good(request.limit(answer))
    return None


async def _handle_later(
    settled: Awaitable[None], command: Command, target: Target, lun: int | None
) -> None:
    await settled
    if (answer := handle(command, target, lun)) is not None:
        await answer


async def _answer_later(request: Request, answer: Awaitable[bytes]) -> None:
    with _answering(request.reply):
        data = await answer
        if not request.reply.given:
            request.reply.good(request.limit(data))


async def _execute_later(reply: Reply, unit: LogicalUnit, written: tuple[int, int]) -> None:
    with _answering(reply):
        await unit.bad_blocks.forget(*written)
        reply.execute()


def _find(cdb: bytes, lun: int | None, nexus: Nexus | None) -> CommandType:
    if nexus is not None:
        return nexus.unit.commands.find(cdb)
    if lun == REPORT_LUNS_WLUN:
        return well_known_table().find(cdb)
    try:
        return absent_table().find(cdb)
    except ScsiError:
        raise ScsiError(SenseKey.ILLEGAL_REQUEST, Asc.LOGICAL_UNIT_NOT_SUPPORTED) from None


@contextmanager
def _answering(reply: Reply) -> Iterator[None]:
    """No command stays without an answer, whatever happens inside."""
    try:
        yield
    except DataOutTooShort:
        raise
    except ReservationConflict:
        reply.conflict()
    except AcaActive:
        reply.aca_active()
    except ScsiError as error:
        _refuse(reply, error)
        # Its traceback has the frame that has it: a unit that was removed would keep its storage
        # until some garbage collection.
        error.__traceback__ = None
    except Exception:
        log.exception("internal error in a SCSI command")
        _refuse(reply, ScsiError(SenseKey.HARDWARE_ERROR, Asc.INTERNAL_TARGET_FAILURE))


def _refuse(reply: Reply, error: ScsiError) -> None:
    if not reply.given:
        reply.check_condition(error)
    elif reply.nexus is not None:
        # IMMED: GOOD is out already.
        reply.nexus.defer(error)
