"""Media commands beyond READ and WRITE, over real rings (SBC-5)."""

import struct
from collections.abc import Iterator

import pytest

from tests.conformance import cdb
from tests.conformance.attach import Guest, attach
from tests.conformance.cdb import (
    CHECK_CONDITION,
    GOOD,
    ILLEGAL_REQUEST,
    Disk,
    expect_good,
    expect_sense,
    pattern,
)
from tests.conformance.server import Server
from vscsi_emu.driver.request import Request
from vscsi_emu.driver.scan import sense_key
from vscsi_emu.driver.virtio_scsi import REQUEST_QUEUE, Options
from vscsi_emu.virtio.scsi import encode_lun

MISCOMPARE = 0x0E
FUA = 0x08
UNITS = [(0, 0, 512), (0, 1, 4096)]


def cdb_16(opcode: int, lba: int, blocks: int, *, byte1: int = 0) -> bytes:
    return struct.pack(">BBQIBB", opcode, byte1, lba, blocks, 0, 0)


def compare_and_write(lba: int, blocks: int, *, flags: int = 0) -> bytes:
    return struct.pack(">BBQ3xBBB", 0x89, flags, lba, blocks, 0, 0)


@pytest.fixture(params=UNITS, ids=str)
def disk(guest: Guest, request: pytest.FixtureRequest) -> Disk:
    return Disk(guest.device, *request.param).ready()


@pytest.mark.parametrize("flags", [0, FUA])
def test_compare_and_write(disk: Disk, flags: int) -> None:
    old, new = pattern(3 * disk.block, seed=1), pattern(3 * disk.block, seed=2)
    disk.write(20, old)
    expect_good(disk.run(compare_and_write(20, 3, flags=flags), data_out=old + new))
    assert disk.read(20, 3) == new
    # Again: nothing is as expected any more.
    result = disk.run(compare_and_write(20, 3), data_out=old + new)
    assert (result.status, sense_key(result.sense)) == (CHECK_CONDITION, MISCOMPARE)
    assert result.sense[12:14] == bytes([0x1D, 0])
    at = next(i for i, (a, b) in enumerate(zip(old, new, strict=True)) if a != b)
    assert result.sense[0] == 0xF0
    assert int.from_bytes(result.sense[3:7]) == at
    assert disk.read(20, 3) == new


def test_compare_and_write_of_nothing(disk: Disk) -> None:
    expect_good(disk.run(compare_and_write(20, 0)))


@pytest.fixture
def four_queues(server: Server) -> Iterator[Guest]:
    with attach(server, Options(queues=4)) as guest:
        yield guest


def test_of_four_queues_one_wins(four_queues: Guest) -> None:
    """COMPARE AND WRITE is one indivisible step for all queues, whichever worker has them."""
    disk = Disk(four_queues.device, 0, 0).ready()
    disk.write(0, bytes(512))
    for value in range(50):
        old = disk.read(0, 1)
        assert int.from_bytes(old[:8]) == value
        flying = []
        for queue in range(REQUEST_QUEUE, REQUEST_QUEUE + 4):
            # Each new value names its author; the three that come too late must all see it.
            new = (value + 1).to_bytes(8) + bytes([queue]) * 504
            request = Request(
                encode_lun(0, 0), compare_and_write(0, 1), disk.device.next_tag(), old + new
            )
            flying.append(disk.device.submit_request(request, queue=queue))
        results = disk.device.wait_all(flying)
        assert sorted(result.status for result in results) == [GOOD] + 3 * [CHECK_CONDITION]
        assert all(sense_key(r.sense) == MISCOMPARE for r in results if r.status != GOOD)
        winner = REQUEST_QUEUE + next(i for i, r in enumerate(results) if r.status == GOOD)
        assert disk.read(0, 1) == (value + 1).to_bytes(8) + bytes([winner]) * 504


def test_orwrite(disk: Disk) -> None:
    disk.write(30, bytes([0xA5, 0x0F]) * disk.block)
    expect_good(disk.run(cdb_16(0x8B, 30, 2), data_out=bytes([0x0A, 0x80]) * disk.block))
    assert disk.read(30, 2) == bytes([0xAF, 0x8F]) * disk.block


def test_write_atomic(disk: Disk) -> None:
    page = disk.run(cdb.inquiry(64, 0xB0), data_in_length=64).data
    most, alignment, granularity = struct.unpack_from(">III", page, 44)
    assert most % granularity == 0
    data = pattern(most * disk.block, seed=5)
    expect_good(disk.run(cdb_16(0x9C, alignment, most), data_out=data))
    assert disk.read(alignment, most) == data
    too_much = bytes(len(data) + granularity * disk.block)
    result = disk.run(cdb_16(0x9C, 0, most + granularity), data_out=too_much)
    expect_sense(result, ILLEGAL_REQUEST, 0x2400)
    if granularity > 1:
        for lba, blocks in ((1, granularity), (0, 1)):
            result = disk.run(cdb_16(0x9C, lba, blocks), data_out=bytes(blocks * disk.block))
            expect_sense(result, ILLEGAL_REQUEST, 0x2400)


