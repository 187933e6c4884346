"""Block I/O, cut to what the device takes."""

import pytest

from tests.unit.driver.disks import BLOCK, FakeDisks
from vscsi_emu.driver.disk import Disk, DiskError
from vscsi_emu.driver.dma import DmaAllocator, DmaExhausted
from vscsi_emu.driver.request import paged
from vscsi_emu.driver.virtio_scsi import Options, VirtioScsi
from vscsi_emu.virtio.config import ScsiConfig

READ, WRITE = 0x88, 0x8A
CONTENT = bytes(i * 7 % 251 for i in range(256 * BLOCK))


def disk_of(fake: FakeDisks, options: Options | None = None) -> Disk:
    return Disk(VirtioScsi(fake.bus, options, timeout=1.0), 0, 0)


def fake(**config: int) -> FakeDisks:
    return FakeDisks({(0, 0): bytearray(CONTENT)}, ScsiConfig(num_queues=2, **config))


def test_capacity() -> None:
    disk = disk_of(fake())
    assert (disk.blocks, disk.block_size) == (256, BLOCK)


def test_one_command_where_one_is_enough() -> None:
    device = fake()
    assert disk_of(device).read(3, 100) == CONTENT[3 * BLOCK : 103 * BLOCK]
    assert device.log == [(READ, 3, 100)]


def test_max_sectors() -> None:
    device = fake(max_sectors=24)
    disk = disk_of(device)
    assert disk.read(0, 256) == CONTENT
    assert device.log == [(READ, at, min(24, 256 - at)) for at in range(0, 256, 24)]
    device.log.clear()
    disk.write(10, CONTENT[: 50 * BLOCK])
    assert device.log == [(WRITE, 10, 24), (WRITE, 34, 24), (WRITE, 58, 2)]
    assert disk.read(10, 50) == CONTENT[: 50 * BLOCK]


@pytest.mark.parametrize(("seg_max", "queue_size", "segments"), [(4, 64, 4), (62, 16, 14)])
def test_seg_max_and_the_ring(seg_max: int, queue_size: int, segments: int) -> None:
    """Data in pieces of a block each."""
    device = fake(seg_max=seg_max)
    disk = disk_of(device, Options(framing=paged(BLOCK), queue_size=queue_size))
    assert disk.read(0, 100) == CONTENT[: 100 * BLOCK]
    assert {blocks for _, _, blocks in device.log[:-1]} == {segments}
    with pytest.raises(ValueError, match="above seg_max"):
        disk.device.execute(0, 0, bytes(6), data_in_length=(seg_max + 1) * BLOCK)


def test_an_old_guest_asks_for_more_than_it_may() -> None:
    device = fake(max_sectors=24)
    disk = disk_of(device, Options(obey_limits=False))
    assert disk.device.max_transfer(BLOCK) == 0xFFFF
    assert disk.read(0, 256) == CONTENT
    assert device.log == [(READ, 0, 256)]


def test_pieces_take_all_queues_in_turn() -> None:
    device = fake(max_sectors=64)
    disk_of(device, Options(queues=None)).read(0, 256)
    assert device.queues == [2, 3, 2, 3]


def test_pieces_wait_for_memory() -> None:
    device = fake(max_sectors=64)
    size = 100 << 10  # the rings, and the data of two pieces
    device.bus.allocator = DmaAllocator(0x1000, size)
    disk = disk_of(device)
    before = device.bus.allocator.allocated
    assert before + len(CONTENT) > size
    assert disk.read(0, 256) == CONTENT
    assert device.bus.allocator.allocated == before


def test_a_piece_that_no_memory_holds() -> None:
    device = fake()
    device.bus.allocator = DmaAllocator(0x1000, 100 << 10)
    with pytest.raises(DmaExhausted):
        disk_of(device).read(0, 256)


def test_unit_attentions_are_passed() -> None:
    device = fake(max_sectors=128)
    disk = disk_of(device)
    device.attentions = 3
    assert disk.read(0, 256) == CONTENT
    # Both pieces are refused, then the first again.
    assert [at for _, at, _ in device.log] == [0, 128, 0, 0, 128]


def test_errors_say_what_and_where() -> None:
    device = fake()
    disk = disk_of(device)
    device.attentions = 100
    with pytest.raises(DiskError, match=r"0:0: READ of 1 blocks from 7: response 0, status 0x02"):
        disk.read(7, 1)


@pytest.mark.parametrize(("lba", "blocks"), [(-1, 1), (0, 257), (256, 1), (0, -1)])
def test_blocks_that_are_not_there(lba: int, blocks: int) -> None:
    with pytest.raises(ValueError, match="not all on this disk"):
        disk_of(fake()).read(lba, blocks)


def test_parts_of_blocks() -> None:
    with pytest.raises(ValueError, match="513 bytes are not blocks"):
        disk_of(fake()).write(0, bytes(513))


def test_nothing_is_no_command() -> None:
    device = fake()
    disk = disk_of(device)
    disk.write(0, b"")
    assert disk.read(5, 0) == b""
    disk.flush()
    assert device.log == []
