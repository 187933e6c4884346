"""Thin provisioning over real rings: a limit, a pool, and a file system that is really full."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conformance import cdb
from tests.conformance.attach import Guest, attach
from tests.conformance.cdb import (
    DATA_PROTECT,
    UNIT_ATTENTION,
    Disk,
    expect_good,
    expect_sense,
    pattern,
)
from tests.conformance.server import Server
from vscsi_emu.driver.request import Result
from vscsi_emu.driver.virtio_scsi import REQUEST_QUEUE, Options

NO_SPACE = 0x2707
SOFT_THRESHOLD = 0x3807
MIB = 1 << 20
PAGE_BLOCKS = 8


@contextmanager
def serving(*luns: str) -> Iterator[Guest]:
    with Server(luns, queues=2) as server:
        with attach(server, Options(queue_size=64, queues=None)) as guest:
            yield guest
        server.check()


@pytest.fixture(params=["mem:64M", "file"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param != "file":
        return str(request.param)
    image = tmp_path / "disk.img"
    with image.open("wb") as file:
        file.truncate(64 * MIB)
    return str(image)


def write(disk: Disk, lba: int, pages: int) -> Result:
    """As many blocks with data in them."""
    blocks = pages * PAGE_BLOCKS
    return disk.run(cdb.write_16(lba, blocks), data_out=pattern(blocks * 512))


def unmap(disk: Disk, lba: int, blocks: int) -> Result:
    data = struct.pack(">HH4xQI4x", 22, 16, lba, blocks)
    return disk.run(cdb.unmap(len(data)), data_out=data)


def mapped(disk: Disk) -> int:
    """Blocks that GET LBA STATUS calls mapped."""
    count, lba = 0, 0
    last = int.from_bytes(disk.run(cdb.read_capacity_16(32), data_in_length=32).data[:8])
    while lba <= last:
        command = struct.pack(">BBQIBB", 0x9E, 0x12, lba, 4096, 0, 0)
        data = disk.run(command, data_in_length=4096).data
        for _, blocks, status in struct.iter_unpack(">QIB3x", data[8:]):
            count += blocks if status == 0 else 0
            lba += blocks
    return count


def test_out_of_space_and_back(storage: str) -> None:
    with serving(f"{storage},thin=1M,soft-threshold=100") as guest:
        disk = Disk(guest.device, 0, 0).ready()
        expect_good(write(disk, 0, 200))
        expect_sense(write(disk, 100_000, 57), DATA_PROTECT, NO_SPACE)
        assert mapped(disk) == 1600
        assert disk.read(100_000, 57 * 8) == bytes(57 * 4096)
        expect_good(write(disk, 100_000, 56))
        for command, data in [
            (cdb.write_16(50_000, 1), bytes(512)),
            (struct.pack(">BBQIBB", 0x93, 0, 50_000, 1, 0, 0), bytes(512)),
            (struct.pack(">BBQIBB", 0x93, 0, 50_000, 1, 0, 0), b"x" * 512),
            (struct.pack(">BBQ3xBBB", 0x89, 0, 50_000, 1, 0, 0), bytes(1024)),
            (struct.pack(">BBQIBB", 0x8E, 0, 50_000, 1, 0, 0), bytes(512)),
            (struct.pack(">BBQHHBB", 0x9C, 0, 50_000, 0, 8, 0, 0), bytes(4096)),
        ]:
            expect_sense(disk.run(command, data_out=data), DATA_PROTECT, NO_SPACE)
        # It is not write protected: what has its space is written.
        assert not disk.run(cdb.mode_sense_10(8), data_in_length=8).data[3] & 0x80
        expect_good(write(disk, 0, 200))
        expect_good(unmap(disk, 0, 8))
        expect_good(disk.run(cdb.write_16(50_000, 1), data_out=bytes(512)))
        expect_good(unmap(disk, 0, 200_000 // 2))
        assert mapped(disk) == 56 * 8
        expect_good(write(disk, 0, 200))


def test_the_soft_threshold(storage: str) -> None:
    with serving(f"{storage},thin=1M") as guest:
        disk = Disk(guest.device, 0, 0).ready()
        expect_good(write(disk, 0, 204))
        disk.ready()
        expect_good(write(disk, 204 * 8, 10))
        result = wait_attention(disk)
        expect_sense(result, UNIT_ATTENTION, SOFT_THRESHOLD)
        assert (result.sense[0], int.from_bytes(result.sense[3:7])) == (0xF0, 16)
        expect_good(write(disk, 214 * 8, 10))
        expect_good(unmap(disk, 0, 8 * 204))
        expect_good(write(disk, 0, 204))
        expect_sense(wait_attention(disk), UNIT_ATTENTION, SOFT_THRESHOLD)


def wait_attention(disk: Disk) -> Result:
    """It is established a moment after the write that passed it."""
    for _ in range(1000):
        result = disk.run(cdb.test_unit_ready())
        if result.status:
            return result
    raise AssertionError("no unit attention")


def test_a_pool(tmp_path: Path) -> None:
    luns = [f"0:{n}=mem:64M,thin=1M,pool=p,soft-threshold=100" for n in range(2)]
    with serving(*luns) as guest:
        one, two = (Disk(guest.device, 0, n).ready() for n in range(2))
        expect_good(write(one, 0, 200))
        expect_sense(write(two, 0, 57), DATA_PROTECT, NO_SPACE)
        expect_good(write(two, 0, 56))
        expect_sense(write(one, 8 * 200, 1), DATA_PROTECT, NO_SPACE)
        expect_good(unmap(two, 0, 8))
        expect_good(write(one, 8 * 200, 1))
        pages = [d.run(cdb.inquiry(64, page=0xB2), data_in_length=64).data for d in (one, two)]
        assert pages[0] == pages[1]
        assert pages[0][5] & 1, "DP"
        assert pages[0][8:12] == bytes([1, 3, 0, 8])


def test_what_was_allocated_before_counts(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    with image.open("wb") as file:
        file.write(pattern(MIB))
        file.truncate(64 * MIB)
    with serving(f"{image},thin=1M,soft-threshold=100") as guest:
        disk = Disk(guest.device, 0, 0).ready()
        assert mapped(disk) == MIB // 512
        expect_sense(write(disk, 100_000, 1), DATA_PROTECT, NO_SPACE)
        expect_good(unmap(disk, 0, 8))
        expect_good(write(disk, 100_000, 1))


def test_unmap_and_writes_at_once_are_counted_exactly() -> None:
    """Whatever the order, space is counted for each page that holds data, and no other."""
    with serving("mem:64M,thin=2M,soft-threshold=100") as guest:
        disk = Disk(guest.device, 0, 0).ready()
        device = disk.device
        queues = range(REQUEST_QUEUE, len(device.queues))
        data = struct.pack(">HH4xQI4x", 22, 16, 0, 1024)
        for _ in range(20):
            items = []
            for n in range(32):
                command, payload = (
                    (cdb.unmap(len(data)), data)
                    if n % 8 == 7
                    else (cdb.write_16(n * 32, 32), pattern(32 * 512))
                )
                queue = queues[n % len(queues)]
                items.append(device.submit(0, 0, command, data_out=payload, queue=queue))
            for result in device.wait_all(items):
                expect_good(result)
        expect_good(unmap(disk, 0, 1024))
        assert mapped(disk) == 0
        expect_good(write(disk, 0, 512))
        expect_sense(write(disk, 8 * 512, 1), DATA_PROTECT, NO_SPACE)


@pytest.fixture
def small_file_system(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 2 MiB."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting needs privileges that are not here")
    try:
        yield tmp_path
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_the_hosts_file_system_is_full(small_file_system: Path) -> None:
    """As with a limit of ours, without one."""
    image = small_file_system / "disk.img"
    with image.open("wb") as file:
        file.truncate(64 * MIB)
    with serving(str(image)) as guest:
        disk = Disk(guest.device, 0, 0).ready()
        written = 0
        while (result := write(disk, written * 8, 64)).status == 0:
            written += 64
            assert written <= 512
        expect_sense(result, DATA_PROTECT, NO_SPACE)
        expect_good(write(disk, 0, 64))
        expect_sense(
            disk.run(struct.pack(">BBQIBB", 0x93, 0, 100_000, 1024, 0, 0), data_out=b"x" * 512),
            DATA_PROTECT,
            NO_SPACE,
        )
        expect_good(unmap(disk, 0, 8 * 512))
        expect_good(unmap(disk, 100_000, 1024))
        expect_good(write(disk, 8 * 1024, 256))
        assert disk.read(8 * 1024, 8) == pattern(4096)