def test_prefetch(disk: Disk) -> None:
    for immed in (0, 2):
        expect_good(disk.run(struct.pack(">BBIBHB", 0x34, immed, 0, 0, 16, 0)))
        expect_good(disk.run(cdb_16(0x90, 5, 0, byte1=immed)))
    expect_sense(disk.run(cdb_16(0x90, 1 << 40, 1)), ILLEGAL_REQUEST, 0x2100)


def lba_status(disk: Disk, lba: int, length: int = 256) -> list[tuple[int, int, int]]:
    """(LBA, blocks, provisioning status)."""
    command = cdb_16(0x9E, lba, length, byte1=0x12)
    result = disk.run(command, data_in_length=length)
    assert (result.response, result.status) == (0, GOOD)
    (rest,) = struct.unpack_from(">I", result.data)
    assert len(result.data) == rest + 4
    return [entry[:3] for entry in struct.iter_unpack(">QIBxxx", result.data[8:])]


def test_get_lba_status_follows_writes_and_unmaps(disk: Disk) -> None:
    page = 4096 // disk.block
    data = pattern(16 * page * disk.block)
    disk.write(100 * page, data)
    assert lba_status(disk, 102 * page, 24)[0][2] == 0
    ranges = struct.pack(">HH4xQI4x", 22, 16, 104 * page, 8 * page)
    expect_good(disk.run(cdb.unmap(24), data_out=ranges))
    assert lba_status(disk, 100 * page)[:2] == [
        (100 * page, 4 * page, 0),
        (104 * page, 8 * page, 1),
    ]
    out_of_range = cdb_16(0x9E, 1 << 40, 24, byte1=0x12)
    expect_sense(disk.run(out_of_range, data_in_length=24), ILLEGAL_REQUEST, 0x2100)


def test_what_is_declared_is_reported(disk: Disk) -> None:
    """REPORT SUPPORTED OPERATION CODES, all commands, has them with these CDB lengths."""
    command = struct.pack(">BBBBHIxx", 0xA3, 0x0C, 0, 0, 0, 4096)
    data = disk.run(command, data_in_length=4096).data
    reported = {
        (opcode, action): length
        for opcode, action, length in struct.iter_unpack(">BxHxxH", data[4:])
    }
    for key in [(0x89, 0), (0x8B, 0), (0x9C, 0), (0x90, 0), (0x9E, 0x12), (0x9F, 0x11)]:
        assert reported[key] == 16
    for key, length in {(0x34, 0): 10, (0x37, 0): 10, (0xB7, 0): 12}.items():
        assert reported[key] == length


READ_32, VERIFY_32, WRITE_32, WRITE_AND_VERIFY_32, WRITE_SAME_32 = 9, 10, 11, 12, 13
TAGS = 0x0123456789ABCDEF
"""What a block's protection information is to say, if there were any."""


@pytest.mark.parametrize("flags", [0, FUA])
def test_32_byte_reads_and_writes(disk: Disk, flags: int) -> None:
    data = pattern(3 * disk.block, seed=32)
    expect_good(disk.run(cdb.cdb_32(WRITE_32, 40, 3, flags=flags, tags=TAGS), data_out=data))
    assert disk.read(40, 3) == data
    read = cdb.cdb_32(READ_32, 41, 2, flags=flags, tags=TAGS)
    result = disk.run(read, data_in_length=2 * disk.block)
    expect_good(result)
    assert result.data == data[disk.block :]


def test_32_byte_verifies(disk: Disk) -> None:
    bytchk = 2
    data = pattern(2 * disk.block, seed=33)
    write = cdb.cdb_32(WRITE_AND_VERIFY_32, 50, 2, flags=bytchk)
    expect_good(disk.run(write, data_out=data))
    assert disk.read(50, 2) == data
    expect_good(disk.run(cdb.cdb_32(VERIFY_32, 50, 2)))
    verify = cdb.cdb_32(VERIFY_32, 50, 2, flags=bytchk)
    expect_good(disk.run(verify, data_out=data))
    expect_sense(disk.run(verify, data_out=bytes(len(data))), MISCOMPARE, 0x1D00)


