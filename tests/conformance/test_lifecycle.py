"""Rings, memory and the device over their lives ("Ring states", "Memory" of vhost-user)."""

import os
import time
from pathlib import Path

import pytest

from tests.conformance import cdb
from tests.conformance.attach import GUEST_BASE, GUEST_SIZE, Guest, attach, connect
from tests.conformance.cdb import Disk, expect_good, pattern
from tests.conformance.conftest import make_image
from tests.conformance.reads import add_read, run_unheard, used_idx, within
from tests.conformance.server import Server
from vscsi_emu.driver.dma import DmaAllocator
from vscsi_emu.driver.front_end import RequestRefused
from vscsi_emu.driver.vhost_user import SUPPORTED
from vscsi_emu.driver.virtio_scsi import (
    CDB_SIZE_OFFSET,
    REQUEST_QUEUE,
    SENSE_SIZE_OFFSET,
    Options,
    VirtioScsi,
)
from vscsi_emu.virtio import vhost_user as vu
from vscsi_emu.virtio.config import DEFAULT_CDB_SIZE, DEFAULT_SENSE_SIZE
from vscsi_emu.virtio.features import Status
from vscsi_emu.virtio.vhost_user import ProtocolFeature

QUIET_SECONDS = 0.1


def enable(guest: Guest, on: bool) -> None:
    guest.front_end.put(vu.SET_VRING_ENABLE, vu.VringState(REQUEST_QUEUE, int(on)))


def put_kick(guest: Guest, fd: int) -> None:
    guest.front_end.put(vu.SET_VRING_KICK, vu.VringFd.of(REQUEST_QUEUE), [fd])


# ── Stop and start ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.normative("vu.vring.b5", "vu.ring.b8", "vu.ring.b9", "vu.vring.b3")
def test_stop_and_go_on(guest: Guest) -> None:
    """GET_VRING_BASE tells the next available index; the ring goes on from there."""
    disk = Disk(guest.device, 0, 0).ready()
    for n in range(5):
        disk.write(n, pattern(512, seed=n))
        ring = guest.device.queues[REQUEST_QUEUE].ring
        base = guest.bus.stop_queue(REQUEST_QUEUE)
        assert base == ring.used_index == used_idx(guest)
        guest.bus.configure_queue(REQUEST_QUEUE, ring.layout, base=base)
        guest.bus.run_queue(REQUEST_QUEUE)
        assert disk.read(n, 1) == pattern(512, seed=n)


@pytest.mark.normative("vu.ring.b9", "vu.ring.b6")
def test_a_new_kick_descriptor_starts_a_stopped_ring_again(guest: Guest) -> None:
    """Without any other message: size, addresses and index are kept."""
    disk = Disk(guest.device, 0, 0).ready()
    disk.write(1, pattern(512))
    guest.bus.stop_queue(REQUEST_QUEUE)
    put_kick(guest, guest.bus.kick_fd(REQUEST_QUEUE))
    assert disk.read(1, 1) == pattern(512)


@pytest.mark.normative("vu.ring.b1", "vu.ring.b8", "vu.susp.b1", "vu.susp.b2")
def test_a_stopped_ring_is_left_alone(guest: Guest) -> None:
    Disk(guest.device, 0, 0).ready()
    for queue in (0, 1, REQUEST_QUEUE):
        guest.bus.stop_queue(queue)
    guest.bus.take_call(REQUEST_QUEUE)
    item = add_read(guest)
    guest.device.queues[REQUEST_QUEUE].ring.publish()
    snapshot = guest.memory.read(GUEST_BASE, GUEST_SIZE)
    os.eventfd_write(guest.bus.kick_fd(REQUEST_QUEUE), 1)
    time.sleep(QUIET_SECONDS)
    assert guest.memory.read(GUEST_BASE, GUEST_SIZE) == snapshot
    assert guest.bus.take_call(REQUEST_QUEUE) == 0
    guest.bus.run_queue(REQUEST_QUEUE)
    expect_good(guest.device.wait(item))


