"""A disk that loses its power: what survives, and what its driver is told."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vscsi_emu.config import ConfigError, from_arguments
from vscsi_emu.control.results import LunLosses
from vscsi_emu.disk import OperationError
from vscsi_emu.driver.disk import Disk
from vscsi_emu.driver.dma import DmaAllocator
from vscsi_emu.driver.mmio import VirtioMmioBus
from vscsi_emu.driver.request import Result
from vscsi_emu.driver.virtio_scsi import VirtioScsi
from vscsi_emu.inprocess import RAM, InProcess
from vscsi_emu.service import StartError
from vscsi_emu.virtio.scsi import Response

BLOCK = 512
BLOCKS = 32
FUA = 0x08
UNIT_ATTENTION, DATA_PROTECT = 6, 7
SECONDS = 60.0


class Machine:
    """One HBA and a driver that has scanned unit 0:0."""

    def __init__(self, machine: InProcess) -> None:
        [slot] = machine.slots
        self.machine = machine
        bus = VirtioMmioBus.find(slot, slot.base, DmaAllocator(1 << 20, RAM - (1 << 20)))
        assert bus is not None
        self.bus = bus
        self.device = VirtioScsi(bus, timeout=SECONDS)
        self.disk = Disk(self.device, 0, 0)

    def fail(self, seed: int) -> LunLosses:
        [losses] = self.machine.control.power_fail(seed=seed).luns
        return losses

    def write(self, lba: int, fill: int, blocks: int = 1, *, fua: bool = False) -> Result:
        cdb = bytes([0x2A, FUA if fua else 0, 0, 0, 0, lba, 0, 0, blocks, 0])
        result = self.device.execute(0, 0, cdb, data_out=bytes([fill]) * BLOCK * blocks)
        assert not result.response, result
        return result

    def read(self) -> list[bytes]:
        data = self.disk.read(0, BLOCKS)
        return [data[at : at + BLOCK] for at in range(0, len(data), BLOCK)]


@contextmanager
def machine(lun: str) -> Iterator[Machine]:
    with InProcess(from_arguments([lun])) as inprocess:
        running = Machine(inprocess)
        with running.bus:
            yield running


MEMORY = f"mem:{BLOCKS * BLOCK},volatile-cache"


def test_each_block_is_one_that_was_written_since_it_was_last_made_durable() -> None:
    """FUA, SYNCHRONIZE CACHE and nothing else are promises (SBC-5 4.16)."""
    chosen = random.Random(6)
    lost = survived = 0
    with machine(MEMORY) as guest:
        possible = [{0} for _ in range(BLOCKS)]
        for step in range(400):
            match chosen.choices(["write", "fua", "flush", "fail"], [70, 8, 6, 16])[0]:
                case "flush":
                    guest.disk.flush()
                    possible = [{block[0]} for block in guest.read()]
                case "fail":
                    losses = guest.fail(step)
                    lost, survived = lost + losses.lost, survived + losses.survived
                    found = guest.read()
                    for at, block in enumerate(found):
                        assert block == block[:1] * BLOCK, f"block {at} is torn"
                        assert block[0] in possible[at], f"step {step}, block {at}"
                    possible = [{block[0]} for block in found]
                case kind:
                    lba = chosen.randrange(BLOCKS)
                    count = chosen.randint(1, min(8, BLOCKS - lba))
                    fill = chosen.randrange(1, 256)
                    guest.write(lba, fill, count, fua=kind == "fua")
                    for at in range(lba, lba + count):
                        possible[at] = {fill} if kind == "fua" else possible[at] | {fill}
    assert lost
    assert survived


@pytest.mark.parametrize("tear", [64, 512])
def test_blocks_are_torn_where_the_medium_does_not_write_them_whole(tear: int) -> None:
    torn = 0
    with machine(f"{MEMORY},tear={tear}") as guest:
        for seed in range(60):
            guest.write(0, 0, BLOCKS, fua=True)
            guest.write(0, 1, BLOCKS)
            guest.fail(seed)
            torn += sum(block != block[:1] * BLOCK for block in guest.read())
    assert bool(torn) == (tear < BLOCK)


def test_the_driver_is_told_that_power_was_on() -> None:
    with machine(MEMORY) as guest:
        guest.fail(1)
        result = guest.device.execute(0, 0, bytes(6))
        assert (result.status, result.sense[2] & 0xF) == (2, UNIT_ATTENTION)
        assert result.sense[12:14] == b"\x29\x01"  # POWER ON OCCURRED
        assert not guest.device.execute(0, 0, bytes(6)).status


def test_commands_that_it_meets_end_with_transport_failure() -> None:
    with machine(MEMORY) as guest:
        guest.machine.control.lun_pause(lun="0:0")
        waiting = guest.device.submit(0, 0, bytes([0x28, *bytes(7), 1, 0]), data_in_length=BLOCK)
        guest.fail(1)
        assert guest.device.wait(waiting).response == Response.TRANSPORT_FAILURE
        guest.machine.control.lun_resume(lun="0:0")
        assert guest.read()


def test_every_command_has_an_answer_whenever_the_power_fails() -> None:
    answers = set()
    with machine(MEMORY) as guest:
        for seed in range(30):
            cdbs = [bytes([0x2A, 0, 0, 0, 0, lba, 0, 0, 1, 0]) for lba in range(BLOCKS)]
            cdbs += [bytes([0x35, *bytes(9)])] * 4  # SYNCHRONIZE CACHE
            running = [
                guest.device.submit(0, 0, cdb, data_out=bytes(BLOCK) if cdb[0] == 0x2A else b"")
                for cdb in cdbs
            ]
            guest.fail(seed)
            answers |= {result.response for result in guest.device.wait_all(running)}
            assert len(guest.read()) == BLOCKS
    assert answers <= {Response.OK, Response.TRANSPORT_FAILURE}


def test_a_cache_in_front_of_bounded_space() -> None:
    with machine(f"mem:1M,volatile-cache,thin={BLOCKS * BLOCK}") as guest:
        guest.write(0, 1, BLOCKS)
        cdb = bytes([0x2A, 0, 0, 0, 1, 0, 0, 0, 1, 0])
        full = guest.device.execute(0, 0, cdb, data_out=bytes(BLOCK))
        if full.sense[2] & 0xF == UNIT_ATTENTION:  # that the space gets short
            full = guest.device.execute(0, 0, cdb, data_out=bytes(BLOCK))
        # As it is written, not when it is flushed.
        assert full.sense[2] & 0xF == DATA_PROTECT
        guest.disk.flush()
        assert guest.fail(0).lost == 0
        assert guest.read() == [bytes([1]) * BLOCK] * BLOCKS


def test_without_a_write_cache_nothing_is_lost() -> None:
    with machine(f"{MEMORY},cache=writethrough") as guest:
        for seed in range(20):
            guest.write(seed, seed)
            assert guest.fail(seed) == LunLosses(id="disk-0-0", survived=0, torn=0, lost=0)
            assert guest.read()[seed] == bytes([seed]) * BLOCK


def test_turning_the_write_cache_off_makes_durable_what_it_holds() -> None:
    with machine(MEMORY) as guest:
        guest.write(3, 7)
        guest.machine.control.lun_set(lun="0:0", cache="writethrough")
        assert guest.fail(0).lost == 0
        assert guest.read()[3] == bytes([7]) * BLOCK


def test_a_disk_without_a_volatile_cache_loses_power_but_no_data() -> None:
    with machine(f"mem:{BLOCKS * BLOCK}") as guest:
        guest.write(3, 7)
        assert guest.fail(0).lost == 0
        assert guest.read()[3] == bytes([7]) * BLOCK


def test_what_is_not_saved_is_as_at_first() -> None:
    with machine(MEMORY) as guest:
        page = bytes([4, 0, 0, 0, 0x0A, 0x0A, 0x06, 0x10, *bytes(8)])  # Control, D_SENSE
        selected = guest.device.execute(0, 0, bytes([0x15, 0x10, 0, 0, 16, 0]), data_out=page)
        if selected.status:
            pytest.fail(f"MODE SELECT: {selected}")
        guest.fail(0)
        assert guest.device.execute(0, 0, bytes(6)).sense[0] & 0x7F == 0x70  # fixed again


def test_a_server_that_ends_in_order_loses_nothing(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(BLOCKS * BLOCK))
    with machine(f"{image},volatile-cache") as guest:
        guest.write(3, 7)
        assert image.read_bytes() == bytes(BLOCKS * BLOCK)
    assert image.read_bytes()[3 * BLOCK : 4 * BLOCK] == bytes([7]) * BLOCK


def test_all_disks_fail_at_once_and_a_drawn_seed_is_told() -> None:
    with InProcess(from_arguments([MEMORY, MEMORY])) as inprocess:
        failure = inprocess.control.power_fail()
        assert [lun.id for lun in failure.luns] == ["disk-0-0", "disk-1-0"]
        assert failure.seed >= 0
        [one] = inprocess.control.power_fail(lun=["1:0"], seed=failure.seed).luns
        assert one.id == "disk-1-0"
        with pytest.raises(OperationError, match="64 bits"):
            inprocess.control.power_fail(seed=-1)


def test_tear_is_of_a_volatile_cache(tmp_path: Path) -> None:
    with (
        pytest.raises(StartError, match="add volatile-cache=on"),
        InProcess(from_arguments(["mem:1M,tear=64"])),
    ):
        pass
    with pytest.raises(ConfigError, match="power of two"):
        from_arguments(["mem:1M,volatile-cache,tear=100"])
