"""Failures that are no SCSI status: each condition has its response (virtio 1.4, 5.6.6.1.1)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conformance import cdb
from tests.conformance.cdb import expect_good
from tests.conformance.test_builtin_guest import attach
from vscsi_emu._dataplane import Command
from vscsi_emu.config import from_arguments
from vscsi_emu.driver.host_byte import HostByte
from vscsi_emu.driver.request import Request, Result
from vscsi_emu.driver.scan import retried
from vscsi_emu.driver.virtio_scsi import REQUEST_QUEUE, InFlight, VirtioScsi
from vscsi_emu.inprocess import InProcess
from vscsi_emu.testing.faults import injected
from vscsi_emu.virtio.mmio_registers import Register
from vscsi_emu.virtio.scsi import Response, TmfType, encode_lun


@pytest.fixture
def machine() -> Iterator[InProcess]:
    with InProcess(from_arguments(["0:0=mem:1M", "0:1=mem:1M"], queues=1), workers=1) as running:
        yield running


@pytest.fixture
def device(machine: InProcess) -> VirtioScsi:
    """Its units' attentions are taken."""
    _, device = attach(machine.slots[0])
    for lun in (0, 1):
        expect_good(retried(device, 0, lun, cdb.test_unit_ready(), 0))
    return device


def outstanding(device: VirtioScsi) -> InFlight[Result]:
    """A READ of 0:0, which hangs; the device has taken it."""
    request = Request(encode_lun(0, 0), cdb.read_10(0, 1), 0x77, data_in_length=512)
    item = device.submit_request(request)
    response = device.task_management(TmfType.QUERY_TASK, 0, 0, item.tag)
    assert response == Response.FUNCTION_SUCCEEDED
    return item


@pytest.mark.normative("scsi.id.d1")
def test_the_device_id_is_8(machine: InProcess) -> None:
    (slot,) = machine.slots
    assert slot.read(slot.base + Register.DEVICE_ID, 4) == 8


# What Linux calls the condition (DID_*), the response, and what a Linux guest makes of that.
CONDITIONS = {
    "severed link": ("scsi.req.d11", HostByte.TRANSPORT_DISRUPTED, Response.TRANSPORT_FAILURE),
    "target failure": ("scsi.req.d12", HostByte.TARGET_FAILURE, Response.TARGET_FAILURE),
    "nexus failure": ("scsi.req.d13", HostByte.NEXUS_FAILURE, Response.NEXUS_FAILURE),
    "busy for now": ("scsi.req.d14", HostByte.BUS_BUSY, Response.BUSY),
    "another error": ("scsi.req.d15", HostByte.ERROR, Response.FAILURE),
}


@pytest.mark.parametrize(
    ("condition", "response"),
    [
        pytest.param(condition, response, id=name, marks=pytest.mark.normative(row))
        for name, (row, condition, response) in CONDITIONS.items()
    ],
)
def test_a_condition_of_the_host(
    machine: InProcess, device: VirtioScsi, condition: HostByte, response: Response
) -> None:
    """Once: the same command on the same path succeeds then."""
    line = f"2 -1 28 {condition:x} 0 0 0 0 0"
    machine.control.fault_scsi_debug("0:0", error=line)
    result = device.execute(0, 0, cdb.read_10(0, 1), data_in_length=512)
    assert result.response == response
    assert result.host_byte is condition
    assert (result.status, result.sense, result.residual) == (0, b"", 512)
    expect_good(device.execute(0, 0, cdb.read_10(0, 1), data_in_length=512))


@pytest.mark.normative("scsi.req.d11")
def test_a_link_that_goes_down_under_a_command(machine: InProcess, device: VirtioScsi) -> None:
    hba = machine.slots[0].hba

    async def sever() -> None:
        hba.set_link(0, up=False)

    with injected(machine, "0:0", "hang"):
        item = outstanding(device)
        machine.call(sever)
        assert device.wait(item).response == Response.TRANSPORT_FAILURE


@pytest.mark.normative("scsi.req.d15")
def test_an_error_inside_the_device(
    machine: InProcess, device: VirtioScsi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever was to answer a command lets go of it."""

    def forget(_: Command) -> None:
        return

    with monkeypatch.context() as patch:
        patch.setattr(machine.slots[0].hba, "on_command", forget)
        result = device.execute(0, 0, cdb.inquiry(36), data_in_length=36)
    assert result.response == Response.FAILURE
    assert result.data == b""
    assert device.execute(0, 0, cdb.inquiry(36), data_in_length=36).response == Response.OK


@pytest.mark.normative("scsi.req.d18")
def test_a_reset_aborts_what_is_outstanding(machine: InProcess, device: VirtioScsi) -> None:
    with injected(machine, "0:0", "hang"):
        item = outstanding(device)
        device.bus.reset()
        [ticket] = device.reap(REQUEST_QUEUE)
    assert ticket is item.ticket
    assert item.parse(ticket.reply).response == Response.RESET


@pytest.mark.normative("scsi.req.d19")
def test_unplugging_fails_what_is_outstanding(machine: InProcess, device: VirtioScsi) -> None:
    with injected(machine, "0:0", "hang"):
        item = outstanding(device)
        machine.call(lambda: machine.slots[0].hba.remove_lun((0, 0)))
        device.reap(REQUEST_QUEUE)
        assert item.done, "unplugged with a command outstanding"
        assert device.wait(item).response == Response.FAILURE