@pytest.mark.normative("vu.susp.b4")
def test_messages_are_answered_while_all_rings_are_stopped(guest: Guest) -> None:
    for queue in (0, 1, REQUEST_QUEUE):
        guest.bus.stop_queue(queue)
    assert guest.front_end.get_u64(vu.GET_FEATURES)
    assert guest.bus.read_config(0, 4)


@pytest.mark.normative("vu.vring.b7")
def test_stopping_waits_for_what_is_in_flight(server: Server) -> None:
    with attach(server, Options(queue_size=256)) as guest:
        Disk(guest.device, 0, 0).ready()
        for _ in range(5):
            data = pattern(64 * 512)
            items = [
                guest.device.submit(0, 0, cdb.write_16(64 * n, 64), data_out=data)
                for n in range(60)
            ]
            base = guest.bus.stop_queue(REQUEST_QUEUE)
            assert used_idx(guest) == base, "answered before the ring was drained"
            guest.bus.run_queue(REQUEST_QUEUE)
            for result in guest.device.wait_all(items):
                expect_good(result)


def test_stop_and_go_under_load(server: Server) -> None:
    """Nothing is lost or done twice over 30 restarts in the middle of I/O."""
    with attach(server, Options(queue_size=256)) as guest:
        Disk(guest.device, 0, 0).ready()
        for _ in range(30):
            items = [
                guest.device.submit(0, 0, cdb.read_16(n, 8), data_in_length=4096) for n in range(20)
            ]
            guest.bus.stop_queue(REQUEST_QUEUE)
            guest.bus.run_queue(REQUEST_QUEUE)
            for result in guest.device.wait_all(items):
                expect_good(result)


@pytest.mark.normative("vu.ring.b10", "split.supply.d1")
def test_what_is_there_before_the_start_is_served_without_a_kick(guest: Guest) -> None:
    Disk(guest.device, 0, 0).ready()
    guest.bus.stop_queue(REQUEST_QUEUE)
    item = add_read(guest)
    guest.device.queues[REQUEST_QUEUE].ring.publish()
    kick = os.eventfd(0, os.EFD_NONBLOCK)
    put_kick(guest, kick)
    os.close(kick)
    expect_good(guest.device.wait(item))


# ── Enable and disable ──────────────────────────────────────────────────────────────────────────


@pytest.mark.normative("vu.ring.b3", "vu.ring.b4", "vu.ring.b11")
def test_a_disabled_ring_has_no_effect(guest: Guest) -> None:
    disk = Disk(guest.device, 0, 0).ready()
    disk.write(40, pattern(512, seed=1))
    enable(guest, False)
    item = guest.device.submit(0, 0, cdb.write_16(40, 1), data_out=pattern(512, seed=2))
    time.sleep(QUIET_SECONDS)
    assert not item.done
    assert used_idx(guest) == guest.device.queues[REQUEST_QUEUE].ring.used_index
    enable(guest, True)
    expect_good(guest.device.wait(item))
    assert disk.read(40, 1) == pattern(512, seed=2)


@pytest.mark.normative("vu.ring.b2")
@pytest.mark.parametrize("kicked", [False, True])
def test_enabled_after_the_start(guest: Guest, kicked: bool) -> None:
    Disk(guest.device, 0, 0).ready()
    guest.bus.stop_queue(REQUEST_QUEUE)
    enable(guest, False)
    put_kick(guest, guest.bus.kick_fd(REQUEST_QUEUE))
    item = add_read(guest)
    guest.device.queues[REQUEST_QUEUE].ring.publish()
    if kicked:
        guest.bus.notify(REQUEST_QUEUE)
    time.sleep(QUIET_SECONDS)
    assert used_idx(guest) == guest.device.queues[REQUEST_QUEUE].ring.used_index
    enable(guest, True)
    expect_good(guest.device.wait(item))


