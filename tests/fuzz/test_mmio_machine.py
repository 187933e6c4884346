"""Random register traffic: the register model beside an oracle, after every step."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.fuzz.mmio_oracle import CONFIG_SIZE, Oracle
from tests.unit.virtio.mmio import OFFERED, QUEUES, Guest
from vscsi_emu.virtio.features import Feature
from vscsi_emu.virtio.mmio_registers import LEGACY, MODERN, Register

STEPS = 500_000
"""Of each version."""
WORD = 0xFFFF_FFFF
MODERN_FEATURES = int(OFFERED | Feature.RING_RESET)

VALUES: dict[int, tuple[int, ...]] = {
    Register.DRIVER_FEATURES: (0, MODERN_FEATURES >> 32, 1, MODERN_FEATURES & WORD, 0x101, WORD),
    Register.DRIVER_FEATURES_SEL: (0, 1, 1, 2, WORD),
    Register.GUEST_PAGE_SIZE: (4096, 4096, 1, 1 << 31, 0, 3),
    Register.QUEUE_SEL: (*range(QUEUES), *range(QUEUES), QUEUES, WORD),
    Register.QUEUE_SIZE: (1, 2, 256, 1024, 0, 3, 2048, WORD),
    Register.QUEUE_ALIGN: (4, 4096, 1 << 31, 0, 12),
    Register.QUEUE_PFN: (0, 1, 0x1234, WORD),
    Register.QUEUE_READY: (0, 1, 1, 2),
    Register.QUEUE_NOTIFY: (*range(QUEUES), QUEUES, 0x1_0000),
    Register.INTERRUPT_ACK: (0, 1, 2, 3, WORD),
    Register.STATUS: (0, 1, 3, 7, 11, 11, *(20 * [15]), 143, 64, 16, WORD),
    Register.QUEUE_RESET: (1, 1, 0),
}
"""What is worth writing; to other registers anything is."""
LIKELY = (
    *(4 * [Register.STATUS, Register.QUEUE_SEL, Register.QUEUE_READY, Register.QUEUE_SIZE]),
    *(4 * [Register.QUEUE_PFN, Register.GUEST_PAGE_SIZE, Register.QUEUE_NOTIFY]),
    *(2 * [Register.DRIVER_FEATURES, Register.DRIVER_FEATURES_SEL, Register.QUEUE_RESET]),
    *(register for register in Register if register < Register.CONFIG),
)


class Pair:
    """The model and the oracle, given the same."""

    def __init__(self, version: int) -> None:
        self.guest = Guest(version)
        self.oracle = Oracle(version)
        self.generation = 0
        self.expected = bytes(self.guest.backend.config)
        """The configuration space as the driver must find it."""
        self.seen: Counter[str] = Counter()

    def load(self, offset: int, size: int) -> None:
        value = self.guest.device.read(offset, size)
        assert 0 <= value < 1 << 8 * size
        at = offset - Register.CONFIG
        if at >= 0 and size in (1, 2, 4, 8):
            assert value == int.from_bytes(self.expected[at : at + size], "little")

    def store(self, offset: int, size: int, value: int) -> None:
        self.guest.device.write(offset, size, value)
        at = offset - Register.CONFIG
        if at < 0:
            if size == 4:
                self.oracle.store(offset, value)
        elif self.oracle.store_config(at, size):
            data = value.to_bytes(size, "little")
            self.expected = self.expected[:at] + data + self.expected[at + size :]

    def queue_stopped(self, index: int) -> None:
        self.guest.device.queue_stopped(index)
        self.oracle.queue_stopped(index)

    def reset_done(self) -> None:
        self.guest.device.reset_done()
        self.oracle.reset_done()

    def break_device(self) -> None:
        self.guest.device.needs_reset("because")
        self.oracle.break_device()

    def change_config(self, value: int) -> None:
        self.guest.backend.config[0] = value
        self.guest.device.config_changed()
        self.expected = bytes(self.guest.backend.config)
        self.generation += 1
        self.oracle.change_config()

    def check(self) -> None:
        get, oracle = self.guest.device.read, self.oracle
        assert get(Register.STATUS, 4) == oracle.status
        assert get(Register.INTERRUPT_STATUS, 4) == oracle.interrupt
        queue = oracle.queue
        if oracle.version == MODERN:
            assert get(Register.QUEUE_READY, 4) == (queue is not None and queue.used)
            assert get(Register.QUEUE_RESET, 4) == (queue is not None and queue.resetting)
            assert get(Register.CONFIG_GENERATION, 4) == self.generation
        else:
            assert get(Register.QUEUE_PFN, 4) == (queue.frame if queue else 0)
        calls = self.guest.backend.take()
        assert calls == oracle.calls
        oracle.calls = []
        for call in calls:
            self.seen[str(call[0])] += 1
        if not oracle.status:
            assert not oracle.interrupt, "a reset device notifies of nothing"


class Registers(RuleBasedStateMachine):
    """Hypothesis looks for the shortest way to a difference."""

    @initialize(version=st.sampled_from([MODERN, LEGACY]))
    def power_on(self, version: int) -> None:
        self.pair = Pair(version)

    @rule(data=st.data(), register=st.sampled_from(LIKELY))
    def store(self, data: st.DataObject, register: Register) -> None:
        known = VALUES.get(register)
        values = st.sampled_from(known) if known else st.integers(0, WORD)
        self.pair.store(register, 4, data.draw(values))

    @rule(
        offset=st.integers(0, 0x200),
        size=st.sampled_from([1, 2, 3, 4, 8]),
        value=st.integers(0, (1 << 64) - 1),
    )
    def access(self, offset: int, size: int, value: int) -> None:
        self.pair.load(offset, size)
        self.pair.store(offset, size, value & (1 << 8 * size) - 1)

    @rule(index=st.integers(0, QUEUES - 1))
    def queue_stopped(self, index: int) -> None:
        self.pair.queue_stopped(index)

    @rule()
    def reset_done(self) -> None:
        self.pair.reset_done()

    @rule()
    def break_device(self) -> None:
        self.pair.break_device()

    @rule(value=st.integers(0, 255))
    def change_config(self, value: int) -> None:
        self.pair.change_config(value)

    @invariant()
    def agree(self) -> None:
        self.pair.check()


TestRegisters = Registers.TestCase
TestRegisters.settings = settings(max_examples=200, stateful_step_count=60, deadline=None)


Move = tuple[int, int]
"""A register and a value for it."""


class Walker:
    """Random moves, and now and then a driver's purposeful ones, which are what leads deep in."""

    def __init__(self, pair: Pair, seed: int) -> None:
        self.pair = pair
        self.rng = random.Random(seed)
        self.plan: list[Move] = []

    def step(self) -> None:
        pair, rng = self.pair, self.rng
        if self.plan and rng.random() < 0.9:
            register, value = self.plan.pop(0)
            pair.store(register, 4, value)
            return
        dice = rng.random()
        if dice < 0.50:
            register = rng.choice(LIKELY)
            known = VALUES.get(register)
            pair.store(register, 4, rng.choice(known) if known else rng.getrandbits(32))
        elif dice < 0.65:
            pair.queue_stopped(rng.randrange(QUEUES))
        elif dice < 0.80:
            pair.reset_done()
        elif dice < 0.801:
            pair.break_device()
        elif dice < 0.805:
            pair.change_config(rng.getrandbits(8))
        elif dice < 0.82:
            offset = Register.CONFIG + rng.randrange(CONFIG_SIZE + 8)
            self.access(offset, rng.choice((1, 2, 4, 8)))
        elif dice < 0.85:
            self.access(rng.randrange(Register.CONFIG), rng.choice((1, 2, 3, 4, 8)))
        elif dice < 0.87:
            self.plan += self.probe()
        else:
            self.plan += self.queue()

    def access(self, offset: int, size: int) -> None:
        self.pair.load(offset, size)
        self.pair.store(offset, size, self.rng.getrandbits(8 * size))

    def probe(self) -> list[Move]:
        features = MODERN_FEATURES & ~(self.rng.getrandbits(2) << 28)
        return [
            (Register.STATUS, 0),
            (Register.STATUS, 3),
            (Register.DRIVER_FEATURES_SEL, 1),
            (Register.DRIVER_FEATURES, features >> 32),
            (Register.DRIVER_FEATURES_SEL, 0),
            (Register.DRIVER_FEATURES, features & WORD),
            (Register.GUEST_PAGE_SIZE, 4096),
            (Register.STATUS, 11),
            *(self.queue() if self.rng.random() < 0.5 else []),
            (Register.STATUS, 15),
        ]

    def queue(self) -> list[Move]:
        index = self.rng.randrange(QUEUES)
        return [
            (Register.QUEUE_SEL, index),
            (Register.QUEUE_SIZE, 1 << self.rng.randrange(11)),
            (Register.QUEUE_DESC_HIGH, self.rng.getrandbits(32)),
            (Register.QUEUE_READY, 1),
            (Register.QUEUE_PFN, self.rng.getrandbits(32)),
            (Register.QUEUE_NOTIFY, index),
        ]


@pytest.mark.parametrize("version", [MODERN, LEGACY])
def test_a_long_walk(version: int) -> None:
    pair = Pair(version)
    walker = Walker(pair, seed=version)
    for _ in range(STEPS):
        walker.step()
        pair.check()
    # It went everywhere, not in a corner of the state machine.
    for what in ("features", "start", "stop", "notify", "reset"):
        assert pair.seen[what] > STEPS // 2000, pair.seen
