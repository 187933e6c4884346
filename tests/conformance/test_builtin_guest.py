"""Whole lives of a guest in this process: our driver at our registers."""

import re

import pytest

from tests.conformance import cdb
from tests.conformance.cdb import pattern
from vscsi_emu.config import from_arguments
from vscsi_emu.driver.disk import Disk
from vscsi_emu.driver.dma import DmaAllocator
from vscsi_emu.driver.host import Change, Kind, ScsiHost
from vscsi_emu.driver.mmio import NeedsReset, VirtioMmioBus
from vscsi_emu.driver.request import Request
from vscsi_emu.driver.virtio_scsi import KNOWN, REQUEST_QUEUE, Options, VirtioScsi
from vscsi_emu.inprocess import InProcess, Slot
from vscsi_emu.testing.builtin import BOOTS, LUNS, TARGETS, Boot, guest
from vscsi_emu.virtio.features import Feature
from vscsi_emu.virtio.mmio_registers import LEGACY, MODERN
from vscsi_emu.virtio.scsi import TmfType, encode_lun

VERSIONS = pytest.mark.parametrize("version", [MODERN, LEGACY], ids=["modern", "legacy"])


def machine(version: int, *luns: str, queues: int = 4) -> InProcess:
    return InProcess(from_arguments(luns or ("0:0=mem:16M",), queues=queues), version=version)


def attach(slot: Slot, options: Options | None = None) -> tuple[VirtioMmioBus, VirtioScsi]:
    bus = VirtioMmioBus.find(slot, slot.base, DmaAllocator(1 << 20, 32 << 20))
    assert bus is not None
    return bus, VirtioScsi(bus, options, timeout=60.0)


@pytest.mark.normative("mmio.init.r6", "init.r1", "scsi.feat.r1", "scsi.init.r3")
@pytest.mark.parametrize("boot", BOOTS, ids=str)
def test_a_whole_boot_reads_like_a_story(boot: Boot) -> None:
    lines: list[str] = []
    assert guest(boot, lines.append) == TARGETS * LUNS * (512 << 10)
    story = "\n".join(lines)
    assert len(re.findall(r"^  [0-3]:[0-2]  VSCSIEMU", story, re.MULTILINE)) == TARGETS * LUNS
    assert ("VERSION_1" in story) == (boot.version == MODERN)
    assert ("INDIRECT_DESC" in story) == boot.indirect
    assert ("EVENT_IDX" in story) == boot.event_idx
    assert "LOGICAL UNIT RESET of 0:0: unit attention 29/03" in story
    assert "3:2 was unplugged, 11 disks are left" in story
    assert "no register was misused" in story


@VERSIONS
def test_all_request_queues_carry_commands(version: int) -> None:
    with machine(version) as guest_machine:
        bus, device = attach(guest_machine.slots[0], Options(queues=None))
        assert len(device.queues) == REQUEST_QUEUE + 4
        disk = Disk(device, 0, 0)
        data = pattern(1 << 20)
        disk.write(0, data)
        items = []
        for number in range(256):
            request = Request(
                encode_lun(0, 0),
                cdb.read_10(number * 8, 8),
                device.next_tag(),
                data_in_length=4096,
            )
            items.append(device.submit_request(request, queue=REQUEST_QUEUE + number % 4))
        answers = b"".join(result.data for result in device.wait_all(items))
        assert answers == data
        bus.reset()