def test_32_byte_write_same(disk: Disk) -> None:
    block, ndob = pattern(disk.block, seed=34), 1
    expect_good(disk.run(cdb.cdb_32(WRITE_SAME_32, 60, 4), data_out=block))
    assert disk.read(60, 4) == 4 * block
    expect_good(disk.run(cdb.cdb_32(WRITE_SAME_32, 61, 2, flags=ndob)))
    assert disk.read(60, 4) == block + bytes(2 * disk.block) + block


def test_32_byte_commands_without_protection_information(disk: Disk) -> None:
    """RDPROTECT, WRPROTECT and VRPROTECT are 0, or it is INVALID FIELD IN CDB."""
    for action in (READ_32, VERIFY_32, WRITE_32, WRITE_AND_VERIFY_32, WRITE_SAME_32):
        command = cdb.cdb_32(action, 0, 1, flags=0x20)
        result = disk.run(command, data_out=b"" if action == READ_32 else bytes(disk.block))
        expect_sense(result, ILLEGAL_REQUEST, 0x2400)
        assert result.sense[15:18] == bytes([0xC8 | 5, 0, 10])


def test_a_32_byte_command_in_a_shorter_field_is_refused(server: Server) -> None:
    with attach(server, Options(cdb_size=31)) as guest:
        disk = Disk(guest.device, 0, 0).ready()
        cut = cdb.cdb_32(WRITE_32, 0, 1)[:31]
        before = disk.read(0, 1)
        expect_sense(disk.run(cut, data_out=pattern(512)), ILLEGAL_REQUEST, 0x2400)
        assert disk.read(0, 1) == before


def test_write_long_marks_a_block_bad_until_it_is_written(disk: Disk) -> None:
    wr_uncor = 0x40
    disk.write(50, pattern(4 * disk.block))
    commands = [
        (51, struct.pack(">BBIBHB", 0x3F, wr_uncor, 51, 0, 0, 0)),
        (52, cdb_16(0x9F, 52, 0, byte1=wr_uncor | 0x11)),
    ]
    for lba, command in commands:
        expect_good(disk.run(command))
        result = disk.run(cdb.read_16(50, 4), data_in_length=4 * disk.block)
        expect_sense(result, 3, 0x1114)
        assert int.from_bytes(result.sense[3:7]) == lba
        disk.write(lba, pattern(disk.block))
    disk.read(50, 4)
    expect_sense(disk.run(struct.pack(">BBIBHB", 0x3F, 0, 51, 0, 0, 0)), ILLEGAL_REQUEST, 0x2400)


# ── The whole medium ───────────────────────────────────────────────────────────────────────────

SMALL = (255, 16383, 512)
"""8 MiB, quickly filled."""


@pytest.fixture
def small(guest: Guest) -> Disk:
    return Disk(guest.device, *SMALL).ready()


def sanitize(action: int, length: int = 0) -> bytes:
    return struct.pack(">BB5xHx", 0x48, action, length)


def last_block(disk: Disk) -> int:
    data = disk.run(cdb.read_capacity_16(32), data_in_length=32).data
    return int.from_bytes(data[:8])


@pytest.mark.parametrize("pattern_length", [512, 256, 3])
def test_sanitize_overwrite_fills_every_block(small: Disk, pattern_length: int) -> None:
    pattern_bytes = pattern(pattern_length, seed=9)
    parameters = struct.pack(">BBH", 0x82, 0, pattern_length) + pattern_bytes
    command = sanitize(1, len(parameters))
    expect_good(small.run(command, data_out=parameters))
    block = (pattern_bytes * 512)[:512]
    last = last_block(small)
    for lba in (0, last // 2, last):
        assert small.read(lba, 1) == block


@pytest.mark.parametrize("command", [sanitize(2), sanitize(3), bytes([4, 0, 0, 0, 0, 0])])
def test_erased_blocks_are_zeros_and_deallocated(small: Disk, command: bytes) -> None:
    last = last_block(small)
    small.write(0, pattern(512))
    small.write(last, pattern(512))
    expect_good(small.run(command))
    assert small.read(0, 1) == small.read(last, 1) == bytes(512)
    assert lba_status(small, 0) == [(0, last + 1, 1)]


def test_sanitize_with_immed_answers_first(small: Disk) -> None:
    parameters = bytes([31, 0, 0, 1, 0x5A])
    expect_good(small.run(sanitize(0x81, len(parameters)), data_out=parameters))
    progress = [0]
    while True:
        result = small.run(cdb.test_unit_ready())
        if result.status == GOOD:
            break
        expect_sense(result, 2, 0x041B)
        assert result.sense[15] == 0x80
        progress.append(int.from_bytes(result.sense[16:18]))
    assert progress == sorted(progress)
    assert small.read(last_block(small), 1) == bytes([0x5A]) * 512
