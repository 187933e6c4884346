"""Commands, data and residuals over real rings (virtio 1.4, 5.6.6.1)."""

import struct

import pytest

from tests.conformance import cdb
from tests.conformance.attach import Guest, attach
from tests.conformance.cdb import (
    DATA_PROTECT,
    GOOD,
    ILLEGAL_REQUEST,
    UNIT_ATTENTION,
    Disk,
    expect_good,
    expect_sense,
    pattern,
)
from tests.conformance.server import Server
from vscsi_emu.driver.host_byte import HostByte
from vscsi_emu.driver.request import REPORT_LUNS_WLUN, Request, TaskAttribute
from vscsi_emu.driver.scan import Found, report_luns, scan
from vscsi_emu.driver.virtio_scsi import REQUEST_QUEUE, Options
from vscsi_emu.virtio.scsi import MAX_LUN, Response, encode_lun

READS = {6: cdb.read_6, 10: cdb.read_10, 12: cdb.read_12, 16: cdb.read_16}
WRITES = {6: cdb.write_6, 10: cdb.write_10, 12: cdb.write_12, 16: cdb.write_16}
UNITS = [(0, 0, 512), (0, 1, 4096), (255, MAX_LUN, 512)]


@pytest.mark.normative("scsi.req.d5", "scsi.req.d6", "scsi.req.d20", "scsi.vq.d1")
@pytest.mark.parametrize("size", READS)
@pytest.mark.parametrize(("target", "lun", "block"), UNITS)
def test_read_gives_back_what_was_written(
    guest: Guest, size: int, target: int, lun: int, block: int
) -> None:
    disk = Disk(guest.device, target, lun, block).ready()
    for lba, blocks in ((0, 1), (7, 3), (100, 64)):
        data = pattern(blocks * block, seed=size + lba)
        expect_good(disk.run(WRITES[size](lba, blocks), data_out=data))
        result = disk.run(READS[size](lba, blocks), data_in_length=len(data))
        expect_good(result)
        assert result.data == data


def test_read_6_of_zero_blocks_is_256(guest: Guest) -> None:
    """SBC-5: TRANSFER LENGTH 0 of the 6-byte commands."""
    disk = Disk(guest.device, 0, 0).ready()
    data = pattern(256 * 512, seed=3)
    expect_good(disk.run(cdb.write_6(0, 0), data_out=data))
    assert disk.read(0, 256) == data


@pytest.mark.parametrize("size", [10, 12, 16])
def test_no_blocks_move_nothing(guest: Guest, size: int) -> None:
    disk = Disk(guest.device, 0, 0).ready()
    expect_good(disk.run(READS[size](0, 0)))
    expect_good(disk.run(WRITES[size](0, 0)))


def test_neighbours_of_a_write_are_untouched(guest: Guest) -> None:
    disk = Disk(guest.device, 0, 0).ready()
    disk.write(50, pattern(5 * 512, seed=1))
    disk.write(52, pattern(512, seed=9))
    expected = bytearray(pattern(5 * 512, seed=1))
    expected[2 * 512 : 3 * 512] = pattern(512, seed=9)
    assert disk.read(50, 5) == bytes(expected)


def test_what_one_session_writes_the_next_one_reads(server: Server) -> None:
    data = pattern(8 * 512, seed=77)
    with attach(server) as first:
        Disk(first.device, 0, 0).ready().write(1000, data)
    with attach(server) as second:
        assert Disk(second.device, 0, 0).ready().read(1000, 8) == data