@VERSIONS
def test_an_old_guest_that_ignores_limits_is_served(version: int) -> None:
    """More commands in flight than cmd_per_lun, and more data in one than Linux would send."""
    options = Options(obey_limits=False, queue_size=512, features=KNOWN & ~Feature.EVENT_IDX)
    with machine(version) as guest_machine:
        bus, device = attach(guest_machine.slots[0], options)
        disk = Disk(device, 0, 0)
        data = pattern(8 << 20, seed=3)
        disk.write(100, data)
        assert disk.read(100, len(data) // 512) == data
        assert device.config.cmd_per_lun < 400
        items = [device.submit(0, 0, cdb.read_10(100, 1), data_in_length=512) for _ in range(400)]
        assert {result.data for result in device.wait_all(items)} == {data[:512]}
        bus.reset()


@VERSIONS
@pytest.mark.normative("scsi.feat.r1")
def test_a_unit_that_comes_back(version: int) -> None:
    with machine(version, "0:0=mem:1M", "3:7=mem:2M") as guest_machine:
        (slot,) = guest_machine.slots
        bus, device = attach(slot)
        host = ScsiHost(device)
        host.scan(range(8))
        unit = guest_machine.call(lambda: slot.hba.remove_lun((3, 7)))
        assert host.next_changes(5.0) == [Change(Kind.REMOVED, (3, 7))]

        async def plug() -> None:
            slot.hba.add_lun((3, 7), unit)

        guest_machine.call(plug)
        assert host.next_changes(5.0) == [Change(Kind.ADDED, (3, 7))]
        assert host.disks[3, 7].blocks == 4096
        bus.reset()


@VERSIONS
def test_a_device_is_reset_with_commands_in_flight_and_probed_again(version: int) -> None:
    with machine(version) as guest_machine:
        (slot,) = guest_machine.slots
        for seed in range(5):
            bus, device = attach(slot)
            disk = Disk(device, 0, 0)
            data = pattern(64 << 10, seed=seed)
            disk.write(0, data)
            for _ in range(50):
                device.submit(0, 0, cdb.read_10(0, 128), data_in_length=64 << 10)
            bus.reset()
            assert bus.status() == 0
        assert not slot.device.counters


@pytest.mark.normative("mmio.reg.r22", "mmio.reg.r23", "vqreset.r2", "vqreset.r4")
def test_one_queue_is_reset_while_another_runs() -> None:
    features = KNOWN | Feature.RING_RESET
    with machine(MODERN) as guest_machine:
        bus, device = attach(guest_machine.slots[0], Options(queues=None, features=features))
        assert Feature.RING_RESET in device.features
        disk = Disk(device, 0, 0)
        disk.write(0, pattern(4096))
        lost = REQUEST_QUEUE + 1
        for _ in range(20):
            device.submit(0, 0, cdb.read_10(0, 8), data_in_length=4096, queue=lost)
        bus.reset_queue(lost)
        assert disk.read(0, 8) == pattern(4096)
        assert device.restart_queue(lost, size=8).ring.layout.size == 8
        result = device.execute(0, 0, cdb.read_10(0, 8), data_in_length=4096, queue=lost)
        assert result.data == pattern(4096)
        bus.reset()


@VERSIONS
def test_task_management_reaches_commands_over_registers(version: int) -> None:
    with machine(version) as guest_machine:
        bus, device = attach(guest_machine.slots[0])
        assert device.task_management(TmfType.ABORT_TASK_SET, 0, 0) == 0
        assert device.task_management(TmfType.LOGICAL_UNIT_RESET, 0, 0) == 0
        assert device.task_management(TmfType.LOGICAL_UNIT_RESET, 9, 0) == 3
        bus.reset()


@VERSIONS
@pytest.mark.normative("status.r4")
def test_a_broken_ring_needs_a_reset_which_mends_it(version: int) -> None:
    with machine(version) as guest_machine:
        (slot,) = guest_machine.slots
        bus, device = attach(slot)
        ring = device.queues[REQUEST_QUEUE].ring
        slot.memory.store_u16_release(ring.layout.avail_idx, 0x7FFF)
        bus.notify(REQUEST_QUEUE)
        with pytest.raises(NeedsReset):
            device.bus.wait([REQUEST_QUEUE], 5.0)
        bus.reset()
        bus, device = attach(slot)
        assert Disk(device, 0, 0).blocks
        bus.reset()
