"""When the device notifies, and when it wants to be notified (virtio 1.4, 2.7.7 and 2.7.10)."""

import os
import select
import time

import pytest

from tests.conformance import cdb
from tests.conformance.attach import Guest, attach
from tests.conformance.cdb import Disk, expect_good, pattern
from tests.conformance.reads import DEADLINE, add_read, run_unheard, within
from tests.conformance.server import Server
from vscsi_emu.driver.vhost_user import Notify
from vscsi_emu.driver.virtio_scsi import CONTROL_QUEUE, KNOWN, REQUEST_QUEUE, Options
from vscsi_emu.virtio import vhost_user as vu
from vscsi_emu.virtio.features import Feature

NO_EVENT_IDX = KNOWN & ~Feature.EVENT_IDX
QUIET_SECONDS = 0.15


def quiet(guest: Guest) -> None:
    """The ring empty, and no notification pending."""
    guest.device.reap(REQUEST_QUEUE)
    time.sleep(0.02)
    guest.bus.take_call(REQUEST_QUEUE)


def called(guest: Guest, seconds: float) -> bool:
    return within(lambda: guest.bus.take_call(REQUEST_QUEUE) > 0, seconds)


@pytest.mark.normative("split.unotif.d3", "split.unotif.d1")
@pytest.mark.parametrize("used_event", [0, 1, 0x7FFF, 0xFFFF])
def test_flags_0_notifies_each_time(server: Server, used_event: int) -> None:
    with attach(server, Options(features=NO_EVENT_IDX)) as guest:
        Disk(guest.device, 0, 0).ready()
        ring = guest.device.queues[REQUEST_QUEUE].ring
        for _ in range(20):
            quiet(guest)
            ring.enable_notifications()
            guest.memory.store_u16_release(ring.layout.used_event, used_event)
            run_unheard(guest, 1)
            assert called(guest, DEADLINE)


@pytest.mark.normative("split.unotif.d2", "split.unotif.d1")
@pytest.mark.parametrize("used_event_distance", [0, 3])
def test_flags_1_does_not_notify(server: Server, used_event_distance: int) -> None:
    with attach(server, Options(features=NO_EVENT_IDX)) as guest:
        Disk(guest.device, 0, 0).ready()
        ring = guest.device.queues[REQUEST_QUEUE].ring
        quiet(guest)
        ring.disable_notifications()
        event = ring.used_index + used_event_distance
        guest.memory.store_u16_release(ring.layout.used_event, event & 0xFFFF)
        run_unheard(guest, 10)
        assert not called(guest, QUIET_SECONDS)


@pytest.mark.normative("split.unotif.d5", "split.unotif.d6", "split.unotif.d4")
@pytest.mark.parametrize("flags", [0, 1])
def test_event_idx_notifies_exactly_at_used_event(server: Server, flags: int) -> None:
    """A notification once the entry at used_event went in, none for those before."""
    with attach(server) as guest:
        Disk(guest.device, 0, 0).ready()
        ring = guest.device.queues[REQUEST_QUEUE].ring
        guest.memory.store_u16_release(ring.layout.avail_flags, flags)
        for after in (0, 1, 2, 5):
            quiet(guest)
            assert not ring.enable_notifications(after)
            for _ in range(after):
                run_unheard(guest, 1)
            assert not called(guest, 0.05), f"notified before used_event ({after} entries on)"
            run_unheard(guest, 1)
            assert called(guest, DEADLINE), f"not notified at used_event ({after} entries on)"


@pytest.mark.normative("split.unotif.d5")
def test_event_idx_in_the_middle_of_a_batch(server: Server) -> None:
    with attach(server) as guest:
        Disk(guest.device, 0, 0).ready()
        ring = guest.device.queues[REQUEST_QUEUE].ring
        for after in range(8):
            quiet(guest)
            ring.enable_notifications(after)
            run_unheard(guest, 8)
            assert called(guest, DEADLINE)


@pytest.mark.normative("split.unotif.d6")
def test_event_idx_behind_is_silence(server: Server) -> None:
    with attach(server) as guest:
        Disk(guest.device, 0, 0).ready()
        ring = guest.device.queues[REQUEST_QUEUE].ring
        quiet(guest)
        ring.disable_notifications()
        run_unheard(guest, 20)
        assert not called(guest, QUIET_SECONDS)


@pytest.mark.normative("split.unotif.d5")
@pytest.mark.parametrize("features", [KNOWN, NO_EVENT_IDX], ids=["event_idx", "flags"])
def test_indices_past_65536(server: Server, features: Feature) -> None:
    """Notifications stay exact when both indices wrap; each wait here needs one."""
    options = Options(features=features, queue_size=1024, obey_limits=False)
    with attach(server, options) as guest:
        Disk(guest.device, 0, 0).ready()
        ring = guest.device.queues[REQUEST_QUEUE].ring
        # To the brink of the wrap in large batches, over it one by one.
        while ring.used_index < 65536 - 1100:
            run_unheard(guest, 512)
            guest.device.reap(REQUEST_QUEUE)
        while ring.used_index != 20:
            item = add_read(guest)
            guest.device.publish(REQUEST_QUEUE)
            expect_good(guest.device.wait(item))


@pytest.mark.normative("split.anotif.d1")
def test_used_flags_are_0_or_1_without_event_idx(server: Server) -> None:
    with attach(server, Options(features=NO_EVENT_IDX)) as guest:
        Disk(guest.device, 0, 0).ready()
        ring = guest.device.queues[REQUEST_QUEUE].ring
        for _ in range(200):
            run_unheard(guest, 3)
            assert guest.memory.load_u16_acquire(ring.layout.used_flags) in (0, 1)
            guest.device.reap(REQUEST_QUEUE)


