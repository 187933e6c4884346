"""The control queue: task management and asynchronous notification (virtio 1.4, 5.6.6.2).

Task management functions are SAM-6 clause 7. A function answers after the commands it hits are
complete: the data plane reports an abort done only then.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Coroutine, Iterable
from typing import TYPE_CHECKING

from vscsi_emu.scsi.task_set import clear
from vscsi_emu.virtio.scsi import (
    FUNCTION_COMPLETE,
    SINGLE_LEVEL,
    AsyncReply,
    AsyncRequest,
    ControlType,
    Response,
    TmfRequest,
    TmfType,
    control_type,
    decode_lun,
)

if TYPE_CHECKING:
    from vscsi_emu.hba.device import Hba
    from vscsi_emu.scsi.nexus import Nexus
    from vscsi_emu.scsi.target import Target
    from vscsi_emu.scsi.unit import LogicalUnit

log = logging.getLogger(__name__)


async def answer(hba: Hba, request: bytes, capacity: int) -> bytes:
    """The reply to a control request; empty where the driver left too little room for one."""
    try:
        reply = await _answer(hba, request)
    except ValueError as error:
        log.warning("control request cut short: %s", error)
        reply = bytes([Response.FAILURE])
    return reply if len(reply) <= capacity else b""


async def _answer(hba: Hba, request: bytes) -> bytes:
    match control_type(request, hba.byte_order):
        case ControlType.TMF:
            tmf = TmfRequest.unpack(request, hba.byte_order)
            return bytes([await _manage(hba, tmf)])
        case ControlType.AN_QUERY | ControlType.AN_SUBSCRIBE:
            return _notify(hba, request)
        case kind:
            log.warning("control request of unknown type %d", kind)
            return bytes([Response.FAILURE])


# ── Asynchronous notification ──────────────────────────────────────────────────────────────────


def _notify(hba: Hba, request: bytes) -> bytes:
    """No unit here has asynchronous events of its own: those are MMC's (media, power)."""
    try:
        lun = AsyncRequest.unpack(request, hba.byte_order).lun
    except ValueError:
        response = Response.FAILURE
    else:
        found = _find(hba, lun)
        response = found if isinstance(found, Response) else Response.OK
    return AsyncReply(0, response).pack(hba.byte_order)


# ── Task management ────────────────────────────────────────────────────────────────────────────


async def _manage(hba: Hba, tmf: TmfRequest) -> int:
    if tmf.subtype == TmfType.I_T_NEXUS_RESET:
        return await _reset_nexus(hba, tmf.lun)
    nexus = _find(hba, tmf.lun)
    if isinstance(nexus, Response):
        return nexus
    if (refusal := await _refusal(hba, nexus, tmf.subtype, tmf.id)) is not None:
        return refusal
    runtime, port, lu = hba.runtime, hba.port, nexus.unit.data_plane
    mine = nexus.data_plane
    match tmf.subtype:
        case TmfType.ABORT_TASK:
            # SAM-6: complete too when there is no such command.
            aborting = runtime.abort(Response.ABORTED, port=port, nexus=mine, tag=tmf.id)
            if not await _ended(nexus.unit, aborting):
                return Response.FUNCTION_REJECTED
        case TmfType.ABORT_TASK_SET:
            if not await _ended(nexus.unit, nexus.abort()):
                return Response.FUNCTION_REJECTED
        case TmfType.CLEAR_TASK_SET:
            if not await _ended(nexus.unit, clear(nexus.unit, nexus)):
                return Response.FUNCTION_REJECTED
        case TmfType.CLEAR_ACA if not mine.clear_aca() and lu.aca:
            # SAM-6: from the faulted nexus only.
            return Response.FUNCTION_REJECTED
        case TmfType.CLEAR_ACA:
            pass
        case TmfType.LOGICAL_UNIT_RESET:
            return await _reset_unit(hba, nexus)
        case TmfType.QUERY_TASK:
            if await runtime.query(port=port, nexus=mine, tag=tmf.id):
                return Response.FUNCTION_SUCCEEDED
        case TmfType.QUERY_TASK_SET:
            if await runtime.query(port=port, nexus=mine):
                return Response.FUNCTION_SUCCEEDED
        case _:
            return Response.FUNCTION_REJECTED
    return FUNCTION_COMPLETE


async def _refusal(hba: Hba, nexus: Nexus, function: int, tag: int) -> int | None:
    """How a fault has it end."""
    if hba.refuse_tmf is None:
        return None
    of_a_task = function in (TmfType.ABORT_TASK, TmfType.QUERY_TASK)
    return await hba.refuse_tmf(hba, nexus, function, tag if of_a_task else None)


async def _reset_unit(hba: Hba, nexus: Nexus) -> int:
    unit = nexus.unit

    async def reset() -> int:
        aborting = hba.runtime.abort(Response.RESET, lu=unit.data_plane)
        if not await _interrupted([unit], [aborting]):
            return Response.FAILURE
        with hba.resetting(nexus):
            unit.reset()
        return FUNCTION_COMPLETE

    return await _settled(unit.nexuses, reset())


async def _settled(nexuses: Iterable[Nexus], work: Coroutine[None, None, int]) -> int:
    """Of work that resets: no command comes between those that it aborts and the report of it."""
    task = asyncio.ensure_future(work)
    for nexus in nexuses:
        nexus.settle_after(task)
    return await task


async def _reset_nexus(hba: Hba, lun: bytes) -> int:
    """The whole target; the LUN part of `lun` does not matter."""
    target = _target(hba, lun)
    if target is None:
        return Response.BAD_TARGET
    for nexus in list(target.nexuses.values()):
        if (refusal := await _refusal(hba, nexus, TmfType.I_T_NEXUS_RESET, 0)) is not None:
            return refusal

    async def reset() -> int:
        aborting = [
            hba.runtime.abort(Response.RESET, port=hba.port, nexus=nexus.data_plane)
            for nexus in target.nexuses.values()
        ]
        units = [nexus.unit for nexus in target.nexuses.values()]
        if not await _interrupted(units, aborting):
            return Response.FAILURE
        target.nexus_loss()
        return FUNCTION_COMPLETE

    return await _settled(target.nexuses.values(), reset())


async def _ended(unit: LogicalUnit, aborting: Awaitable[object]) -> bool:
    """Whether the commands that were hit are over. A device of the host may keep its own."""
    try:
        await asyncio.wait_for(aborting, unit.abort_seconds)
    except TimeoutError:
        return False
    return True


async def _interrupted(units: Iterable[LogicalUnit], aborting: Iterable[Awaitable[object]]) -> bool:
    """As `_ended`, of units that are reset: devices let go of their commands then."""
    interrupting = [unit.interrupt() for unit in units]
    try:
        await asyncio.gather(*aborting, *interrupting)
    except OSError as error:
        log.warning("a device of the host was not reset: %s", error.strerror)
        return False
    return True


def _target(hba: Hba, lun: bytes) -> Target | None:
    return hba.reachable(lun[1]) if lun[0] == SINGLE_LEVEL else None


def _find(hba: Hba, lun: bytes) -> Nexus | Response:
    """The nexus of the unit that a lun field names, or the response that says why there is none."""
    if _target(hba, lun) is None:
        return Response.BAD_TARGET
    address = decode_lun(lun)
    return (hba.nexus(address) if address else None) or Response.INCORRECT_LUN
