"""Virtqueues over registers: set up, enabled, notified, stopped, reset (virtio 1.4, 4.2.2, 2.6)."""

import pytest

from tests.unit.virtio.mmio import OFFERED, QUEUES, SETUP, Guest
from vscsi_emu.virtio.features import Feature, Status
from vscsi_emu.virtio.mmio import Misuse
from vscsi_emu.virtio.mmio_queue import QueueSetup
from vscsi_emu.virtio.mmio_registers import InterruptBit, Register, When

OTHER = QueueSetup(16, 0x5000, 0x6000, 0x7000)
WITH_RING_RESET = OFFERED | Feature.RING_RESET
SETUP_REGISTERS = [r for r in Register if r.when is When.QUEUE_UNUSED and 2 in r.versions]


@pytest.fixture
def guest() -> Guest:
    """At DRIVER_OK."""
    guest = Guest()
    guest.run(WITH_RING_RESET)
    return guest


def ready(guest: Guest, index: int) -> int:
    guest.set(Register.QUEUE_SEL, index)
    return guest.get(Register.QUEUE_READY)


# ── Which queue ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.normative("mmio.reg.d18")
@pytest.mark.parametrize(
    ("index", "maximum"), [(0, 1024), (QUEUES - 1, 1024), (QUEUES, 0), (0xFFFF_FFFF, 0)]
)
def test_queue_size_max(guest: Guest, index: int, maximum: int) -> None:
    guest.set(Register.QUEUE_SEL, index)
    assert guest.get(Register.QUEUE_SIZE_MAX) == maximum


def test_registers_of_a_queue_that_is_not_there(guest: Guest) -> None:
    guest.enable(QUEUES)
    guest.set(Register.QUEUE_RESET, 1)
    assert guest.get(Register.QUEUE_READY) == 0
    assert guest.get(Register.QUEUE_RESET) == 0
    assert guest.device.counters == {Misuse.NO_QUEUE: 9}
    assert not guest.backend.calls


@pytest.mark.normative("mmio.reg.d17")
def test_queue_registers_act_on_the_selected_queue(guest: Guest) -> None:
    guest.set_up(0)
    guest.set_up(3, OTHER)
    guest.set(Register.QUEUE_READY, 1)
    assert [ready(guest, index) for index in range(QUEUES)] == [0, 0, 0, 1]
    guest.set(Register.QUEUE_SEL, 0)
    guest.set(Register.QUEUE_READY, 1)
    assert guest.backend.take() == [("start", 3, OTHER), ("start", 0, SETUP)]
    guest.set(Register.QUEUE_SEL, 3)
    guest.set(Register.QUEUE_RESET, 1)
    assert guest.backend.take() == [("stop", 3, True)]
    assert guest.get(Register.QUEUE_RESET) == 1
    guest.set(Register.QUEUE_SEL, 0)
    assert guest.get(Register.QUEUE_RESET) == 0


# ── Start ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.normative("status.d1", "mmio.reg.d8")
def test_queues_start_with_driver_ok() -> None:
    guest = Guest()
    guest.negotiate()
    guest.backend.take()
    guest.set_up(0)
    guest.enable(1)
    guest.enable(2, OTHER)
    assert not guest.backend.calls
    guest.add_status(Status.DRIVER_OK)
    assert guest.backend.take() == [("start", 1, SETUP), ("start", 2, OTHER)]


def test_queues_made_ready_later_start_at_once(guest: Guest) -> None:
    guest.enable(0)
    assert guest.backend.take() == [("start", 0, SETUP)]


@pytest.mark.normative("mmio.reg.d19")
def test_queue_ready_reads_back(guest: Guest) -> None:
    assert ready(guest, 0) == 0
    guest.enable(0)
    assert ready(guest, 0) == 1
    guest.set(Register.QUEUE_READY, 0)
    guest.device.queue_stopped(0)
    assert ready(guest, 0) == 0
    guest.set(Register.QUEUE_READY, 1)
    assert ready(guest, 0) == 1


def test_queue_ready_takes_0_and_1_only(guest: Guest) -> None:
    guest.set_up(0)
    guest.set(Register.QUEUE_READY, 2)
    assert ready(guest, 0) == 0
    assert guest.device.counters == {Misuse.VALUE: 1}


def test_a_ready_queue_is_not_started_twice(guest: Guest) -> None:
    guest.enable(0)
    guest.set(Register.QUEUE_READY, 1)
    assert guest.backend.take() == [("start", 0, SETUP)]


