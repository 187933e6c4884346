"""Task management, asynchronous notification and the event queue (virtio 1.4, 5.6.6.2, 5.6.6.3)."""

import struct

import pytest

from tests.conformance import cdb
from tests.conformance.attach import Guest, attach
from tests.conformance.cdb import UNIT_ATTENTION, Disk, expect_good, pattern
from tests.conformance.server import Server
from vscsi_emu.driver.host_byte import HostByte
from vscsi_emu.driver.request import Result
from vscsi_emu.driver.virtio_scsi import (
    CONTROL_QUEUE,
    EVENT_QUEUE,
    REQUEST_QUEUE,
    InFlight,
    Options,
)
from vscsi_emu.virtio.scsi import ControlType, Response, TmfType, encode_lun

COMPLETE = Response.OK
ABORTING = (TmfType.ABORT_TASK_SET, TmfType.CLEAR_TASK_SET)
RESETTING = (TmfType.LOGICAL_UNIT_RESET, TmfType.I_T_NEXUS_RESET)
BUSY_OPTIONS = Options(queue_size=256, queues=None)


def start_writes(guest: Guest, count: int = 60) -> list[InFlight[Result]]:
    """Writes of 32 KiB to the file disk, spread over the request queues."""
    queues = len(guest.device.queues) - REQUEST_QUEUE
    data = pattern(64 * 512)
    return [
        guest.device.submit(
            0, 0, cdb.write_16(64 * n, 64), data_out=data, queue=REQUEST_QUEUE + n % queues
        )
        for n in range(count)
    ]


def used_by_now(guest: Guest) -> None:
    """Takes what the device has used; everything, once the TMF's answer is here."""
    for queue in guest.device.queues:
        if queue >= REQUEST_QUEUE:
            guest.device.reap(queue)


@pytest.mark.normative("scsi.ctl.d8")
@pytest.mark.parametrize("function", list(TmfType))
def test_on_an_idle_unit(guest: Guest, function: TmfType) -> None:
    Disk(guest.device, 0, 0).ready()
    response = guest.device.task_management(function, 0, 0, tag=1)
    if function is TmfType.CLEAR_ACA:  # no ACA without NACA
        assert response in (COMPLETE, Response.FUNCTION_REJECTED)
    else:
        assert response == COMPLETE
    Disk(guest.device, 0, 0).ready()


@pytest.mark.normative("scsi.ctl.d8")
@pytest.mark.parametrize("function", [8, 99, 0xFFFFFFFF])
def test_unknown_function(guest: Guest, function: int) -> None:
    response = guest.device.task_management(function, 0, 0)
    assert response in (Response.FUNCTION_REJECTED, Response.FAILURE)


@pytest.mark.normative("scsi.ctl.d8")
@pytest.mark.parametrize("function", list(TmfType))
def test_absent_target_and_unit(guest: Guest, function: TmfType) -> None:
    assert guest.device.task_management(function, 5, 0) == Response.BAD_TARGET
    response = guest.device.task_management(function, 0, 99)
    if function is TmfType.I_T_NEXUS_RESET:
        assert response == COMPLETE, "the LUN does not matter"
    else:
        assert response == Response.INCORRECT_LUN


@pytest.mark.normative("scsi.ctl.d10", "scsi.ctl.d9")
def test_lun_and_id_are_ignored_for_a_whole_nexus(guest: Guest) -> None:
    Disk(guest.device, 0, 0).ready()
    for lun in (0, 1, 77, 16383):
        response = guest.device.task_management(TmfType.I_T_NEXUS_RESET, 0, lun, tag=2**64 - 1)
        assert response == COMPLETE


@pytest.mark.normative(
    "scsi.ctl.d1", "scsi.ctl.d2", "scsi.ctl.d4", "scsi.ctl.d5", "scsi.ctl.d6", "scsi.ctl.d7",
    "scsi.req.d8", "scsi.req.d10",
)  # fmt: skip
@pytest.mark.parametrize("function", [*ABORTING, *RESETTING])
def test_commands_in_flight_are_complete_before_the_answer(
    server: Server, function: TmfType
) -> None:
    """Whatever was sent before is answered when the TMF is: done, ABORTED or RESET."""
    with attach(server, BUSY_OPTIONS) as guest:
        Disk(guest.device, 0, 0).ready()
        for _ in range(5):
            items = start_writes(guest)
            assert guest.device.task_management(function, 0, 0) == COMPLETE
            used_by_now(guest)
            assert all(item.done for item in items), "answered before its commands were"
            ended = Response.ABORTED if function in ABORTING else Response.RESET
            host = HostByte.ABORT if function in ABORTING else HostByte.RESET
            for item in items:
                result = item.parse(item.ticket.reply)
                assert result.response in (Response.OK, ended)
                if result.response == ended:
                    assert result.host_byte is host
            Disk(guest.device, 0, 0).ready()


