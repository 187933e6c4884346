"""EXTENDED COPY(LID1) and RECEIVE COPY RESULTS (SPC-4)."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

from vscsi_emu import _dataplane
from vscsi_emu.scsi import copy
from vscsi_emu.scsi.cdb import Allowed, Field, Flag, command
from vscsi_emu.scsi.copy import CopyList, CopyTarget, Segment
from vscsi_emu.scsi.copy_run import CopyRun
from vscsi_emu.scsi.nexus import Nexus
from vscsi_emu.scsi.persistent import ReservationConflict
from vscsi_emu.scsi.request import Request
from vscsi_emu.scsi.sense import (
    Asc,
    ScsiError,
    SenseKey,
    invalid_field_in_cdb,
)
from vscsi_emu.scsi.status import Status
from vscsi_emu.scsi.vpd import unit_designators


@command("COPY OPERATION ABORT", 0x83, 16, service_action=0x1C, list_identifier=Field(2, 4))
async def copy_operation_abort(request: Request) -> bytes:
    """Of whatever began it, in the foreground or in the background (SPC-4 6.3)."""
    run = request.nexus.running_copies().get(request.cdb["list_identifier"])
    if run is None:
        raise request.cdb.invalid("list_identifier")
    run.abort()
    await run.over()
    return b""


# ── EXTENDED COPY(LID1) ────────────────────────────────────────────────────────────────────────


@command(
    "EXTENDED COPY(LID1)",
    0x83,
    16,
    service_action=0x00,
    flags=Flag.NEEDS_READY,
    parameter_list_length=Field(10, 4),
)
async def extended_copy(request: Request) -> bytes:
    """Copies between units that the same initiator port reaches; over when it answers."""
    data = request.parameter_list()
    if not data:
        return b""
    plan = copy.parse(data)
    results = request.nexus.copies
    if plan.list_id is None:
        await _copy(request, plan, CopyRun(), lambda _bytes: None)
        return b""
    if plan.list_id in request.nexus.running_copies():
        raise ScsiError(SenseKey.ILLEGAL_REQUEST, Asc.OPERATION_IN_PROGRESS)
    result = results.start(plan.list_id)

    def count(transferred: int) -> None:
        result.segments += 1
        result.transferred += transferred

    error: ScsiError | None = _aborted(Asc.NO_ADDITIONAL_SENSE)
    try:
        await _copy(request, plan, result.run, count)
        error = None
    except ScsiError as reason:
        error = reason
        raise
    finally:
        results.end(plan.list_id, error=error, hold=plan.hold)
    return b""


async def _copy(
    request: Request, plan: CopyList, run: CopyRun, count: Callable[[int], None]
) -> None:
    nexuses = [_find(request, target) for target in plan.targets]
    for number, segment in enumerate(plan.segments):
        try:
            count(await _copy_segment(request, nexuses, segment, run))
        except ScsiError as error:
            if error.key is not SenseKey.COPY_ABORTED:
                error = _aborted(error.code)
            raise ScsiError(error.key, error.code, information=number) from error


def _find(request: Request, target: CopyTarget) -> Nexus | None:
    """None: no unit that can be reached here is called so."""
    for nexus in request.target.reachable():
        if target.designator in unit_designators(nexus.unit):
            if target.block_size != nexus.unit.block_size:
                raise _aborted(Asc.INCORRECT_COPY_TARGET_DEVICE_TYPE)
            return nexus
    return None


async def _copy_segment(
    request: Request, nexuses: list[Nexus | None], segment: Segment, run: CopyRun
) -> int:
    """Bytes copied."""
    source = _unit(request, nexuses, segment.source, Allowed.WRITE_EXCLUSIVE).unit
    nexus = _unit(request, nexuses, segment.target, Allowed.NONE)
    target = nexus.unit
    counted = target if segment.counts_target_blocks else source
    length = segment.blocks * counted.block_size
    if not length:
        return 0
    if length % source.block_size or length % target.block_size:
        # It would end within a block: there is neither residual data to take up nor padding.
        raise _aborted(Asc.INVALID_FIELD_IN_PARAMETER_LIST)
    if not _holds(source.blocks, segment.source_lba, length // source.block_size) or not _holds(
        target.blocks, segment.target_lba, length // target.block_size
    ):
        raise _aborted(Asc.NO_ADDITIONAL_SENSE)
    if target.write_protected:
        raise _aborted(Asc.WRITE_PROTECTED)
    blocks = (segment.source_lba * source.block_size, segment.target_lba * target.block_size)
    durable = not target.mode_pages.write_cache
    work = _dataplane.Copy(
        target.data_plane, source.data_plane, [(*blocks, length)], durable=durable
    )
    with run.working(work):
        await target.copy(work, source, by=nexus)
    return length


def _holds(blocks: int, lba: int, count: int) -> bool:
    return lba + count <= blocks


def _unit(request: Request, nexuses: list[Nexus | None], index: int, allowed: Allowed) -> Nexus:
    """The unit that a segment names, if it may be used now."""
    if index == copy.THIS_UNIT:
        nexus: Nexus | None = request.nexus
    elif index < len(nexuses):
        nexus = nexuses[index]
    else:
        raise _aborted(Asc.UNREACHABLE_COPY_TARGET)
    if nexus is None or nexus.unit.unready is not None:
        raise _aborted(Asc.COPY_TARGET_DEVICE_NOT_REACHABLE)
    try:
        nexus.unit.reservations.check(nexus, allowed)
    except ReservationConflict:
        raise _aborted(Asc.COPY_TARGET_DEVICE_NOT_REACHABLE) from None
    return nexus


def _aborted(code: int) -> ScsiError:
    return ScsiError(SenseKey.COPY_ABORTED, code)


# ── RECEIVE COPY RESULTS ───────────────────────────────────────────────────────────────────────

_IN_PROGRESS, _COMPLETED, _FAILED = 0x00, 0x01, 0x02
_BYTES, _KIBIBYTES = 0, 1


@command(
    "RECEIVE COPY STATUS(LID1)",
    0x84,
    16,
    service_action=0x00,
    allowed=Allowed.PERSISTENT,
    list_identifier=Field(2),
    allocation_length=Field(10, 4),
)
def receive_copy_status(request: Request) -> bytes:
    result = request.nexus.copies.take(request.cdb["list_identifier"])
    if result is None:
        raise invalid_field_in_cdb(2, 7)
    status = _IN_PROGRESS
    if result.ended is not None:
        status = _FAILED if result.error else _COMPLETED
    # What one command copies at most fits in KiB.
    units = _BYTES if result.transferred < 1 << 32 else _KIBIBYTES
    transferred = result.transferred >> (10 if units == _KIBIBYTES else 0)
    return struct.pack(">IBHBI", 8, status, result.segments, units, transferred)


_FAILURE_LAYOUT: Final = struct.Struct(">52xBxH")


@command(
    "RECEIVE COPY FAILURE DETAILS(LID1)",
    0x84,
    16,
    service_action=0x04,
    allowed=Allowed.PERSISTENT,
    list_identifier=Field(2),
    allocation_length=Field(10, 4),
)
def receive_copy_failure_details(request: Request) -> bytes:
    """The sense data that EXTENDED COPY ended with."""
    try:
        error = request.nexus.copies.take_failure(request.cdb["list_identifier"])
    except KeyError:
        raise invalid_field_in_cdb(2, 7) from None
    details = b""
    if error is not None:
        sense = error.sense(descriptor=request.unit.descriptor_sense)
        details = _FAILURE_LAYOUT.pack(Status.CHECK_CONDITION, len(sense)) + sense
    return struct.pack(">I", len(details)) + details


_SNLID: Final = 0x01


@command(
    "RECEIVE COPY OPERATING PARAMETERS",
    0x84,
    16,
    service_action=0x03,
    allowed=Allowed.PERSISTENT,
    allocation_length=Field(10, 4),
)
def receive_copy_operating_parameters(request: Request) -> bytes:
    """Neither inline data nor held data; a copy may have any alignment to blocks."""
    types = copy.DESCRIPTOR_TYPES
    body = struct.pack(
        ">B3xHHIIIII2xHBBBB3xB",
        _SNLID,
        copy.MAX_TARGETS,
        copy.MAX_SEGMENTS,
        copy.MAX_DESCRIPTORS_BYTES,
        copy.MAX_SEGMENT_BYTES,
        0,
        0,
        0,
        copy.CONCURRENT_COPIES,
        min(copy.CONCURRENT_COPIES, 0xFF),
        copy.GRANULARITY,
        0,
        0,
        len(types),
    )
    return struct.pack(">I", len(body) + len(types)) + body + types