def test_a_ready_queue_keeps_its_setup(guest: Guest) -> None:
    guest.enable(0)
    for register in SETUP_REGISTERS:
        guest.set(register, 0x40)
    assert len(SETUP_REGISTERS) == 7
    assert guest.device.counters == {Misuse.QUEUE_IN_USE: 7}
    guest.set(Register.QUEUE_READY, 0)
    guest.device.queue_stopped(0)
    guest.backend.take()
    guest.set(Register.QUEUE_READY, 1)
    assert guest.backend.take() == [("start", 0, SETUP)]


@pytest.mark.normative("status.d3", "status.d4")
@pytest.mark.parametrize("size", [0, 3, 255, 2048, 1 << 16, 0xFFFF_FFFF])
def test_a_queue_of_a_bad_size_breaks_the_device(guest: Guest, size: int) -> None:
    guest.enable(0, QueueSetup(size, 0x1000, 0x2000, 0x3000))
    assert Status.NEEDS_RESET in guest.status
    assert guest.get(Register.INTERRUPT_STATUS) == InterruptBit.CONFIG_CHANGE
    assert not guest.backend.calls


def test_a_queue_of_a_bad_size_breaks_the_device_at_driver_ok_only() -> None:
    guest = Guest()
    guest.negotiate()
    guest.enable(0, QueueSetup(3, 0x1000, 0x2000, 0x3000))
    assert Status.NEEDS_RESET not in guest.status
    guest.add_status(Status.DRIVER_OK)
    assert Status.NEEDS_RESET in guest.status
    assert guest.get(Register.INTERRUPT_STATUS) == InterruptBit.CONFIG_CHANGE


@pytest.mark.parametrize("size", [1, 2, 1024])
def test_any_power_of_two_up_to_the_maximum_starts(guest: Guest, size: int) -> None:
    setup = QueueSetup(size, 0x1000, 0x2000, 0x3000)
    guest.enable(0, setup)
    assert guest.backend.take() == [("start", 0, setup)]


def test_a_device_that_needs_a_reset_starts_nothing(guest: Guest) -> None:
    guest.device.needs_reset("the ring is broken")
    guest.enable(0)
    assert not guest.backend.calls


def test_a_failed_device_starts_nothing(guest: Guest) -> None:
    guest.add_status(Status.FAILED)
    guest.enable(0)
    assert not guest.backend.calls


# ── Notification ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.normative("mmio.notify.d1")
def test_notify_takes_the_index(guest: Guest) -> None:
    guest.enable(1)
    guest.enable(3)
    guest.backend.take()
    guest.set(Register.QUEUE_SEL, 0)
    for index in (3, 1, 3):
        guest.set(Register.QUEUE_NOTIFY, index)
    assert guest.backend.take() == [("notify", 3), ("notify", 1), ("notify", 3)]


@pytest.mark.parametrize("index", [QUEUES, 0x1_0000, 0xFFFF_FFFF])
def test_notify_of_a_queue_that_is_not_there(guest: Guest, index: int) -> None:
    guest.enable(0)
    guest.backend.take()
    guest.set(Register.QUEUE_NOTIFY, index)
    assert guest.device.counters == {Misuse.NO_QUEUE: 1}
    assert not guest.backend.calls


def test_notify_of_a_queue_that_is_not_ready(guest: Guest) -> None:
    guest.set_up(0)
    guest.set(Register.QUEUE_NOTIFY, 0)
    assert guest.device.counters == {Misuse.NOTIFY_UNUSED: 1}
    assert not guest.backend.calls


@pytest.mark.normative("status.d1")
def test_notify_before_driver_ok() -> None:
    guest = Guest()
    guest.negotiate()
    guest.backend.take()
    guest.enable(0)
    guest.set(Register.QUEUE_NOTIFY, 0)
    assert guest.device.counters == {Misuse.NOTIFY_EARLY: 1}
    assert not guest.backend.calls


# ── QueueReady = 0 ─────────────────────────────────────────────────────────────────────────────


def test_a_stopping_queue_reads_as_ready_until_it_has_stopped(guest: Guest) -> None:
    guest.enable(0)
    guest.backend.take()
    guest.set(Register.QUEUE_READY, 0)
    assert guest.backend.take() == [("stop", 0, False)]
    assert ready(guest, 0) == 1
    guest.set(Register.QUEUE_READY, 0)
    guest.set(Register.QUEUE_READY, 1)
    guest.set(Register.QUEUE_NOTIFY, 0)
    assert not guest.backend.calls
    guest.device.queue_stopped(0)
    assert ready(guest, 0) == 0


def test_other_queues_run_while_one_stops(guest: Guest) -> None:
    guest.enable(0)
    guest.enable(1)
    guest.set(Register.QUEUE_READY, 0)
    guest.backend.take()
    guest.set(Register.QUEUE_NOTIFY, 0)
    assert guest.backend.take() == [("notify", 0)]