@pytest.mark.normative("vu.ring.b2")
def test_enabled_before_the_start(guest: Guest) -> None:
    Disk(guest.device, 0, 0).ready()
    guest.bus.stop_queue(REQUEST_QUEUE)
    enable(guest, False)
    enable(guest, True)
    item = add_read(guest)
    guest.device.queues[REQUEST_QUEUE].ring.publish()
    put_kick(guest, guest.bus.kick_fd(REQUEST_QUEUE))
    expect_good(guest.device.wait(item))


@pytest.mark.normative("vu.ring.b5")
def test_a_ring_is_disabled_at_first(server: Server) -> None:
    with attach(server, enable=False) as guest:
        item = guest.device.submit(0, 0, cdb.test_unit_ready())
        guest.bus.notify(REQUEST_QUEUE)
        time.sleep(QUIET_SECONDS)
        assert used_idx(guest) == 0
        enable(guest, True)
        assert guest.device.wait(item).response == 0


@pytest.mark.normative("vu.ring.b12")
def test_features_without_bit_30_enable_all_rings(server: Server) -> None:
    with attach(server, enable=False) as guest:
        guest.front_end.put_u64(vu.SET_FEATURES, guest.device.features)
        Disk(guest.device, 0, 0).ready()


# ── Changes while a ring runs ───────────────────────────────────────────────────────────────────


@pytest.mark.normative("vu.ring.b13")
def test_a_second_kick_descriptor_on_a_running_ring(guest: Guest) -> None:
    disk = Disk(guest.device, 0, 0).ready()
    kick = os.eventfd(0, os.EFD_NONBLOCK)
    put_kick(guest, kick)
    for _ in range(3):
        time.sleep(0.02)  # let the device sleep
        item = add_read(guest)
        guest.device.queues[REQUEST_QUEUE].ring.publish()
        os.eventfd_write(kick, 1)
        expect_good(guest.device.wait(item))
    put_kick(guest, guest.bus.kick_fd(REQUEST_QUEUE))
    os.close(kick)
    disk.read(0, 1)


@pytest.mark.normative("vu.ring.b13")
def test_a_second_call_descriptor_on_a_running_ring(guest: Guest) -> None:
    Disk(guest.device, 0, 0).ready()
    guest.device.queues[REQUEST_QUEUE].ring.enable_notifications()
    call = os.eventfd(0, os.EFD_NONBLOCK)
    guest.front_end.put(vu.SET_VRING_CALL, vu.VringFd.of(REQUEST_QUEUE), [call])
    guest.bus.take_call(REQUEST_QUEUE)
    run_unheard(guest, 1)
    assert within(lambda: guest.front_end.poll([call], 0) == {call})
    assert guest.bus.take_call(REQUEST_QUEUE) == 0, "the old descriptor was used"
    os.close(call)


@pytest.mark.normative("vu.ring.b13", "vu.mem.b1")
def test_a_new_memory_table_under_load(server: Server) -> None:
    """The same memory, cut differently each time, through the buffers (a ring is contiguous)."""
    with attach(server, Options(queue_size=256)) as guest:
        Disk(guest.device, 0, 0).ready()
        region = guest.bus.regions[0]
        assert all(
            q.ring.layout.device < GUEST_BASE + 7 * 4096 for q in guest.device.queues.values()
        )
        for cut in range(8, 48):
            items = [
                guest.device.submit(0, 0, cdb.read_16(n, 8), data_in_length=4096) for n in range(20)
            ]
            first = cut * 4096
            guest.bus.regions = (
                vu.MemoryRegion(region.guest_address, first, region.user_address, 0),
                vu.MemoryRegion(
                    region.guest_address + first,
                    region.size - first,
                    region.user_address + first,
                    first,
                ),
            )
            guest.bus.set_memory_table()
            for result in guest.device.wait_all(items):
                expect_good(result)


