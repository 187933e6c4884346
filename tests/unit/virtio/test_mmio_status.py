"""Device status and reset (virtio 1.4, 2.1, 2.4, 3.1 and 4.2.2)."""

import pytest

from tests.unit.virtio.mmio import OFFERED, Guest
from vscsi_emu.virtio.features import Status
from vscsi_emu.virtio.mmio import Misuse
from vscsi_emu.virtio.mmio_registers import LEGACY, MODERN, InterruptBit, Register
from vscsi_emu.virtio.mmio_status import STEPS

A, D, OK, F = Status.ACKNOWLEDGE, Status.DRIVER, Status.DRIVER_OK, Status.FEATURES_OK
VERSIONS = (MODERN, LEGACY)


@pytest.mark.normative("status.d5")
@pytest.mark.parametrize("version", VERSIONS)
def test_status_is_0_at_power_on(version: int) -> None:
    assert Guest(version).status == 0


@pytest.mark.normative("mmio.reg.d21")
def test_a_write_sets_flags_and_a_read_returns_them() -> None:
    guest = Guest()
    guest.choose(OFFERED)
    seen = [guest.add_status(bit) for bit in (A, D, F, OK, Status.FAILED)]
    assert seen == [A, A | D, A | D | F, A | D | F | OK, A | D | F | OK | Status.FAILED]
    assert not guest.device.counters


def test_several_steps_in_one_write() -> None:
    guest = Guest()
    guest.choose(OFFERED)
    guest.set(Register.STATUS, A | D | F | OK)
    assert guest.status == A | D | F | OK


@pytest.mark.parametrize(
    ("version", "steps", "refused"),
    [
        (MODERN, [D], D),
        (MODERN, [A, F], F),
        (MODERN, [A, D, OK], OK),
        (LEGACY, [D], D),
        (LEGACY, [A, OK], OK),
        (MODERN, [A, Status.FAILED, D], D),
        (LEGACY, [A, D, Status.FAILED, OK], OK),
    ],
)
def test_steps_out_of_order_are_ignored(version: int, steps: list[Status], refused: Status) -> None:
    guest = Guest(version)
    guest.choose(OFFERED)
    for bit in steps:
        guest.add_status(bit)
    assert refused not in guest.status
    assert guest.device.counters[Misuse.STATUS_ORDER] == 1


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("bit", [16, 32, Status.NEEDS_RESET, 1 << 8, 1 << 31])
def test_bits_that_no_driver_sets_are_ignored(version: int, bit: int) -> None:
    guest = Guest(version)
    guest.set(Register.STATUS, A | bit)
    assert guest.status == A
    assert guest.device.counters == {Misuse.STATUS_RESERVED: 1}


def test_legacy_has_no_features_ok() -> None:
    guest = Guest(LEGACY)
    assert guest.negotiate() == A | D
    assert guest.device.counters == {Misuse.STATUS_RESERVED: 1}


def test_only_a_reset_clears_bits() -> None:
    guest = Guest()
    guest.run()
    guest.set(Register.STATUS, A)
    assert guest.status == A | D | F | OK
    assert guest.device.counters == {Misuse.STATUS_CLEARED: 1}


def test_every_step_requires_bits_that_can_be_set_before_it() -> None:
    for steps in STEPS.values():
        reachable = Status(0)
        for step in steps:
            assert step.requires in reachable
            assert step.reason
            reachable |= step.bit


# ── Reset ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.normative("reset.d1", "mmio.reg.d21")
@pytest.mark.parametrize("version", VERSIONS)
def test_a_reset_reads_back_0_once_it_is_complete(version: int) -> None:
    guest = Guest(version)
    guest.run()
    guest.set(Register.STATUS, 0)
    assert guest.backend.take() == [("reset",)]
    assert guest.status, "the backend has not let go yet"
    guest.device.reset_done()
    assert guest.status == 0


def test_a_reset_under_way_takes_no_other_writes() -> None:
    guest = Guest()
    guest.run()
    guest.set(Register.STATUS, 0)
    guest.backend.take()
    guest.set(Register.STATUS, 0)
    guest.set(Register.STATUS, A)
    guest.enable(0)
    guest.set(Register.QUEUE_NOTIFY, 0)
    guest.device.write(Register.CONFIG + 20, 4, 1)
    assert not guest.backend.calls
    guest.device.reset_done()
    assert guest.status == 0
    assert guest.get(Register.QUEUE_READY) == 0
    assert guest.device.counters[Misuse.DURING_RESET] >= 10