@pytest.mark.normative("scsi.ctl.d3", "scsi.ctl.d11", "scsi.ctl.d5", "scsi.req.d8")
def test_abort_of_one_task(server: Server) -> None:
    """Only the command of that id is hit, whichever queue it is on."""
    with attach(server, BUSY_OPTIONS) as guest:
        Disk(guest.device, 0, 0).ready()
        for victim in range(20, 60, 5):
            items = start_writes(guest)
            tag = items[victim].tag
            assert guest.device.task_management(TmfType.ABORT_TASK, 0, 0, tag) == COMPLETE
            used_by_now(guest)
            assert items[victim].done
            results = guest.device.wait_all(items)
            for n, result in enumerate(results):
                allowed = (Response.OK, Response.ABORTED) if n == victim else (Response.OK,)
                assert result.response in allowed


@pytest.mark.normative("scsi.ctl.d4")
def test_other_units_are_not_hit(server: Server) -> None:
    with attach(server, BUSY_OPTIONS) as guest:
        Disk(guest.device, 0, 0).ready()
        Disk(guest.device, 0, 1, 4096).ready()
        items = start_writes(guest)
        for function in (*ABORTING, TmfType.LOGICAL_UNIT_RESET):
            assert guest.device.task_management(function, 0, 1) == COMPLETE
        for result in guest.device.wait_all(items):
            expect_good(result)


@pytest.mark.parametrize("function", RESETTING)
def test_reset_is_told_by_a_unit_attention(guest: Guest, function: TmfType) -> None:
    """SAM-6: 29h, and the unit works on after it was told."""
    disk = Disk(guest.device, 0, 0).ready()
    disk.write(3, pattern(512))
    assert guest.device.task_management(function, 0, 0) == COMPLETE
    result = disk.run(cdb.test_unit_ready())
    assert result.sense[2] & 0xF == UNIT_ATTENTION
    assert result.sense[12] == 0x29
    assert disk.ready().read(3, 1) == pattern(512)


@pytest.mark.parametrize("function", [TmfType.QUERY_TASK, TmfType.QUERY_TASK_SET])
def test_query_with_nothing_in_flight(guest: Guest, function: TmfType) -> None:
    """SAM-6: FUNCTION COMPLETE if not present."""
    Disk(guest.device, 0, 0).ready()
    assert guest.device.task_management(function, 0, 0, tag=12345) == COMPLETE


def test_query_of_commands_in_flight(server: Server) -> None:
    with attach(server, BUSY_OPTIONS) as guest:
        Disk(guest.device, 0, 0).ready()
        for _ in range(5):
            items = start_writes(guest)
            for function in (TmfType.QUERY_TASK_SET, TmfType.QUERY_TASK):
                response = guest.device.task_management(function, 0, 0, items[-1].tag)
                assert response in (COMPLETE, Response.FUNCTION_SUCCEEDED)
            for result in guest.device.wait_all(items):
                expect_good(result)


def test_many_functions_at_once(server: Server) -> None:
    with attach(server, BUSY_OPTIONS) as guest:
        Disk(guest.device, 0, 0).ready()
        items = start_writes(guest)
        functions = [
            guest.device.submit_task_management(function, encode_lun(0, 0), items[5].tag)
            for function in list(TmfType) * 4
        ]
        for response in guest.device.wait_all(functions):
            assert response in (COMPLETE, Response.FUNCTION_SUCCEEDED, Response.FUNCTION_REJECTED)
        guest.device.wait_all(items)
        Disk(guest.device, 0, 0).ready()


# ── Asynchronous notification ───────────────────────────────────────────────────────────────────


@pytest.mark.normative("scsi.ctl.d12", "scsi.ctl.d13")
@pytest.mark.parametrize("events", [0, 2, 0x7E, 0xFFFFFFFF])
def test_asynchronous_notification(guest: Guest, events: int) -> None:
    """Disks report none of the MMC events; the answer is a subset of what was asked for."""
    for ask in (guest.device.query_async, guest.device.subscribe_async):
        reply = ask(0, 0, events)
        assert reply.response == Response.OK
        assert reply.event_actual & ~events == 0
        assert reply.event_actual == 0


@pytest.mark.normative("scsi.ctl.d12", "scsi.ctl.d13")
def test_asynchronous_notification_of_nobody(guest: Guest) -> None:
    assert guest.device.query_async(5, 0, 2).response == Response.BAD_TARGET
    assert guest.device.subscribe_async(0, 99, 2).response == Response.INCORRECT_LUN


@pytest.mark.parametrize("kind", [3, 0xFFFFFFFF])
def test_unknown_control_request(guest: Guest, kind: int) -> None:
    """Used at once; where there is room for a response, it is FAILURE."""
    queue = guest.device.queues[CONTROL_QUEUE]
    ticket = queue.add([struct.pack("<I20x", kind)], [64])
    guest.device.publish(CONTROL_QUEUE)
    assert guest.device.task_management(TmfType.QUERY_TASK, 0, 0) == COMPLETE
    assert ticket.done
    assert kind not in tuple(ControlType)


# ── Events ──────────────────────────────────────────────────────────────────────────────────────


def test_no_event_without_a_cause(guest: Guest) -> None:
    Disk(guest.device, 0, 0).ready().write(0, pattern(512))
    assert guest.device.next_event(0.1) is None
    assert guest.device.queues[EVENT_QUEUE].ring.in_flight > 0
