"""Configuration space and interrupts over registers (virtio 1.4, 2.5 and 4.2)."""

from collections.abc import Callable

import pytest

from tests.unit.virtio.mmio import Guest
from vscsi_emu.virtio.features import Status
from vscsi_emu.virtio.mmio import Misuse
from vscsi_emu.virtio.mmio_registers import LEGACY, MODERN, InterruptBit, Register

CONFIG = Register.CONFIG
SIZE = 36


@pytest.fixture
def guest() -> Guest:
    guest = Guest()
    guest.run()
    return guest


# ── Reads ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.normative("mmio.reg.d23")
@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_config_is_read_at_any_width_and_offset(guest: Guest, size: int) -> None:
    whole = bytes(guest.backend.config)
    for offset in range(SIZE - size + 1):
        value = guest.device.read(CONFIG + offset, size)
        assert value.to_bytes(size, "little") == whole[offset : offset + size]
    assert not guest.device.counters


@pytest.mark.normative("cfg.d1")
@pytest.mark.parametrize("version", [MODERN, LEGACY])
def test_config_is_readable_from_the_start(version: int) -> None:
    guest = Guest(version)
    assert guest.device.read(CONFIG, 4) == 0x04030201


@pytest.mark.parametrize(("offset", "value"), [(34, 0x2423), (36, 0), (0xFE, 0), (1 << 40, 0)])
def test_config_reads_0_past_its_end(guest: Guest, offset: int, value: int) -> None:
    assert guest.device.read(CONFIG + offset, 4) == value
    assert guest.device.counters == {Misuse.OUTSIDE_CONFIG: 1}


@pytest.mark.parametrize("size", [3, 5, 16])
def test_config_widths_that_no_cpu_has(guest: Guest, size: int) -> None:
    assert guest.device.read(CONFIG, size) == 0
    guest.device.write(CONFIG + 20, size, 0)
    assert guest.device.counters == {Misuse.WIDTH: 2}


# ── Writes ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_config_is_written_at_any_width(guest: Guest, size: int) -> None:
    data = bytes(range(0xA0, 0xA0 + size))
    guest.device.write(CONFIG + 20, size, int.from_bytes(data, "little"))
    assert guest.backend.config[20 : 20 + size] == data
    assert guest.device.read(CONFIG + 20, size).to_bytes(size, "little") == data


def test_what_the_backend_refuses_is_not_written(guest: Guest) -> None:
    before = bytes(guest.backend.config)
    for offset in (0, 18, 26):
        guest.device.write(CONFIG + offset, 4, 0xDEAD_BEEF)
    assert guest.backend.config == before
    assert guest.device.read(CONFIG, 4) == 0x04030201
    assert guest.device.counters == {Misuse.CONFIG_REFUSED: 3}


@pytest.mark.parametrize("offset", [33, 36, 1 << 40])
def test_config_is_not_written_past_its_end(guest: Guest, offset: int) -> None:
    before = bytes(guest.backend.config)
    guest.device.write(CONFIG + offset, 4, 0xDEAD_BEEF)
    assert guest.backend.config == before
    assert guest.device.counters == {Misuse.OUTSIDE_CONFIG: 1}


def test_a_reset_shows_the_backends_configuration_again(guest: Guest) -> None:
    guest.device.write(CONFIG + 20, 1, 0x77)
    guest.set(Register.STATUS, 0)
    guest.backend.config[20] = 21
    guest.device.reset_done()
    assert guest.device.read(CONFIG + 20, 1) == 21


# ── ConfigGeneration ───────────────────────────────────────────────────────────────────────────


@pytest.mark.normative("mmio.reg.d22")
def test_generation_stays_without_a_change(guest: Guest) -> None:
    before = guest.get(Register.CONFIG_GENERATION)
    for offset in range(SIZE):
        guest.device.read(CONFIG + offset, 1)
    guest.enable(0)
    guest.device.needs_reset("the ring is broken")
    guest.reset()
    guest.run()
    assert guest.get(Register.CONFIG_GENERATION) == before


