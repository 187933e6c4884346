"""What a well-behaved driver does and leaves, whatever the device is like."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.driver.device import OFFERED, Chain, FakeBus
from tests.unit.driver.disks import BLOCK, FakeDisks
from tests.unit.driver.test_virtio_scsi import answer, good
from vscsi_emu.driver.disk import Disk, DiskError
from vscsi_emu.driver.host import ScsiHost
from vscsi_emu.driver.host_byte import HostByte
from vscsi_emu.driver.request import TaskAttribute
from vscsi_emu.driver.scan import ScanError, report_luns
from vscsi_emu.driver.virtio_scsi import (
    KNOWN,
    REQUEST_QUEUE,
    Options,
    VirtioScsi,
)
from vscsi_emu.driver.vring import DESC_F_INDIRECT, DESCRIPTOR
from vscsi_emu.virtio.config import SIZE, ScsiConfig
from vscsi_emu.virtio.features import Feature
from vscsi_emu.virtio.scsi import Response, TmfType

IMPLICIT_HEAD_OF_QUEUE = {0x03, 0x12, 0xA0}
"""REQUEST SENSE, INQUIRY, REPORT LUNS (SAM-6)."""
KEPT_LUN = b"\x05"
DIRECT = Options(indirect_from=None, queue_size=16)


# ── Features and configuration ─────────────────────────────────────────────────────────────────


@pytest.mark.normative("feat.r3", "feat.r1", "feat.r4", "feat.r5", "feat.r8")
@pytest.mark.parametrize("bit", range(64))
def test_each_bit_is_accepted_if_it_is_known_and_offered(bit: int) -> None:
    """Known: to be a feature of this device type, and of this driver."""
    for offered in (1 << bit, 1 << bit | Feature.VERSION_1, OFFERED & ~(1 << bit)):
        bus = FakeBus(good, offered=offered)
        VirtioScsi(bus)
        assert bus.driver_features == offered & KNOWN


class WatchedConfig(FakeBus):
    """Notes which bytes of the configuration space are read."""

    def __init__(self, offered: int) -> None:
        super().__init__(good, offered=offered)
        self.read: set[int] = set()

    def read_config(self, offset: int, length: int) -> bytes:
        self.read |= set(range(offset, offset + length))
        return super().read_config(offset, length)


@pytest.mark.normative("cfg.r4")
@pytest.mark.parametrize("offered", [0, OFFERED, (1 << 64) - 1])
def test_only_fields_that_every_device_has_are_read(offered: int) -> None:
    """A feature that this driver does not know may bring fields behind them."""
    bus = WatchedConfig(offered)
    VirtioScsi(bus, Options(cdb_size=64))
    assert bus.read == set(range(SIZE))


# ── Descriptors ────────────────────────────────────────────────────────────────────────────────


class Recorder:
    """Answers well, and keeps what came."""

    def __init__(self) -> None:
        self.seen: list[Chain] = []

    def __call__(self, chain: Chain) -> bytes | None:
        self.seen.append(chain)
        return good(chain)


@pytest.mark.normative("split.frame.r2")
@pytest.mark.parametrize("options", [Options(), DIRECT], ids=["indirect", "direct"])
@pytest.mark.parametrize("length", [512, 65536, 1 << 20])
def test_each_part_of_a_buffer_has_one_descriptor(options: Options, length: int) -> None:
    recorder = Recorder()
    device = VirtioScsi(FakeBus(recorder), options)
    events = len(recorder.seen)
    device.execute(0, 0, bytes(6))
    device.execute(0, 0, bytes(6), data_in_length=length)
    device.execute(0, 0, bytes(6), data_out=bytes(length))
    device.task_management(TmfType.LOGICAL_UNIT_RESET, 0, 0)
    parts = [(len(chain.readable), len(chain.writable)) for chain in recorder.seen]
    assert parts == [(0, 1)] * events + [(1, 1), (1, 2), (2, 1), (1, 1)]


@pytest.mark.normative("rsvd.r5")
@pytest.mark.parametrize("options", [Options(), DIRECT], ids=["indirect", "direct"])
def test_addresses_are_physical_without_access_platform(options: Options) -> None:
    """This device takes each address of rings, tables and buffers for a physical one."""
    recorder = Recorder()
    bus = FakeBus(recorder)
    device = VirtioScsi(bus, options)
    assert Feature.ACCESS_PLATFORM not in device.features
    device.execute(0, 0, bytes(6), data_out=b"payload")
    [chain] = [chain for chain in recorder.seen if chain.queue == REQUEST_QUEUE]
    assert chain.request[51:] == b"payload"
    assert device.execute(0, 0, bytes(range(32)), data_in_length=32).data == bytes(range(32))


# ── Buffers that the device has ────────────────────────────────────────────────────────────────


def shown(bus: FakeBus, chain: Chain, table: int) -> list[bytes]:
    """What a device sees of a chain: its descriptors and all its buffers."""
    buffers = [bus.ram.peek(*segment) for segment in (*chain.readable, *chain.writable)]
    return [bus.ram.peek(table, DESCRIPTOR.size * 3), *buffers]


def tables(bus: FakeBus, device: VirtioScsi, chain: Chain) -> int:
    """Where the descriptors of a chain begin: in its table, if it has one."""
    entry = device.queues[chain.queue].ring.layout.descriptor(chain.head)
    address, _, flags, _ = DESCRIPTOR.unpack(bus.ram.peek(entry, DESCRIPTOR.size))
    return int(address) if flags & DESC_F_INDIRECT else entry


@pytest.mark.normative("cleanup.r1")
@pytest.mark.parametrize("options", [Options(queue_size=16), DIRECT], ids=["indirect", "direct"])
def test_what_the_device_has_is_not_altered(options: Options) -> None:
    """While others come and go, through the whole ring and most of memory."""
    bus = FakeBus(lambda chain: None if chain.request[3:4] == KEPT_LUN else good(chain))
    device = VirtioScsi(bus, options)
    device.submit(0, KEPT_LUN[0], bytes(range(6)), data_in_length=512)
    device.submit(0, KEPT_LUN[0], bytes(range(6)), data_out=bytes(range(200)))
    kept = [chain for chain in bus.kept if chain.queue == REQUEST_QUEUE]
    assert len(kept) == 2
    places = [tables(bus, device, chain) for chain in kept]
    before = [shown(bus, chain, at) for chain, at in zip(kept, places, strict=True)]
    for number in range(100):
        length = 1 << 16 + number % 4
        device.execute(0, 1, bytes([number] * 6), data_out=bytes([number]) * length)
        device.execute(0, 1, bytes([number] * 6), data_in_length=length)
    assert [shown(bus, chain, at) for chain, at in zip(kept, places, strict=True)] == before


class LiveQueues(FakeBus):
    """Notes for how many bytes the driver has memory when it resets the device."""

    def __init__(self) -> None:
        super().__init__(lambda _: None)
        self.allocated_at_reset: list[int] = []

    def reset(self) -> None:
        self.allocated_at_reset.append(self.allocator.allocated)
        super().reset()


@pytest.mark.normative("cleanup.r2")
@pytest.mark.parametrize("options", [Options(), DIRECT], ids=["indirect", "direct"])
def test_buffers_are_taken_back_after_a_reset(options: Options) -> None:
    bus = LiveQueues()
    device = VirtioScsi(bus, options)
    for _ in range(3):
        device.submit(0, 0, bytes(6), data_in_length=512)
    held = bus.allocator.allocated
    device.remove()
    assert bus.allocated_at_reset == [0, held]
    assert bus.log[-1] == ("reset", 0)
    assert bus.allocator.allocated == 0


# ── Commands ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.normative("scsi.req.r1", "scsi.req.r3")
def test_commands_of_the_driver_itself_are_simple(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: set[tuple[int, int]] = set()
    take = FakeDisks._handle

    def noting(disks: FakeDisks, chain: Chain) -> bytes | None:
        if chain.queue >= REQUEST_QUEUE:
            sent.add((chain.request[19], chain.request[16]))
        return take(disks, chain)

    monkeypatch.setattr(FakeDisks, "_handle", noting)
    host = ScsiHost(
        VirtioScsi(FakeDisks({(0, 0): bytearray(64 * BLOCK)}).bus, Options(queues=None))
    )
    host.scan(range(2))
    disk = host.disks[0, 0]
    disk.write(0, bytes(BLOCK))
    disk.read(0, 1)
    disk.flush()
    opcodes = {opcode for opcode, _ in sent}
    assert len(opcodes & IMPLICIT_HEAD_OF_QUEUE) == 2
    assert {0x88, 0x8A, 0x91} < opcodes
    assert {attribute for _, attribute in sent} == {TaskAttribute.SIMPLE}


@pytest.mark.normative("scsi.req.r4")
def test_a_failed_target_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """On no other queue either: they are all the paths there are."""
    disks = FakeDisks({(0, 0): bytearray(64 * BLOCK)})
    disk = Disk(VirtioScsi(disks.bus, Options(queues=None)), 0, 0)
    tries: list[int] = []

    def failing(_: FakeDisks, chain: Chain, *_details: object) -> bytes:
        tries.append(chain.queue)
        return answer(response=Response.TARGET_FAILURE)

    monkeypatch.setattr(FakeDisks, "_command", failing)
    with pytest.raises(DiskError, match="response 7"):
        disk.read(0, 1)
    with pytest.raises(DiskError, match="response 7"):
        disk.write(0, bytes(BLOCK))
    with pytest.raises(ScanError, match="response 7"):
        report_luns(disk.device, 0)
    assert disk.device.execute(0, 0, bytes(6)).host_byte is HostByte.TARGET_FAILURE
    assert len(tries) == 4


@pytest.mark.normative("scsi.req.r2")
@pytest.mark.parametrize("slow", [REQUEST_QUEUE, REQUEST_QUEUE + 1])
def test_a_write_has_ended_on_all_queues_before_the_next_command(
    slow: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes out on both. One of them answers nothing, so the write does not end."""
    config = ScsiConfig(num_queues=2, max_sectors=8)
    disks = FakeDisks({(0, 0): bytearray(64 * BLOCK)}, config)
    disk = Disk(VirtioScsi(disks.bus, Options(queues=None), timeout=0.01), 0, 0)
    disk.write(0, bytes(range(64)) * (BLOCK // 4))
    assert set(disks.queues) == {REQUEST_QUEUE, REQUEST_QUEUE + 1}
    take = FakeDisks._command

    def slowly(self: FakeDisks, chain: Chain, *details: Any) -> bytes | None:
        return None if chain.queue == slow else take(self, chain, *details)

    monkeypatch.setattr(FakeDisks, "_command", slowly)
    with pytest.raises(TimeoutError):
        disk.write(0, bytes(16 * BLOCK))
    [waiting] = [chain for chain in disks.bus.kept if chain.queue == slow]
    assert waiting.request[19] == 0x8A
