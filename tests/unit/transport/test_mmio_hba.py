"""An HBA driven by its registers: the whole way through the data plane and back."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import pytest

from tests.unit.transport.cpu import FIRST, RUNNING, SECONDS, Cpu, machine
from tests.unit.transport.ring import PENDING, Ring
from vscsi_emu._dataplane import Command
from vscsi_emu.hba import DEVICE_FEATURES
from vscsi_emu.virtio.config import ScsiConfig
from vscsi_emu.virtio.features import Feature, Status
from vscsi_emu.virtio.mmio import Misuse
from vscsi_emu.virtio.mmio_queue import QueueSetup
from vscsi_emu.virtio.mmio_registers import LEGACY, InterruptBit, Register
from vscsi_emu.virtio.scsi import Response

SILENCE = 0.05
"""Seconds in which nothing happens, where nothing may."""
PAGE = 4096


@pytest.fixture
def cpu() -> Iterator[Cpu]:
    with machine() as running:
        yield running


@pytest.fixture
def held(cpu: Cpu, monkeypatch: pytest.MonkeyPatch) -> list[Command]:
    """Commands that come to Python wait here, undecided."""
    held: list[Command] = []
    monkeypatch.setattr(cpu.slot.hba, "on_command", held.append)
    return held


@contextmanager
def blocked_loop(cpu: Cpu) -> Iterator[None]:
    """The event loop stands still."""
    entered, go = threading.Event(), threading.Event()

    async def block() -> None:
        entered.set()
        go.wait(SECONDS)

    blocker = threading.Thread(target=lambda: cpu.machine.call(block))
    blocker.start()
    try:
        assert entered.wait(SECONDS)
        yield
    finally:
        go.set()
        blocker.join()


def put_and_hold(cpu: Cpu, ring: Ring, held: list[Command]) -> int:
    """A request that waits in `held` now; its number."""
    number = ring.put()
    cpu.set(Register.QUEUE_NOTIFY, FIRST)
    deadline = time.monotonic() + SECONDS
    while not held:
        assert time.monotonic() < deadline, "no command came"
        time.sleep(0.001)
    return number


# ── Commands ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.normative("mmio.notify.d1", "mmio.reg.d20", "mmio.irq.d1")
def test_a_command_is_answered(cpu: Cpu) -> None:
    ring = cpu.run()
    for _ in range(40):
        cpu.answered(ring)
    assert not cpu.slot.interrupt.level
    assert not cpu.slot.device.counters


@pytest.mark.normative("mmio.leg.d2", "mmio.leg.d3", "init.leg.d2", "feat.leg.d3")
@pytest.mark.parametrize("order", ["<", ">"])
def test_a_legacy_driver_of_any_byte_order(order: Literal["<", ">"]) -> None:
    with machine(LEGACY, order) as cpu:
        cpu.set(Register.STATUS, Status.ACKNOWLEDGE | Status.DRIVER)
        cpu.set(Register.GUEST_PAGE_SIZE, PAGE)
        cpu.set(Register.QUEUE_SEL, FIRST)
        cpu.set(Register.QUEUE_SIZE, 16)
        cpu.set(Register.QUEUE_ALIGN, PAGE)
        cpu.set(Register.QUEUE_PFN, 0x10)
        setup = QueueSetup(16, 0x1_0000, 0x1_0100, 0x1_1000)
        ring = Ring(cpu.machine.memory, setup, 0x2_0000, order)
        cpu.answered(ring)  # before DRIVER_OK
        cpu.set(Register.STATUS, Status.ACKNOWLEDGE | Status.DRIVER | Status.DRIVER_OK)
        cpu.answered(ring)
        cpu.set(Register.QUEUE_PFN, 0)
        cpu.until(Register.QUEUE_PFN, 0)
        ring.put()
        cpu.set(Register.QUEUE_NOTIFY, FIRST)
        time.sleep(SILENCE)
        assert ring.used == 2
        config = b"".join(
            cpu.get(Register.CONFIG + offset, 1).to_bytes(1, "little") for offset in range(36)
        )
        assert ScsiConfig.unpack(config, order) == cpu.slot.hba.config


@pytest.mark.normative("status.d1", "status.d2", "mmio.reg.d8")
def test_nothing_is_taken_before_driver_ok(cpu: Cpu) -> None:
    cpu.negotiate()
    ring = cpu.enable(FIRST)
    number = ring.put()
    cpu.set(Register.QUEUE_NOTIFY, FIRST)
    time.sleep(SILENCE)
    assert ring.used == 0
    assert ring.response(number) == PENDING
    assert cpu.get(Register.INTERRUPT_STATUS) == 0
    cpu.set(Register.STATUS, RUNNING)
    ring.wait(1)
    assert ring.response(number) == Response.OK


@pytest.mark.normative("feat.d4", "mmio.rsvd.d1", "rsvd.leg.d4")
def test_offered_features(cpu: Cpu) -> None:
    words = []
    for word in range(4):
        cpu.set(Register.DEVICE_FEATURES_SEL, word)
        words.append(cpu.get(Register.DEVICE_FEATURES))
    assert words[0] | words[1] << 32 == DEVICE_FEATURES | Feature.RING_RESET
    assert words[2:] == [0, 0]


# ── Reset ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.normative("reset.d1", "reset.d3", "reset.d2", "mmio.reg.d8")
def test_a_reset_device_leaves_queues_alone(cpu: Cpu) -> None:
    ring = cpu.run()
    cpu.answered(ring)
    cpu.reset()
    number = ring.put()
    cpu.set(Register.QUEUE_NOTIFY, FIRST)
    time.sleep(SILENCE)
    assert ring.used == 1
    assert ring.response(number) == PENDING
    assert cpu.get(Register.INTERRUPT_STATUS) == 0


@pytest.mark.normative("mmio.reg.d21")
def test_status_is_not_0_before_the_queues_have_stopped(cpu: Cpu) -> None:
    ring = cpu.run()
    cpu.answered(ring)
    with blocked_loop(cpu):
        cpu.set(Register.STATUS, 0)
        assert cpu.status
        cpu.set(Register.QUEUE_SEL, FIRST)
        assert cpu.get(Register.QUEUE_READY) == 1
    cpu.until(Register.STATUS, 0)
    assert cpu.get(Register.QUEUE_READY) == 0


def test_a_reset_ends_commands_that_wait_for_a_decision(cpu: Cpu, held: list[Command]) -> None:
    ring = cpu.run()
    number = put_and_hold(cpu, ring, held)
    cpu.reset()
    assert ring.response(number) == Response.RESET
    held[0].finish(0)  # too late
    assert ring.response(number) == Response.RESET
    assert cpu.get(Register.INTERRUPT_STATUS) == 0


def test_a_device_works_again_after_each_reset(cpu: Cpu) -> None:
    for _ in range(5):
        ring = cpu.run()
        cpu.answered(ring)
        cpu.reset()
        # As a driver does: the next round's queue begins with an empty ring.
        ring.memory.write(ring.setup.driver, bytes(64))


# ── What breaks ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.normative("status.d3", "status.d4")
def test_a_broken_ring_needs_a_reset(cpu: Cpu) -> None:
    ring = cpu.run()
    cpu.answered(ring)
    ring.jump(1000)
    cpu.set(Register.QUEUE_NOTIFY, FIRST)
    cpu.until(Register.STATUS, RUNNING | Status.NEEDS_RESET)
    assert cpu.get(Register.INTERRUPT_STATUS) & InterruptBit.CONFIG_CHANGE
    cpu.set(Register.QUEUE_NOTIFY, FIRST)
    cpu.reset()
    ring.memory.write(ring.setup.driver, bytes(64))
    cpu.answered(cpu.run())


@pytest.mark.normative("status.d3", "status.d4")
@pytest.mark.parametrize(
    "parts",
    [
        {"desc": 0x1_0008},
        {"driver": 0x1_4001},
        {"device": 0x1_5002},
        {"desc": 1 << 40},
        {"device": (1 << 64) - 4},
        {"driver": (64 << 20) - 16},
    ],
)
def test_a_queue_that_cannot_start_needs_a_reset(cpu: Cpu, parts: dict[str, int]) -> None:
    cpu.run()
    cpu.enable(FIRST + 1, **parts)
    cpu.until(Register.STATUS, RUNNING | Status.NEEDS_RESET)
    assert cpu.get(Register.INTERRUPT_STATUS) == InterruptBit.CONFIG_CHANGE
    cpu.set(Register.QUEUE_READY, 0)
    cpu.until(Register.QUEUE_READY, 0)
    cpu.reset()


# ── One queue of several ───────────────────────────────────────────────────────────────────────


def test_a_stopping_queue_ends_when_its_commands_have(cpu: Cpu, held: list[Command]) -> None:
    ring = cpu.run()
    number = put_and_hold(cpu, ring, held)
    cpu.set(Register.QUEUE_READY, 0)
    time.sleep(SILENCE)
    assert cpu.get(Register.QUEUE_READY) == 1
    held[0].finish(0)
    cpu.until(Register.QUEUE_READY, 0)
    assert ring.response(number) == Response.OK


@pytest.mark.normative("mmio.reg.d11", "mmio.reg.d13", "vqreset.d1", "vqreset.d2", "vqreset.d3")
def test_a_queue_is_reset_while_others_run(cpu: Cpu) -> None:
    cpu.negotiate()
    one, other = cpu.enable(FIRST), cpu.enable(FIRST + 1)
    cpu.set(Register.STATUS, RUNNING)
    for _ in range(3):
        cpu.answered(one)
    cpu.set(Register.QUEUE_SEL, FIRST)
    cpu.set(Register.QUEUE_RESET, 1)
    cpu.until(Register.QUEUE_RESET, 0)
    assert cpu.get(Register.QUEUE_READY) == 0
    one.put()
    cpu.set(Register.QUEUE_NOTIFY, FIRST)
    time.sleep(SILENCE)
    assert one.used == 3
    assert cpu.get(Register.INTERRUPT_STATUS) == 0
    cpu.answered(other, FIRST + 1)

    one.jump(0)
    again = cpu.enable(FIRST)
    cpu.answered(again)
    assert again.used == 1, "the used index starts anew, whatever the memory says"


@pytest.mark.normative("vqreset.d4")
def test_a_queue_that_was_reset_has_its_new_size(cpu: Cpu) -> None:
    ring = cpu.run()
    cpu.answered(ring)
    cpu.set(Register.QUEUE_RESET, 1)
    cpu.until(Register.QUEUE_RESET, 0)
    ring.memory.write(ring.setup.driver, bytes(64))
    small = cpu.enable(FIRST, 4, desc=0x9_0000, driver=0x9_4000, device=0x9_5000)
    for _ in range(9):  # round and round
        cpu.answered(small)


@pytest.mark.normative("mmio.reg.d12")
def test_queue_reset_reads_1_before_the_queue_has_stopped(cpu: Cpu) -> None:
    ring = cpu.run()
    cpu.answered(ring)
    with blocked_loop(cpu):
        cpu.set(Register.QUEUE_RESET, 1)
        assert cpu.get(Register.QUEUE_RESET) == 1
    cpu.until(Register.QUEUE_RESET, 0)


# ── Configuration space ────────────────────────────────────────────────────────────────────────


@pytest.mark.normative("cfg.d1", "cfg.d3", "mmio.reg.d23")
def test_configuration_before_features_ok(cpu: Cpu) -> None:
    data = b"".join(
        cpu.get(Register.CONFIG + offset, 4).to_bytes(4, "little") for offset in range(0, 36, 4)
    )
    assert ScsiConfig.unpack(data) == cpu.slot.hba.config
    assert cpu.get(Register.CONFIG) == 2


def test_the_driver_writes_its_sizes(cpu: Cpu) -> None:
    cpu.negotiate()
    cpu.set(Register.CONFIG + 20, 64)
    cpu.set(Register.CONFIG + 24, 16)
    assert (cpu.slot.hba.config.sense_size, cpu.slot.hba.config.cdb_size) == (64, 16)
    cpu.set(Register.CONFIG, 9)
    cpu.set(Register.CONFIG + 24, 0)
    assert cpu.slot.device.counters == {Misuse.CONFIG_REFUSED: 2}
    assert cpu.get(Register.CONFIG + 24) == 16
    cpu.reset()
    assert (cpu.get(Register.CONFIG + 20), cpu.get(Register.CONFIG + 24)) == (96, 32)


@pytest.mark.normative("cfg.d4", "mmio.reg.d7")
def test_a_change_of_limits_is_notified(cpu: Cpu) -> None:
    cpu.run()
    before = cpu.get(Register.CONFIG_GENERATION)
    sectors = cpu.get(Register.CONFIG + 8)
    hba = cpu.slot.hba

    async def unplug() -> None:
        await hba.remove_lun((0, 0))

    cpu.machine.call(unplug)
    assert cpu.get(Register.INTERRUPT_STATUS) == InterruptBit.CONFIG_CHANGE
    assert cpu.get(Register.CONFIG_GENERATION) != before
    assert cpu.get(Register.CONFIG + 8) == hba.config.max_sectors != sectors


def test_two_threads_on_the_registers(cpu: Cpu) -> None:
    """One changes the configuration all the time, the other one's writes stay all the same."""
    hba = cpu.slot.hba
    cpu.negotiate()
    stop = threading.Event()

    async def change() -> None:
        hba.add_lun((0, 0), await hba.remove_lun((0, 0)))

    def changes() -> None:
        while not stop.is_set():
            cpu.machine.call(change)

    changer = threading.Thread(target=changes)
    changer.start()
    try:
        for number in range(500):
            size = 18 + number % 200
            cpu.set(Register.CONFIG + 20, size)
            assert cpu.get(Register.CONFIG + 20) == size
            assert hba.config.sense_size == size
    finally:
        stop.set()
        changer.join()