def test_a_megabyte_in_one_command(guest: Guest) -> None:
    disk = Disk(guest.device, 0, 0).ready()
    data = pattern(1 << 20, seed=5)
    disk.write(4096, data)
    assert disk.read(4096, (1 << 20) // 512) == data


@pytest.mark.parametrize("fua", [0x08, 0x18])
def test_forced_unit_access_and_disable_page_out(guest: Guest, fua: int) -> None:
    disk = Disk(guest.device, 0, 0).ready()
    data = pattern(512, seed=fua)
    expect_good(disk.run(cdb.write_10(5, 1, flags=fua), data_out=data))
    result = disk.run(cdb.read_10(5, 1, flags=fua), data_in_length=512)
    assert result.data == data
    expect_good(disk.run(cdb.synchronize_cache_10()))


def test_unmapped_blocks_read_as_zeros(guest: Guest) -> None:
    disk = Disk(guest.device, 0, 0).ready()
    disk.write(2048, pattern(16 * 512))
    parameters = struct.pack(">HH4xQI4x", 22, 16, 2048, 16)
    expect_good(disk.run(cdb.unmap(len(parameters)), data_out=parameters))
    assert disk.read(2048, 16) == bytes(16 * 512)


# ── Residuals ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.normative("scsi.req.d24")
@pytest.mark.parametrize("extra", [1, 511, 512, 4096])
def test_data_in_underrun(guest: Guest, extra: int) -> None:
    disk = Disk(guest.device, 0, 0).ready()
    disk.write(9, pattern(512))
    result = disk.run(cdb.read_10(9, 1), data_in_length=512 + extra)
    expect_good(result, residual=extra)
    assert result.data == pattern(512)


@pytest.mark.normative("scsi.req.d24")
def test_inquiry_residual(guest: Guest) -> None:
    disk = Disk(guest.device, 0, 0).ready()
    result = disk.run(cdb.inquiry(255), data_in_length=255)
    assert (result.response, result.status) == (Response.OK, GOOD)
    length = 5 + result.data[4]
    assert length <= 255
    assert result.residual == 255 - length
    assert len(result.data) == length


@pytest.mark.normative("scsi.req.d7")
@pytest.mark.parametrize("given", [0, 1, 511, 1023])
def test_data_in_overrun(guest: Guest, given: int) -> None:
    disk = Disk(guest.device, 0, 0).ready()
    result = disk.run(cdb.read_10(0, 2), data_in_length=given)
    assert result.response == Response.OVERRUN
    assert result.host_byte is HostByte.ERROR


@pytest.mark.normative("scsi.req.d7")
def test_data_out_overrun(guest: Guest) -> None:
    disk = Disk(guest.device, 0, 0).ready()
    disk.write(20, pattern(1024, seed=4))
    result = disk.run(cdb.write_10(20, 2), data_out=bytes(1023))
    assert result.response == Response.OVERRUN


@pytest.mark.normative("scsi.req.d24")
def test_a_refused_command_moves_nothing(guest: Guest) -> None:
    disk = Disk(guest.device, 0, 0).ready()
    last = (64 << 20) // 512
    result = disk.run(cdb.read_10(last, 1), data_in_length=512)
    expect_sense(result, ILLEGAL_REQUEST, 0x2100)
    assert result.residual == 512
    assert result.data == b""
    result = disk.run(cdb.write_10(last, 1), data_out=bytes(512))
    expect_sense(result, ILLEGAL_REQUEST, 0x2100)


# ── Sense ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.normative("scsi.req.d23", "scsi.req.d5", "scsi.req.d6")
def test_sense_is_there_when_there_is_any(guest: Guest) -> None:
    disk = Disk(guest.device, 0, 0).ready()
    result = disk.run(b"\xff" * 16)
    expect_sense(result, ILLEGAL_REQUEST, 0x2000)
    assert len(result.sense) >= 18
    assert len(result.sense) == 8 + result.sense[7]
    assert disk.run(cdb.test_unit_ready()).sense == b""


def test_each_nexus_begins_with_a_unit_attention(server: Server) -> None:
    with attach(server) as guest:
        disk = Disk(guest.device, 0, 0)
        result = disk.run(cdb.test_unit_ready())
        assert result.sense[2] & 0xF == UNIT_ATTENTION
        assert result.sense[12] == 0x29
        expect_good(disk.run(cdb.test_unit_ready()))


def test_write_to_a_read_only_unit(guest: Guest) -> None:
    disk = Disk(guest.device, 7, 5).ready()
    expect_sense(disk.run(cdb.write_10(0, 1), data_out=bytes(512)), DATA_PROTECT, 0x2700)
    assert disk.read(0, 1) == bytes(512)
    # DEVICE-SPECIFIC PARAMETER of the mode parameter header: WP.
    result = disk.run(cdb.mode_sense_10(255), data_in_length=255)
    assert result.data[3] & 0x80


# ── Addressing ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.normative("scsi.req.d9")
@pytest.mark.parametrize("target", [1, 6, 8, 254])
def test_absent_target(guest: Guest, target: int) -> None:
    result = guest.device.execute(target, 0, cdb.inquiry(36), data_in_length=36)
    assert result.response == Response.BAD_TARGET
    assert result.host_byte is HostByte.BAD_TARGET
    assert result.residual in (0, 36)


@pytest.mark.parametrize(("target", "lun"), [(0, 2), (0, MAX_LUN), (7, 0), (255, 0)])
def test_absent_lun_of_a_target(guest: Guest, target: int, lun: int) -> None:
    """SPC-6 and SAM-6: INQUIRY answers with qualifier 011b, others with 25/00."""
    result = guest.device.execute(target, lun, cdb.inquiry(36), data_in_length=36)
    assert (result.response, result.status) == (Response.OK, GOOD)
    assert result.data[0] == 0x7F
    expect_sense(guest.device.execute(target, lun, cdb.test_unit_ready()), ILLEGAL_REQUEST, 0x2500)


@pytest.mark.normative("scsi.req.d1")
def test_report_luns_well_known_unit(guest: Guest) -> None:
    request = Request(REPORT_LUNS_WLUN, cdb.report_luns(64), 99, data_in_length=64)
    result = guest.device.wait(guest.device.submit_request(request))
    assert (result.response, result.status) == (Response.OK, GOOD)
    assert struct.unpack_from(">I", result.data)[0] % 8 == 0
    request = Request(REPORT_LUNS_WLUN, cdb.inquiry(36), 100, data_in_length=36)
    result = guest.device.wait(guest.device.submit_request(request))
    assert (result.response, result.status) == (Response.OK, GOOD)
    assert result.data[0] == 0x1E, "peripheral device type of a well-known unit"


@pytest.mark.normative("scsi.req.d21")
@pytest.mark.parametrize(
    "field",
    [
        "0000400000000000",
        "0200400000000000",
        "0100c00000000000",
        "0100400000010000",
        "0100400000000001",
        "c102000000000000",
        "ffffffffffffffff",
    ],
)
def test_lun_fields_that_address_nothing(guest: Guest, field: str) -> None:
    Disk(guest.device, 0, 0).ready()
    request = Request(bytes.fromhex(field), cdb.test_unit_ready(), 1)
    result = guest.device.wait(guest.device.submit_request(request))
    assert (result.response, result.status) != (Response.OK, GOOD)


@pytest.mark.normative("scsi.req.d21")
def test_all_targets_scanned(guest: Guest) -> None:
    assert [(f.target, f.lun, f.device_type) for f in scan(guest.device)] == [
        (0, 0, 0),
        (0, 1, 0),
        (7, 5, 0),
        (255, MAX_LUN, 0),
    ]
    assert report_luns(guest.device, 0) == [0, 1]
    found = next(scan(guest.device, range(1)))
    assert isinstance(found, Found)
    assert found.vendor


@pytest.mark.normative("scsi.req.d3", "scsi.req.d4")
@pytest.mark.parametrize("attribute", list(TaskAttribute)[:3])
def test_task_attributes(guest: Guest, attribute: TaskAttribute) -> None:
    Disk(guest.device, 0, 0).ready()
    request = Request(
        encode_lun(0, 0),
        cdb.read_10(0, 1),
        5,
        data_in_length=512,
        task_attribute=attribute,
        priority=3,
        crn=1,
    )
    expect_good(guest.device.wait(guest.device.submit_request(request)))


@pytest.mark.normative("scsi.req.d16")
def test_both_directions_fail_at_once(guest: Guest) -> None:
    disk = Disk(guest.device, 0, 0).ready()
    disk.write(30, pattern(512, seed=8))
    result = disk.run(cdb.write_10(30, 1), data_out=bytes(512), data_in_length=512)
    assert result.response == Response.FAILURE
    assert result.host_byte is HostByte.ERROR
    assert disk.read(30, 1) == pattern(512, seed=8), "the command was executed"


# ── Several in flight ───────────────────────────────────────────────────────────────────────────


@pytest.mark.normative("split.used.d2")
def test_many_commands_in_flight(guest: Guest) -> None:
    disk = Disk(guest.device, 0, 0).ready()
    writes = [
        guest.device.submit(0, 0, cdb.write_16(8 * i, 8), data_out=pattern(4096, seed=i))
        for i in range(100)
    ]
    for result in guest.device.wait_all(writes):
        expect_good(result)
    reads = [
        guest.device.submit(0, 0, cdb.read_16(8 * i, 8), data_in_length=4096) for i in range(100)
    ]
    for i, result in enumerate(guest.device.wait_all(reads)):
        expect_good(result)
        assert result.data == pattern(4096, seed=i)
    assert disk.read(0, 8) == pattern(4096, seed=0)


@pytest.mark.normative("scsi.req.d20", "scsi.cfg.d7", "scsi.vq.d1")
def test_every_request_queue_serves(server: Server) -> None:
    with attach(server, Options(queues=None)) as guest:
        assert guest.device.config.num_queues == server.queues
        assert len(guest.device.queues) == server.queues + REQUEST_QUEUE
        disk = Disk(guest.device, 0, 0).ready()
        queues = range(REQUEST_QUEUE, REQUEST_QUEUE + server.queues)
        for queue in queues:
            disk.write(queue * 100, pattern(4096, seed=queue), queue=queue)
        for queue in queues:
            assert disk.read(queue * 100, 8, queue=queue) == pattern(4096, seed=queue)
        flying = [
            guest.device.submit(0, 0, cdb.read_16(q * 100, 8), data_in_length=4096, queue=q)
            for _ in range(10)
            for q in queues
        ]
        for item, result in zip(flying, guest.device.wait_all(flying), strict=True):
            assert result.data == pattern(4096, seed=item.queue)
