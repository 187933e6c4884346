"""A guest's CPU at the registers of an HBA in this process, with a ring or two."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from tests.unit.transport.ring import Ring
from vscsi_emu.config import from_arguments
from vscsi_emu.inprocess import InProcess
from vscsi_emu.virtio.features import Feature, Status
from vscsi_emu.virtio.mmio_queue import QueueSetup
from vscsi_emu.virtio.mmio_registers import MODERN, InterruptBit, Register
from vscsi_emu.virtio.scsi import Response

SECONDS = 60.0
READY = Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK
RUNNING = READY | Status.DRIVER_OK
FEATURES = Feature.VERSION_1 | Feature.RING_RESET
FIRST = 2
"""The first request queue."""


class Cpu:
    """Registers of one slot."""

    def __init__(self, machine: InProcess) -> None:
        self.machine = machine
        [self.slot] = machine.slots
        self.base = self.slot.base

    def get(self, register: int, size: int = 4) -> int:
        return self.slot.read(self.base + register, size)

    def set(self, register: int, value: int, size: int = 4) -> None:
        self.slot.write(self.base + register, size, value)

    @property
    def status(self) -> int:
        return self.get(Register.STATUS)

    def until(self, register: Register, value: int) -> None:
        deadline = time.monotonic() + SECONDS
        while (seen := self.get(register)) != value:
            assert time.monotonic() < deadline, f"{register.name} is {seen:#x}, not {value:#x}"
            time.sleep(0.001)

    def reset(self) -> None:
        self.set(Register.STATUS, 0)
        self.until(Register.STATUS, 0)

    def negotiate(self, features: int = FEATURES) -> None:
        self.set(Register.STATUS, Status.ACKNOWLEDGE | Status.DRIVER)
        for word in range(2):
            self.set(Register.DRIVER_FEATURES_SEL, word)
            self.set(Register.DRIVER_FEATURES, features >> 32 * word & 0xFFFF_FFFF)
        self.set(Register.STATUS, READY)
        assert self.status == READY

    def enable(self, index: int, size: int = 16, **parts: int) -> Ring:
        """Queue `index` with its parts and buffers in 64 KiB of its own."""
        block = (index + 1) << 16
        places = {"desc": block, "driver": block + 0x4000, "device": block + 0x5000} | parts
        setup = QueueSetup(size, **places)
        self.set(Register.QUEUE_SEL, index)
        self.set(Register.QUEUE_SIZE, setup.size)
        for low, address in (
            (Register.QUEUE_DESC_LOW, setup.desc),
            (Register.QUEUE_DRIVER_LOW, setup.driver),
            (Register.QUEUE_DEVICE_LOW, setup.device),
        ):
            self.set(low, address & 0xFFFF_FFFF)
            self.set(low + 4, address >> 32)
        self.set(Register.QUEUE_READY, 1)
        return Ring(self.machine.memory, setup, block + 0x8000)

    def run(self, features: int = FEATURES, index: int = FIRST) -> Ring:
        """From reset to DRIVER_OK, with one request queue."""
        self.negotiate(features)
        ring = self.enable(index)
        self.set(Register.STATUS, RUNNING)
        return ring

    def answered(self, ring: Ring, index: int = FIRST) -> None:
        """A new request is answered, and an interrupt tells of it. BUSY and CHECK CONDITION are
        answers too."""
        number = ring.put()
        self.set(Register.QUEUE_NOTIFY, index)
        assert self.slot.wait_interrupt(SECONDS)
        ring.wait(ring.published)
        assert ring.response(number) == Response.OK
        self.until(Register.INTERRUPT_STATUS, InterruptBit.USED_BUFFER)
        self.set(Register.INTERRUPT_ACK, InterruptBit.USED_BUFFER)


@contextmanager
def machine(version: int = MODERN, order: Literal["<", ">"] = "<") -> Iterator[Cpu]:
    config = from_arguments(["mem:1M"], queues=2)
    with InProcess(config, version=version, byte_order=order, workers=1) as running:
        yield Cpu(running)
