"""Token copies between units and HBAs of one server, over real rings (SBC-5 4.28)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conformance import cdb
from tests.conformance.attach import attach
from tests.conformance.cdb import ILLEGAL_REQUEST, Disk, expect_good, expect_sense, pattern
from tests.conformance.cluster import Cluster
from tests.conformance.server import Server
from vscsi_emu.driver.request import Result
from vscsi_emu.driver.virtio_scsi import REQUEST_QUEUE, Options

MIB_BLOCKS = 2048
TOKEN_CANCELLED = 0x2308
ZERO = bytes.fromhex("ffff0001 0000 01f8").ljust(512, b"\0")
IMMED = 1


def descriptors(ranges: list[tuple[int, int]]) -> bytes:
    return b"".join(struct.pack(">QI4x", *each) for each in ranges)


def third_party(action: int, list_id: int, length: int) -> bytes:
    return struct.pack(">BB4xIIxx", 0x83, action, list_id, length)


def make_token(disk: Disk, ranges: list[tuple[int, int]], list_id: int = 1) -> bytes:
    body = descriptors(ranges)
    data = struct.pack(">HBxII2xH", len(body) + 14, 0, 0, 0, len(body)) + body
    expect_good(disk.run(third_party(0x10, list_id, len(data)), data_out=data))
    information = receive(disk, list_id)
    assert information[5] == 1
    return information[38:550]


def receive(disk: Disk, list_id: int) -> bytes:
    command = struct.pack(">BBI4xIxx", 0x84, 0x07, list_id, 1024)
    result = disk.run(command, data_in_length=1024)
    assert (result.response, result.status) == (0, 0), result.sense.hex()
    return result.data


def write_token(
    disk: Disk, token: bytes, ranges: list[tuple[int, int]], *, flags: int = 0, list_id: int = 2
) -> Result:
    body = descriptors(ranges)
    data = struct.pack(">HB5xQ512s6xH", len(body) + 534, flags, 0, token, len(body)) + body
    return disk.run(third_party(0x11, list_id, len(data)), data_out=data)


@pytest.fixture
def disks(running_server: Server) -> Iterator[tuple[Disk, Disk]]:
    """A file, and memory with larger blocks."""
    with attach(running_server, Options(queue_size=64, queues=None)) as guest:
        yield Disk(guest.device, 0, 0).ready(), Disk(guest.device, 0, 1, 4096).ready()


def test_from_a_file_to_memory_and_back(disks: tuple[Disk, Disk]) -> None:
    file, memory = disks
    data = pattern(3 << 20)
    for start in range(0, len(data), 1 << 20):
        file.write(1000 + start // 512, data[start : start + (1 << 20)])
    token = make_token(file, [(1000, 3 * MIB_BLOCKS)])
    expect_good(write_token(memory, token, [(77, 256), (1024, 512)]))
    assert memory.read(77, 256) == data[: 1 << 20]
    assert memory.read(1024, 512) == data[1 << 20 :]
    back = make_token(memory, [(1024, 512), (77, 256)])
    expect_good(write_token(file, back, [(50_000, 3 * MIB_BLOCKS)], flags=IMMED))
    while (status := receive(file, 2))[5] == 0x12:
        pass
    assert (status[5], int.from_bytes(status[16:24])) == (1, 3 * MIB_BLOCKS)
    assert file.read(50_000, MIB_BLOCKS) == data[1 << 20 : 2 << 20]
    assert file.read(50_000 + 2 * MIB_BLOCKS, MIB_BLOCKS) == data[: 1 << 20]


def test_any_change_cancels(disks: tuple[Disk, Disk]) -> None:
    file, memory = disks
    file.write(0, pattern(64 * 512))
    unmap = struct.pack(">HH4xQI4x", 22, 16, 0, 64)
    for change, data in [
        (cdb.write_16(63, 1), bytes(512)),
        (struct.pack(">BBQIBB", 0x93, 1, 8, 1, 0, 0), b""),
        (cdb.unmap(len(unmap)), unmap),
        (struct.pack(">BBQ3xBBB", 0x89, 0, 8, 1, 0, 0), bytes(1024)),
    ]:
        token = make_token(file, [(0, 64)])
        file.read(0, 64)
        file.write(64, bytes(512))
        expect_good(write_token(memory, token, [(0, 8)]))
        expect_good(file.run(change, data_out=data))
        expect_sense(write_token(memory, token, [(0, 8)]), ILLEGAL_REQUEST, TOKEN_CANCELLED)


def test_a_token_never_yields_newer_blocks(disks: tuple[Disk, Disk]) -> None:
    """Writes race with the copy: it has the old blocks, or it fails."""
    file, memory = disks
    for round_ in range(20):
        old, new = bytes([round_ + 1]) * (1 << 20), bytes([0xFF]) * (1 << 20)
        file.write(0, old)
        token = make_token(file, [(0, MIB_BLOCKS)])
        late = file.device.submit(
            0, 0, cdb.write_16(0, MIB_BLOCKS), data_out=new, queue=REQUEST_QUEUE + 1
        )
        memory.write(0, bytes(1 << 20))
        result = write_token(memory, token, [(0, 256)])
        file.device.wait(late)
        if result.status:
            expect_sense(result, ILLEGAL_REQUEST, TOKEN_CANCELLED)
        else:
            assert memory.read(0, 256) == old


def test_zeros(disks: tuple[Disk, Disk]) -> None:
    file, _ = disks
    file.write(0, pattern(8 * 512))
    expect_good(write_token(file, ZERO, [(2, 3)]))
    assert file.read(0, 8) == pattern(8 * 512)[:1024] + bytes(1536) + pattern(8 * 512)[2560:]


def test_compare_and_write_and_copies_take_turns(disks: tuple[Disk, Disk]) -> None:
    """A counter that is only ever raised by COMPARE AND WRITE is copied elsewhere all the time:
    no raise gets lost, and no copy shows half of one."""
    file, _ = disks

    def block(count: int) -> bytes:
        return count.to_bytes(4) * 128

    file.write(0, block(0))
    for count in range(200):
        item = None
        if count % 4 == 0:
            copy = struct.pack(">BBHHH2xHQQ", 2, 0, 0x18, 0xFFFF, 0xFFFF, 1, 0, 500)
            data = struct.pack(">BBH4xII", 9, 0, 0, len(copy), 0) + copy
            item = file.device.submit(
                0,
                0,
                struct.pack(">BB8xIxx", 0x83, 0, len(data)),
                data_out=data,
                queue=REQUEST_QUEUE + 1,
            )
        raised = file.run(
            struct.pack(">BBQ3xBBB", 0x89, 0, 0, 1, 0, 0), data_out=block(count) + block(count + 1)
        )
        expect_good(raised)
        if item is not None:
            expect_good(file.device.wait(item))
            assert file.read(500, 1) in (block(count), block(count + 1))
    assert file.read(0, 1) == block(200)


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[list[Disk]]:
    """A disk as two HBAs of one server see it."""
    image = tmp_path / "shared.img"
    with image.open("wb") as file:
        file.truncate(16 << 20)
    with Cluster(tmp_path, image.name) as cluster, ExitStack() as stack:
        yield [Disk(stack.enter_context(attach(n)).device, 0, 0).ready() for n in cluster.nodes]


def test_a_token_is_carried_to_another_hba(nodes: list[Disk]) -> None:
    one, two = nodes
    one.write(0, pattern(8 * 512))
    token = make_token(one, [(0, 8)])
    expect_good(write_token(two, token, [(100, 8)]))
    assert one.read(100, 8) == pattern(8 * 512)
    two.write(7, bytes(512))
    expect_sense(write_token(one, token, [(100, 8)]), ILLEGAL_REQUEST, TOKEN_CANCELLED)