def test_a_queue_that_never_started_stops_at_once() -> None:
    guest = Guest()
    guest.negotiate()
    guest.backend.take()
    guest.enable(0)
    guest.set(Register.QUEUE_READY, 0)
    assert ready(guest, 0) == 0
    guest.add_status(Status.DRIVER_OK)
    assert not guest.backend.calls


# ── QueueReset ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.normative("mmio.reg.d9")
def test_queue_reset_reads_0_after_a_device_reset(guest: Guest) -> None:
    guest.enable(0)
    guest.set(Register.QUEUE_RESET, 1)
    guest.reset()
    guest.run(WITH_RING_RESET)
    guest.set(Register.QUEUE_SEL, 0)
    assert guest.get(Register.QUEUE_RESET) == 0


@pytest.mark.normative("mmio.reg.d10")
def test_queue_reset_reads_0_after_the_queue_was_enabled(guest: Guest) -> None:
    guest.enable(0)
    guest.set(Register.QUEUE_RESET, 1)
    guest.device.queue_stopped(0)
    guest.enable(0)
    assert guest.get(Register.QUEUE_RESET) == 0


@pytest.mark.normative("mmio.reg.d11", "mmio.reg.d12", "mmio.reg.d13")
def test_queue_reset_reads_1_until_it_is_complete(guest: Guest) -> None:
    guest.enable(0)
    guest.backend.take()
    guest.set(Register.QUEUE_RESET, 1)
    assert guest.backend.take() == [("stop", 0, True)]
    assert guest.get(Register.QUEUE_RESET) == 1
    guest.set(Register.QUEUE_RESET, 1)
    assert not guest.backend.calls
    guest.device.queue_stopped(0)
    assert guest.get(Register.QUEUE_RESET) == 0
    assert guest.get(Register.QUEUE_READY) == 0


@pytest.mark.normative("vqreset.d1")
def test_a_queue_that_is_reset_is_not_notified(guest: Guest) -> None:
    guest.enable(0)
    guest.set(Register.QUEUE_RESET, 1)
    guest.backend.take()
    guest.set(Register.QUEUE_NOTIFY, 0)
    guest.device.queue_stopped(0)
    guest.set(Register.QUEUE_NOTIFY, 0)
    assert not guest.backend.calls


@pytest.mark.normative("vqreset.d4")
def test_a_queue_that_was_reset_takes_other_parameters(guest: Guest) -> None:
    guest.enable(0)
    guest.set(Register.QUEUE_RESET, 1)
    guest.device.queue_stopped(0)
    guest.backend.take()
    guest.enable(0, OTHER)
    assert guest.backend.take() == [("start", 0, OTHER)]


def test_a_queue_reset_forgets_size_and_addresses(guest: Guest) -> None:
    """The driver sets them up again as at first discovery (2.6.1.2.2)."""
    guest.enable(0)
    guest.set(Register.QUEUE_RESET, 1)
    guest.device.queue_stopped(0)
    guest.backend.take()
    guest.set(Register.QUEUE_READY, 1)
    assert Status.NEEDS_RESET in guest.status
    assert not guest.backend.calls


def test_a_queue_reset_may_overtake_a_stop(guest: Guest) -> None:
    guest.enable(0)
    guest.set(Register.QUEUE_READY, 0)
    guest.set(Register.QUEUE_RESET, 1)
    assert guest.get(Register.QUEUE_RESET) == 1
    guest.device.queue_stopped(0)
    assert (guest.get(Register.QUEUE_RESET), guest.get(Register.QUEUE_READY)) == (0, 0)


def test_a_queue_that_is_not_in_use_is_reset_at_once(guest: Guest) -> None:
    guest.set_up(0)
    guest.set(Register.QUEUE_RESET, 1)
    assert guest.get(Register.QUEUE_RESET) == 0
    assert not guest.backend.calls


def test_queue_reset_needs_ring_reset() -> None:
    guest = Guest()
    guest.run(OFFERED)
    guest.enable(0)
    guest.backend.take()
    guest.set(Register.QUEUE_RESET, 1)
    assert guest.get(Register.QUEUE_RESET) == 0
    assert guest.device.counters == {Misuse.RING_RESET: 1}
    assert not guest.backend.calls


def test_queue_reset_takes_1_only(guest: Guest) -> None:
    guest.enable(0)
    guest.backend.take()
    guest.set(Register.QUEUE_RESET, 0)
    assert guest.device.counters == {Misuse.VALUE: 1}
    assert not guest.backend.calls