@pytest.mark.normative("vu.slots.b2", "vu.slots.b3", "vu.slots.b4", "vu.slots.b5", "vu.slots.b6")
@pytest.mark.parametrize("stray_fd", [False, True])
def test_regions_added_and_removed(server: Server, stray_fd: bool) -> None:
    size = 8 << 20
    with attach(server, size=size) as guest:
        region = guest.bus.regions[0]
        far = GUEST_BASE + (1 << 36)
        extra = vu.SingleRegion(far, size, region.user_address + (1 << 36), 0)
        for _ in range(3):
            # The same memory, seen at a second address.
            guest.front_end.put(vu.ADD_MEM_REG, extra, [guest.memory.fileno()])
            assert _status_through(guest, far) == 0
            gone = vu.SingleRegion(far, size, extra.user_address, 0x1234_5000)
            guest.front_end.put(vu.REM_MEM_REG, gone, [guest.memory.fileno()] if stray_fd else [])
        Disk(guest.device, 0, 0).ready()
        with pytest.raises(RequestRefused):
            guest.front_end.put(vu.REM_MEM_REG, extra)


def _status_through(guest: Guest, base: int) -> int:
    """A command whose buffers the device reaches through the region at `base`; its status."""
    item = add_read(guest)
    ring = guest.device.queues[REQUEST_QUEUE].ring
    (head,) = ring.heads
    # The chain is one indirect table; both it and its entries are moved over.
    for address in _address_fields(guest, ring.layout.descriptor(head)):
        value = int.from_bytes(guest.memory.read(address, 8), "little")
        guest.memory.write(address, (value - GUEST_BASE + base).to_bytes(8, "little"))
    guest.device.publish(REQUEST_QUEUE)
    result = guest.device.wait(item)
    if result.status:  # the power-on unit attention
        return _status_through(guest, base)
    return result.status


def _address_fields(guest: Guest, descriptor: int) -> list[int]:
    """Where the addresses of an indirect chain stand: its table's entries, then its own."""
    raw = guest.memory.read(descriptor, 16)
    table = int.from_bytes(raw[:8], "little")
    length = int.from_bytes(raw[8:12], "little")
    return [*range(table, table + length, 16), descriptor]


@pytest.mark.normative("vu.slots.b1")
def test_memory_slots(guest: Guest) -> None:
    assert guest.front_end.get_u64(vu.GET_MAX_MEM_SLOTS) >= 8


@pytest.mark.normative("vu.mem.b5")
def test_ring_addresses_are_guest_addresses_with_gpa_addresses(server: Server) -> None:
    features = SUPPORTED | ProtocolFeature.GPA_ADDRESSES
    with attach(server, protocol_features=features) as guest:
        assert ProtocolFeature.GPA_ADDRESSES in guest.front_end.protocol_features
        disk = Disk(guest.device, 0, 0).ready()
        disk.write(0, pattern(512))
        assert disk.read(0, 1) == pattern(512)


# ── Reset ───────────────────────────────────────────────────────────────────────────────────────


def use_and_reset(guest: Guest) -> None:
    """A working device with its own sizes, then reset by the bus, then probed again."""
    device = VirtioScsi(guest.bus, Options(cdb_size=64, sense_size=128))
    assert (device.config.cdb_size, device.config.sense_size) == (64, 128)
    Disk(device, 0, 0).ready().read(0, 1)
    guest.bus.reset()
    assert guest.bus.status() == 0
    assert guest.bus.read_config(CDB_SIZE_OFFSET, 4) == DEFAULT_CDB_SIZE.to_bytes(4, "little")
    assert guest.bus.read_config(SENSE_SIZE_OFFSET, 4) == DEFAULT_SENSE_SIZE.to_bytes(4, "little")
    Disk(VirtioScsi(guest.bus), 0, 0).ready().read(0, 1)


@pytest.mark.normative("scsi.cfg.d11", "scsi.cfg.d12", "vu.reset.b2", "vu.reset.b3")
def test_reset_device(server: Server) -> None:
    without_status = SUPPORTED & ~ProtocolFeature.STATUS
    with attach(server, protocol_features=without_status) as guest:
        use_and_reset(guest)


@pytest.mark.normative(
    "scsi.cfg.d11", "scsi.cfg.d12", "vu.status.b1", "vu.status.b2", "status.d5", "reset.d1"
)
def test_reset_by_status(server: Server) -> None:
    without_reset = SUPPORTED & ~ProtocolFeature.RESET_DEVICE
    with attach(server, protocol_features=without_reset) as guest:
        use_and_reset(guest)