@pytest.mark.normative("split.anotif.d3")
def test_used_flags_stay_0_with_event_idx(guest: Guest) -> None:
    Disk(guest.device, 0, 0).ready()
    ring = guest.device.queues[REQUEST_QUEUE].ring
    for _ in range(200):
        run_unheard(guest, 3)
        assert guest.memory.load_u16_acquire(ring.layout.used_flags) == 0
        guest.device.reap(REQUEST_QUEUE)


@pytest.mark.normative("split.anotif.d4")
def test_avail_event_is_what_an_idle_device_waits_for(guest: Guest) -> None:
    Disk(guest.device, 0, 0).ready()
    layout = guest.device.queues[REQUEST_QUEUE].ring.layout
    for _ in range(5):
        run_unheard(guest, 3)
        assert within(
            lambda: (
                guest.memory.load_u16_acquire(layout.avail_event)
                == guest.memory.load_u16_acquire(layout.avail_idx)
            )
        )
        guest.device.reap(REQUEST_QUEUE)


@pytest.mark.normative("split.anotif.d5", "vu.msg.b5")
@pytest.mark.parametrize("value", [1, 2, 0xFFFF_FFFF_0000_0000])
def test_kicks_without_a_buffer(guest: Guest, value: int) -> None:
    """Nor does the value in the eventfd say anything."""
    disk = Disk(guest.device, 0, 0).ready()
    for _ in range(50):
        os.eventfd_write(guest.bus.kick_fd(REQUEST_QUEUE), 1)
    time.sleep(0.02)
    os.eventfd_write(guest.bus.kick_fd(REQUEST_QUEUE), value)
    disk.write(0, pattern(512))
    assert disk.read(0, 1) == pattern(512)
    assert not guest.bus.ring_failed(REQUEST_QUEUE)


def test_a_sleeping_device_is_woken(guest: Guest) -> None:
    """The device sleeps between the commands; each must ask for a kick before."""
    disk = Disk(guest.device, 0, 0).ready()
    for _ in range(10):
        time.sleep(0.05)
        disk.read(0, 1)


@pytest.mark.normative("vu.vring.b12")
@pytest.mark.parametrize("features", [KNOWN, NO_EVENT_IDX], ids=["event_idx", "flags"])
def test_ring_without_kicks_is_polled(server: Server, features: Feature) -> None:
    with attach(server, Options(features=features), kick=Notify.POLL) as guest:
        disk = Disk(guest.device, 0, 0).ready()
        for n in range(10):
            disk.write(n, pattern(512, seed=n))
            time.sleep(0.01)
            assert disk.read(n, 1) == pattern(512, seed=n)


@pytest.mark.normative("vu.vring.b13")
def test_ring_whose_driver_polls(server: Server) -> None:
    with attach(server, call=Notify.POLL) as guest:
        disk = Disk(guest.device, 0, 0).ready()
        disk.write(1, pattern(512))
        assert disk.read(1, 1) == pattern(512)


def test_both_sides_poll(server: Server) -> None:
    with attach(server, kick=Notify.POLL, call=Notify.POLL) as guest:
        disk = Disk(guest.device, 0, 0).ready()
        disk.write(1, pattern(512))
        assert disk.read(1, 1) == pattern(512)


def replace_call(guest: Guest, index: int) -> int:
    """A new call descriptor for ring `index`."""
    fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    guest.bus.front_end.put(vu.SET_VRING_CALL, vu.VringFd.of(index, has_fd=True), [fd])
    return fd


def readable(fd: int, seconds: float) -> bool:
    return bool(select.select([fd], [], [], seconds)[0])


def test_a_new_call_descriptor_is_told_what_the_old_one_was(guest: Guest) -> None:
    """QEMU replaces it after the start; what was used before would never be seen."""
    Disk(guest.device, 0, 0).ready()
    quiet(guest)
    guest.device.queues[REQUEST_QUEUE].ring.enable_notifications()
    run_unheard(guest, 1)
    assert called(guest, DEADLINE)
    fd = replace_call(guest, REQUEST_QUEUE)
    try:
        assert readable(fd, DEADLINE)
    finally:
        os.close(fd)


def test_a_new_call_descriptor_of_an_idle_ring_is_silent(guest: Guest) -> None:
    fd = replace_call(guest, CONTROL_QUEUE)
    try:
        assert not readable(fd, QUIET_SECONDS)
    finally:
        os.close(fd)


@pytest.mark.normative("vu.inband.b3", "vu.inband.b4", "vu.inband.b5")
@pytest.mark.parametrize(
    ("kick", "call"),
    [
        (Notify.INBAND, Notify.INBAND),
        (Notify.INBAND, Notify.EVENTFD),
        (Notify.EVENTFD, Notify.INBAND),
    ],
)
def test_in_band_notifications(server: Server, kick: Notify, call: Notify) -> None:
    with attach(server, kick=kick, call=call) as guest:
        disk = Disk(guest.device, 0, 0).ready()
        for n in range(30):
            disk.write(n, pattern(512, seed=n))
            assert disk.read(n, 1) == pattern(512, seed=n)
        items = [
            guest.device.submit(0, 0, cdb.read_16(i, 1), data_in_length=512) for i in range(100)
        ]
        for n, result in enumerate(guest.device.wait_all(items)):
            expect_good(result)
            assert n >= 30 or result.data == pattern(512, seed=n)
