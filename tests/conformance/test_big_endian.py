"""A big-endian guest: our driver and our device in the byte order of legacy virtio (virtio 1.4,
2.7.3 and the legacy notes of 5.6)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conformance import cdb
from tests.conformance.cdb import expect_sense, pattern
from vscsi_emu.config import from_arguments
from vscsi_emu.driver.disk import Disk
from vscsi_emu.driver.dma import DmaAllocator
from vscsi_emu.driver.mmio import VirtioMmioBus
from vscsi_emu.driver.request import Request
from vscsi_emu.driver.scan import retried
from vscsi_emu.driver.virtio_scsi import KNOWN, Options, VirtioScsi
from vscsi_emu.inprocess import InProcess, Slot
from vscsi_emu.testing.faults import injected
from vscsi_emu.virtio.config import ByteOrder
from vscsi_emu.virtio.features import Feature
from vscsi_emu.virtio.mmio_registers import LEGACY
from vscsi_emu.virtio.scsi import (
    AsyncReply,
    Event,
    EventType,
    ResetReason,
    Response,
    TmfType,
    encode_lun,
)

ORDERS: list[ByteOrder] = ["<", ">"]
WAIT = 10.0


@pytest.fixture(params=ORDERS, ids=["little-endian", "big-endian"])
def order(request: pytest.FixtureRequest) -> ByteOrder:
    order: ByteOrder = request.param
    return order


@pytest.fixture
def machine(order: ByteOrder) -> Iterator[InProcess]:
    config = from_arguments(["0:0=mem:1M", "0:1=mem:1M"], queues=2)
    with InProcess(config, version=LEGACY, byte_order=order, workers=1) as running:
        yield running


def attach(slot: Slot, order: ByteOrder, options: Options) -> VirtioScsi:
    bus = VirtioMmioBus.find(slot, slot.base, DmaAllocator(1 << 20, 32 << 20), timeout=WAIT)
    assert bus is not None
    device = VirtioScsi(bus, options, timeout=WAIT)
    assert device.order == order
    return device


@pytest.mark.normative(
    "split.leg.d2", "split.leg.r4", "scsi.cfg.leg.r1", "scsi.cfg.leg.d1", "scsi.req.leg.d1",
    "scsi.req.leg.r1", "feat.leg.d3", "feat.leg.r2",
)  # fmt: skip
@pytest.mark.parametrize("event_idx", [False, True])
@pytest.mark.parametrize("indirect", [False, True])
def test_commands(machine: InProcess, order: ByteOrder, event_idx: bool, indirect: bool) -> None:
    """Data both ways, sense and residuals, over rings that wrap."""
    features = KNOWN & ~(Feature.EVENT_IDX | Feature.INDIRECT_DESC)
    features |= (Feature.EVENT_IDX if event_idx else 0) | (Feature.INDIRECT_DESC if indirect else 0)
    options = Options(
        features=features, queue_size=16, cdb_size=64, sense_size=100, byte_order=order
    )
    (slot,) = machine.slots
    device = attach(slot, order, options)
    assert device.config == slot.hba.config
    assert (device.config.cdb_size, device.config.sense_size) == (64, 100)
    disk = Disk(device, 0, 0)
    for seed in range(20):
        data = pattern(8 * 512, seed)
        disk.write(8 * seed, data)
        assert disk.read(8 * seed, 8) == data
    result = device.execute(0, 0, cdb.inquiry(255), data_in_length=255)
    assert result.residual == 255 - len(result.data) > 0
    expect_sense(device.execute(0, 0, b"\xff" * 6), cdb.ILLEGAL_REQUEST, 0x2000)
    assert not slot.device.counters
    device.bus.reset()


@pytest.mark.normative("scsi.ctl.leg.d1", "scsi.ctl.leg.r1")
def test_control_requests(machine: InProcess, order: ByteOrder) -> None:
    """A type, a function or a tag in the wrong order would be another one."""
    device = attach(machine.slots[0], order, Options(byte_order=order))
    retried(device, 0, 0, cdb.test_unit_ready(), 0)
    assert device.task_management(TmfType.QUERY_TASK_SET, 0, 0) == Response.OK
    assert device.task_management(TmfType.LOGICAL_UNIT_RESET, 9, 0) == Response.BAD_TARGET
    assert device.task_management(77, 0, 0) == Response.FUNCTION_REJECTED
    assert device.query_async(0, 0, 0x7E) == AsyncReply(0, Response.OK)
    with injected(machine, "0:0", "hang"):
        tag = 0x0102_0304_0506_0708
        request = Request(encode_lun(0, 0), cdb.read_10(0, 1), tag, data_in_length=512)
        item = device.submit_request(request)
        assert device.task_management(TmfType.QUERY_TASK, 0, 0, tag) == Response.FUNCTION_SUCCEEDED
        assert device.task_management(TmfType.ABORT_TASK, 0, 0, tag) == Response.OK
        assert device.wait(item).response == Response.ABORTED
    device.bus.reset()


@pytest.mark.normative("scsi.evt.leg.d1", "scsi.evt.leg.r1")
def test_events(machine: InProcess, order: ByteOrder) -> None:
    (slot,) = machine.slots
    device = attach(slot, order, Options(byte_order=order))
    machine.call(lambda: slot.hba.remove_lun((0, 1)))
    removed = Event(EventType.TRANSPORT_RESET, encode_lun(0, 1), ResetReason.REMOVED)
    assert device.next_event(WAIT) == removed
    device.bus.reset()
