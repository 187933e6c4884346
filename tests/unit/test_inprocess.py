"""Machines in this process: their control thread, and who may call it."""

import asyncio
import threading

import pytest

from vscsi_emu.config import Config, from_arguments
from vscsi_emu.disk import OperationError
from vscsi_emu.inprocess import BASE, InProcess
from vscsi_emu.service import StartError
from vscsi_emu.transport.mmio import REGION_SIZE
from vscsi_emu.virtio.mmio_registers import LEGACY, MAGIC, Register

ONE = from_arguments(["mem:1M"])


async def nothing() -> None:
    pass


def test_each_hba_has_a_slot() -> None:
    other = from_arguments(["null:1G", "mem:1M"], queues=3)
    with InProcess(Config(ONE.luns + other.luns, ONE.hbas + other.hbas)) as machine:
        assert [slot.base for slot in machine.slots] == [BASE, BASE + REGION_SIZE]
        for slot, queues in zip(machine.slots, (1, 3), strict=True):
            assert slot.read(slot.base, 4) == MAGIC
            assert slot.read(slot.base + Register.CONFIG, 4) == queues
            assert slot.memory is machine.memory


def test_nothing_is_left_behind() -> None:
    before = threading.active_count()
    with InProcess(ONE, version=LEGACY) as machine:
        [slot] = machine.slots
        assert slot.read(slot.base + Register.VERSION, 4) == 1
    assert threading.active_count() == before
    assert slot.read(slot.base, 4) == 0xFFFF_FFFF
    assert not slot.interrupt.level


def test_calls_come_back_with_a_result_or_an_error() -> None:
    async def fail() -> None:
        raise LookupError("none")

    async def loop() -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    with InProcess(ONE) as machine:
        assert machine.call(loop) is machine.call(loop)
        with pytest.raises(LookupError, match="none"):
            machine.call(fail)


def test_a_call_has_a_deadline() -> None:
    async def hang() -> None:
        await asyncio.sleep(3600)

    with InProcess(ONE) as machine, pytest.raises(TimeoutError):
        machine.call(hang, timeout=0.02)


def test_the_loops_own_thread_is_refused() -> None:
    with InProcess(ONE) as machine:

        async def inside() -> None:
            machine.call(nothing)

        with pytest.raises(RuntimeError, match="await"):
            machine.call(inside)


def test_only_a_running_machine_takes_calls() -> None:
    machine = InProcess(ONE)
    with pytest.raises(RuntimeError, match="not running"):
        machine.call(nothing)
    with machine:
        machine.call(nothing)
    with pytest.raises(RuntimeError, match="not running"):
        machine.call(nothing)


def test_what_cannot_be_served_is_said_at_once() -> None:
    before = threading.active_count()
    with (
        pytest.raises(StartError, match="no-such-disk"),
        InProcess(from_arguments(["no-such-disk"])),
    ):
        pass
    assert threading.active_count() == before


def test_a_big_endian_guest_is_legacy() -> None:
    with pytest.raises(ValueError, match="legacy"), InProcess(ONE, byte_order=">"):
        pass


def test_no_interrupt_comes_of_itself() -> None:
    with InProcess(ONE) as machine:
        assert not machine.slots[0].wait_interrupt(0.01)


def test_units_come_and_go_while_a_machine_runs() -> None:
    with InProcess(ONE) as machine:
        [added] = machine.control.lun_add(luns=["1:0=mem:1M"])
        assert machine.control.lun_resize(lun=added.id, size="2M").size == 2 << 20
        assert [lun.id for lun in machine.control.hba_query().luns] == ["disk-0-0", "disk-1-0"]
        with pytest.raises(OperationError, match="no unit at 5:5"):
            machine.control.lun_flush(lun="5:5")
        machine.control.lun_remove(lun=["1:0"])
        assert list(machine.slots[0].hba.luns) == [(0, 0)]