@pytest.mark.normative("mmio.reg.d7")
def test_no_read_falls_between_a_change_and_its_generation(guest: Guest) -> None:
    """As a driver reads: generation, both halves, generation. The backend changes at every point
    in between, and tells at every point after that."""
    steps: list[Callable[[], int]] = [
        lambda: guest.get(Register.CONFIG_GENERATION),
        lambda: guest.device.read(CONFIG, 4),
        lambda: guest.device.read(CONFIG + 4, 4),
        lambda: guest.get(Register.CONFIG_GENERATION),
    ]
    for change in range(len(steps)):
        for tell in range(change, len(steps)):
            old = bytes(guest.backend.config[:8])
            new = bytes(byte ^ 0xFF for byte in old)
            seen = []
            for at, step in enumerate(steps):
                if at == change:
                    guest.backend.config[:8] = new
                if at == tell:
                    guest.device.config_changed()
                seen.append(step())
            before, low, high, after = seen
            value = low.to_bytes(4, "little") + high.to_bytes(4, "little")
            assert value in (old, new) or before != after, f"torn at {change}, told at {tell}"


def test_a_write_that_uncovers_a_change_makes_a_generation(guest: Guest) -> None:
    before = guest.get(Register.CONFIG_GENERATION)
    guest.device.write(CONFIG + 20, 1, 0x77)
    assert guest.get(Register.CONFIG_GENERATION) == before, "the driver knows of its own"
    guest.backend.config[0] = 0x99
    guest.device.write(CONFIG + 20, 1, 0x78)
    assert guest.get(Register.CONFIG_GENERATION) != before


@pytest.mark.normative("cfg.d4")
def test_a_change_by_the_device_is_notified(guest: Guest) -> None:
    guest.backend.config[0] = 0x99
    guest.device.config_changed()
    assert guest.get(Register.INTERRUPT_STATUS) == InterruptBit.CONFIG_CHANGE
    assert guest.device.read(CONFIG, 1) == 0x99


def test_a_change_before_driver_ok_makes_a_generation_in_silence() -> None:
    guest = Guest()
    guest.negotiate()
    before = guest.get(Register.CONFIG_GENERATION)
    guest.backend.config[0] = 0x99
    guest.device.config_changed()
    assert guest.get(Register.INTERRUPT_STATUS) == 0
    assert guest.get(Register.CONFIG_GENERATION) != before
    assert guest.device.read(CONFIG, 1) == 0x99


# ── Interrupt ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.normative("mmio.reg.d3", "mmio.reg.d4", "mmio.reg.d20", "mmio.irq.d1")
def test_an_interrupt_lasts_until_it_is_acknowledged(guest: Guest) -> None:
    assert guest.get(Register.INTERRUPT_STATUS) == 0
    assert not guest.interrupt.level
    guest.device.config_changed()
    for mask in (0, InterruptBit.USED_BUFFER, ~0 & ~InterruptBit.CONFIG_CHANGE):
        guest.set(Register.INTERRUPT_ACK, mask)
        assert guest.get(Register.INTERRUPT_STATUS) == InterruptBit.CONFIG_CHANGE
        assert guest.interrupt.level
    guest.set(Register.INTERRUPT_ACK, InterruptBit.CONFIG_CHANGE)
    assert guest.get(Register.INTERRUPT_STATUS) == 0
    assert not guest.interrupt.level


def test_an_interrupt_may_be_acknowledged_during_a_reset(guest: Guest) -> None:
    guest.device.config_changed()
    guest.set(Register.STATUS, 0)
    guest.set(Register.INTERRUPT_ACK, 3)
    assert guest.get(Register.INTERRUPT_STATUS) == 0
    assert guest.status & Status.DRIVER_OK