def test_the_first_reset_of_a_driver_is_done_at_once() -> None:
    """Linux does not wait for its first reset."""
    guest = Guest()
    guest.set_up(2)
    guest.set(Register.STATUS, 0)
    assert guest.add_status(A) == A
    assert not guest.backend.calls


@pytest.mark.normative("mmio.reg.d6")
def test_a_reset_clears_queue_ready() -> None:
    guest = Guest()
    guest.negotiate()
    for index in range(4):
        guest.enable(index)
    guest.add_status(OK)
    guest.reset()
    for index in range(4):
        guest.set(Register.QUEUE_SEL, index)
        assert guest.get(Register.QUEUE_READY) == 0


def test_a_queue_that_stops_during_a_reset_shows_it_with_the_reset() -> None:
    guest = Guest()
    guest.run()
    guest.enable(1)
    guest.set(Register.QUEUE_READY, 0)
    guest.set(Register.STATUS, 0)
    guest.device.queue_stopped(1)
    assert guest.get(Register.QUEUE_READY) == 1
    guest.device.reset_done()
    guest.set(Register.QUEUE_SEL, 1)
    assert guest.get(Register.QUEUE_READY) == 0


@pytest.mark.normative("mmio.reg.d5", "reset.d2")
def test_a_reset_clears_the_interrupt_and_stays_silent() -> None:
    guest = Guest()
    guest.run()
    guest.device.config_changed()
    assert guest.get(Register.INTERRUPT_STATUS) == InterruptBit.CONFIG_CHANGE
    guest.set(Register.STATUS, 0)
    guest.device.config_changed()
    guest.device.reset_done()
    assert guest.get(Register.INTERRUPT_STATUS) == 0
    assert not guest.interrupt.level
    guest.device.config_changed()
    assert guest.get(Register.INTERRUPT_STATUS) == 0


def test_a_reset_forgets_what_was_negotiated() -> None:
    guest = Guest()
    guest.run()
    guest.reset()
    assert guest.backend.take() == [("reset",)]
    guest.acknowledge()
    assert Status.FEATURES_OK not in guest.add_status(F), "VERSION_1 is no longer chosen"


def test_reports_that_nobody_waits_for_change_nothing() -> None:
    guest = Guest()
    guest.run()
    guest.enable(0)
    guest.device.reset_done()
    guest.device.queue_stopped(0)
    assert guest.status == A | D | F | OK
    assert guest.get(Register.QUEUE_READY) == 1


# ── DEVICE_NEEDS_RESET ─────────────────────────────────────────────────────────────────────────


@pytest.mark.normative("status.d3", "status.d4")
def test_needs_reset_notifies_of_a_configuration_change() -> None:
    guest = Guest()
    guest.run()
    generation = guest.get(Register.CONFIG_GENERATION)
    guest.device.needs_reset("the ring is broken")
    assert guest.status == A | D | F | OK | Status.NEEDS_RESET
    assert guest.get(Register.INTERRUPT_STATUS) == InterruptBit.CONFIG_CHANGE
    assert guest.get(Register.CONFIG_GENERATION) == generation


def test_needs_reset_notifies_once() -> None:
    guest = Guest()
    guest.run()
    guest.device.needs_reset("one thing")
    guest.set(Register.INTERRUPT_ACK, 3)
    guest.device.needs_reset("and another")
    assert guest.get(Register.INTERRUPT_STATUS) == 0


def test_needs_reset_before_driver_ok_is_silent() -> None:
    guest = Guest(LEGACY)
    guest.acknowledge()
    guest.device.needs_reset("a queue does not start")
    assert Status.NEEDS_RESET in guest.status
    assert guest.get(Register.INTERRUPT_STATUS) == 0


def test_a_reset_is_the_way_out_of_needs_reset() -> None:
    guest = Guest()
    guest.run()
    guest.device.needs_reset("the ring is broken")
    guest.set(Register.STATUS, 0)
    guest.device.needs_reset("another ring broke meanwhile")
    guest.device.reset_done()
    assert guest.status == 0
    guest.run()
    assert Status.NEEDS_RESET not in guest.status
