"""Random ring contents behind registers: a ring may break, and a reset repairs it."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.transport.cpu import FIRST, RUNNING, SECONDS, Cpu, machine
from vscsi_emu.virtio.features import Status
from vscsi_emu.virtio.mmio_registers import InterruptBit, Register

QUEUE = 16
RAM_END = 64 << 20

addresses = st.one_of(
    st.integers(0x2_0000, 0x6_0000),
    st.sampled_from([0, RAM_END - 1, RAM_END, (1 << 64) - 1]),
    st.integers(0, (1 << 64) - 1),
)
lengths = st.one_of(st.integers(0, 600), st.sampled_from([16, 51, 108, 4096, 0xFFFF_FFFF]))
flags = st.one_of(st.integers(0, 7), st.integers(0, 0xFFFF))
indices = st.one_of(st.integers(0, QUEUE - 1), st.integers(0, 0xFFFF))
tables = st.lists(
    st.tuples(addresses, lengths, flags, indices).map(lambda d: struct.pack("<QIHH", *d)),
    min_size=QUEUE,
    max_size=QUEUE,
)


@pytest.fixture(scope="module")
def cpu() -> Iterator[Cpu]:
    with machine() as running:
        yield running


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    queue=st.integers(0, FIRST),
    table=tables,
    heads=st.lists(indices, min_size=1, max_size=QUEUE),
    jump=st.one_of(st.none(), st.integers(0, 0xFFFF)),
)
def test_ring_contents(
    cpu: Cpu, queue: int, table: list[bytes], heads: list[int], jump: int | None
) -> None:
    cpu.reset()
    memory = cpu.machine.memory
    memory.write(0, bytes(0x6_0000))
    ring = cpu.run(index=queue)
    memory.write(ring.setup.desc, b"".join(table))
    for head in heads:
        ring.publish(head)
    if jump is not None:
        ring.jump(jump)
    cpu.set(Register.QUEUE_NOTIFY, queue)

    # The first buffer is used, or the ring breaks; an event queue waits for events, and with an
    # index that was set back there may be nothing to take.
    surely = jump is None and queue != 1
    deadline = time.monotonic() + SECONDS
    while surely and ring.used == 0 and cpu.status == RUNNING:
        assert time.monotonic() < deadline, "neither used nor broken"
        time.sleep(0.0005)
    if cpu.status & Status.NEEDS_RESET:
        assert cpu.get(Register.INTERRUPT_STATUS) & InterruptBit.CONFIG_CHANGE
    cpu.reset()
    assert cpu.get(Register.INTERRUPT_STATUS) == 0
    memory.write(0, bytes(0x6_0000))
    cpu.answered(cpu.run())