@pytest.mark.normative("vu.reset.b1")
def test_reset_device_disables_rings(server: Server) -> None:
    with attach(server, enable=False) as guest:
        enable(guest, True)
        Disk(guest.device, 0, 0).ready()
        guest.front_end.put(vu.RESET_DEVICE)
        item = add_read(guest)
        guest.device.queues[REQUEST_QUEUE].ring.publish()
        guest.bus.set_driver_features(guest.device.features)
        guest.bus.run_queue(REQUEST_QUEUE)
        time.sleep(QUIET_SECONDS)
        assert used_idx(guest) == guest.device.queues[REQUEST_QUEUE].ring.used_index
        enable(guest, True)
        assert guest.device.wait(item).response == 0


@pytest.mark.normative("scsi.req.d17", "reset.d2", "reset.d3")
@pytest.mark.parametrize("by_status", [False, True])
def test_reset_completes_all_commands_first(server: Server, by_status: bool) -> None:
    """Once the reset is acknowledged each command was answered, and nothing moves any more."""
    with attach(server, Options(queue_size=256)) as guest:
        Disk(guest.device, 0, 0).ready()
        items = [
            guest.device.submit(0, 0, cdb.write_16(64 * n, 64), data_out=pattern(64 * 512))
            for n in range(60)
        ]
        if by_status:
            guest.front_end.put_u64(vu.SET_STATUS, 0)
        else:
            guest.front_end.put(vu.RESET_DEVICE)
        snapshot = guest.memory.read(GUEST_BASE, GUEST_SIZE)
        guest.device.reap(REQUEST_QUEUE)
        taken = [item for item in items if item.done]
        for result in (item.parse(item.ticket.reply) for item in taken):
            assert result.response in (0, 4, 9)  # OK, RESET, FAILURE
        guest.bus.take_call(REQUEST_QUEUE)
        time.sleep(QUIET_SECONDS)
        assert guest.memory.read(GUEST_BASE, GUEST_SIZE) == snapshot
        assert guest.bus.take_call(REQUEST_QUEUE) == 0


@pytest.mark.normative("vu.status.b1", "vu.status.b2")
def test_status_reads_back(server: Server) -> None:
    with connect(server) as bus:
        bus.reset()
        for status in (Status.ACKNOWLEDGE, Status.ACKNOWLEDGE | Status.DRIVER):
            bus.set_status(status)
            assert bus.status() == status


# ── Sizes ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.normative("vu.mq.b1", "vu.mq.b3", "scsi.cfg.d7")
def test_128_request_queues(tmp_path: Path) -> None:
    with Server([str(make_image(tmp_path))], queues=128) as server:
        with attach(server, Options(queues=None, queue_size=16)) as guest:
            assert guest.device.config.num_queues == 128
            assert guest.bus.max_queues == 130
            Disk(guest.device, 0, 0).ready()
            queues = range(REQUEST_QUEUE, REQUEST_QUEUE + 128)
            items = [
                guest.device.submit(
                    0, 0, cdb.write_16(q, 1), data_out=pattern(512, seed=q), queue=q
                )
                for q in queues
            ]
            for result in guest.device.wait_all(items):
                expect_good(result)
            for q in queues:
                read = guest.device.execute(0, 0, cdb.read_16(q, 1), data_in_length=512, queue=q)
                assert read.data == pattern(512, seed=q)
        server.check()


def test_many_clients_one_after_another(server: Server) -> None:
    for n in range(30):
        with attach(server, size=1 << 20) as guest:
            disk = Disk(guest.device, 0, 0).ready()
            disk.write(n, pattern(512, seed=n))


def test_allocator_of_the_driver_has_no_leak(guest: Guest) -> None:
    disk = Disk(guest.device, 0, 0).ready()
    allocator = guest.bus.allocator
    assert isinstance(allocator, DmaAllocator)
    before = allocator.allocated
    for _ in range(20):
        disk.read(0, 8)
    assert allocator.allocated == before
