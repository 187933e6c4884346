"""What both devices are asked over their rings. Each script yields (observation, value)."""

import struct
from collections.abc import Iterator

from tests.conformance import cdb
from tests.conformance.differential.machine import BLOCKS, UNTOUCHED, Machine
from tests.conformance.differential.registers import Observations
from vscsi_emu.driver.request import (
    REPORT_LUNS_WLUN,
    RESPONSE_FIXED,
    Request,
    Result,
    TaskAttribute,
)
from vscsi_emu.driver.virtio_scsi import REQUEST_QUEUE, VirtioScsi
from vscsi_emu.driver.vring import USED_ELEMENT
from vscsi_emu.virtio.config import DEFAULT_SENSE_SIZE
from vscsi_emu.virtio.scsi import TmfType, encode_lun

_ALL_SENSE = 252


def first_command(machine: Machine) -> Observations:
    """What a new I_T nexus hears first, and after a device reset."""
    for name in ("first", "after_reset"):
        driver = machine.driver()
        for turn in ("one", "two", "three"):
            result = driver.execute(0, 0, cdb.test_unit_ready())
            yield f"{name}.{turn}", _outcome(result)


def identification(machine: Machine) -> Observations:
    driver = _ready(machine)
    yield from _seen(driver, "inquiry", cdb.inquiry(36), 36)
    for page in (0x00, 0x80, 0x83, 0xB0, 0xB1, 0xB2, 0x42):
        yield from _seen(driver, f"vpd_{page:02x}", cdb.inquiry(255, page), 255)
    yield from _seen(driver, "inquiry_page_without_evpd", bytes([0x12, 0, 0x80, 0, 36, 0]), 36)
    yield from _seen(driver, "report_luns", cdb.report_luns(256), 256)
    yield from _seen(driver, "report_luns_too_short", cdb.report_luns(8), 8)
    yield from _seen(driver, "read_capacity_10", bytes([0x25]) + bytes(9), 8)
    yield from _seen(driver, "read_capacity_16", cdb.read_capacity_16(32), 32)
    yield from _seen(driver, "request_sense", bytes([3, 0, 0, 0, _ALL_SENSE, 0]), _ALL_SENSE)


def mode_pages(machine: Machine) -> Observations:
    driver = _ready(machine)
    for page in (0x01, 0x02, 0x04, 0x08, 0x0A, 0x1C, 0x3F, 0x11):
        command = bytes([0x1A, 0, page, 0, 255, 0])
        yield from _seen(driver, f"sense_6_{page:02x}", command, 255)
    for control, name in ((1, "changeable"), (2, "default"), (3, "saved")):
        command = bytes([0x1A, 0, control << 6 | 0x08, 0, 255, 0])
        yield from _seen(driver, f"caching_{name}", command, 255)
    yield from _seen(driver, "sense_10", cdb.mode_sense_10(255), 255)


def media(machine: Machine) -> Observations:
    driver = _ready(machine)
    data = cdb.pattern(16 * 512)
    for size, write, read in (
        (6, cdb.write_6, cdb.read_6),
        (10, cdb.write_10, cdb.read_10),
        (12, cdb.write_12, cdb.read_12),
        (16, cdb.write_16, cdb.read_16),
    ):
        yield from _seen(driver, f"write_{size}", write(8 * size, 16), data_out=data)
        yield from _seen(driver, f"read_{size}", read(8 * size, 16), len(data))
    yield from _seen(driver, "verify_10", cdb.verify_10(64, 16))
    yield from _seen(driver, "synchronize_cache_10", cdb.synchronize_cache_10())
    descriptor = struct.pack(">HH4xQI4x", 22, 16, 64, 16)
    yield from _seen(driver, "unmap", cdb.unmap(len(descriptor)), data_out=descriptor)
    yield from _seen(driver, "read_unmapped", cdb.read_10(64, 16), 16 * 512)
    yield from _seen(driver, "write_same_16", _write_same(128, 16), data_out=data[:512])
    yield from _seen(driver, "read_same", cdb.read_10(128, 16), 16 * 512)
    yield from _seen(driver, "fua", cdb.write_10(0, 1, flags=8), data_out=data[:512])
    yield from _seen(driver, "no_blocks", cdb.read_10(0, 0))
    yield from _seen(driver, "start_unit", bytes([0x1B, 0, 0, 0, 1, 0]))
    yield from _seen(driver, "reserve_6", bytes([0x16]) + bytes(5))
    yield from _seen(driver, "release_6", bytes([0x17]) + bytes(5))


def refused(machine: Machine) -> Observations:
    driver = _ready(machine)
    yield from _seen(driver, "unknown_opcode", b"\xff" * 16)
    yield from _seen(driver, "read_behind_the_end", cdb.read_10(BLOCKS, 1), 512)
    yield from _seen(driver, "read_over_the_end", cdb.read_10(BLOCKS - 1, 2), 1024)
    yield from _seen(driver, "read_at_2_to_the_63", cdb.read_16(1 << 63, 1), 512)
    yield from _seen(driver, "write_behind_the_end", cdb.write_10(BLOCKS, 1), data_out=bytes(512))
    yield from _seen(driver, "verify_behind_the_end", cdb.verify_10(BLOCKS, 1))
    yield from _seen(driver, "reserved_bit", bytes([0x00, 1, 0, 0, 0, 0]))
    yield from _seen(driver, "link_bit", bytes([0x00, 0, 0, 0, 0, 1]))
    yield from _seen(driver, "protection", cdb.read_10(0, 1, flags=0x20), 512)
    yield from _seen(driver, "request_sense_after", bytes([3, 0, 0, 0, 18, 0]), 18)


def addressing(machine: Machine) -> Observations:
    driver = _ready(machine)
    for target, lun in ((0, 1), (0, 255), (0, 256), (0, 16383), (1, 0), (255, 0)):
        for name, command, length in (
            ("inquiry", cdb.inquiry(36), 36),
            ("test_unit_ready", cdb.test_unit_ready(), 0),
            ("report_luns", cdb.report_luns(64), 64),
        ):
            item = driver.submit(target, lun, command, data_in_length=length)
            result = driver.wait(item)
            yield from _parts(f"{target}_{lun}.{name}", result, item.ticket.reply)
    for name, field in (
        ("flat_lun_0", bytes([1, 0, 0x40, 0, 0, 0, 0, 0])),
        ("bytes_behind", bytes([1, 0, 0, 0, 0, 0, 0, 1])),
        ("bus_2", bytes([1, 0, 2, 0, 0, 0, 0, 0])),
        ("not_1", bytes([0, 0, 0, 0, 0, 0, 0, 0])),
        ("report_luns_well_known", REPORT_LUNS_WLUN),
    ):
        length = 64
        request = Request(field, cdb.report_luns(length), driver.next_tag(), data_in_length=length)
        item = driver.submit_request(request)
        yield from _parts(name, driver.wait(item), item.ticket.reply)


def residuals(machine: Machine) -> Observations:
    """Buffers that are longer and shorter than what a command moves."""
    driver = _ready(machine)
    for extra in (1, 512):
        yield from _seen(driver, f"read_room_for_{extra}_more", cdb.read_10(0, 1), 512 + extra)
    yield from _seen(driver, "read_511_of_512", cdb.read_10(0, 1), 511)
    yield from _seen(driver, "read_no_buffer", cdb.read_10(0, 1))
    yield from _seen(driver, "write_511_of_512", cdb.write_10(0, 1), data_out=bytes(511))
    yield from _seen(driver, "write_600_for_512", cdb.write_10(0, 1), data_out=bytes(600))
    yield from _seen(driver, "inquiry_5", cdb.inquiry(5), 36)
    yield from _seen(driver, "test_unit_ready_with_room", cdb.test_unit_ready(), 64)


def attributes(machine: Machine) -> Observations:
    driver = _ready(machine)
    for attribute in TaskAttribute:
        request = Request(
            encode_lun(0, 0), cdb.test_unit_ready(), driver.next_tag(), task_attribute=attribute
        )
        result = driver.wait(driver.submit_request(request))
        yield attribute.name, _outcome(result)
    request = Request(encode_lun(0, 0), cdb.test_unit_ready(), driver.next_tag(), task_attribute=9)
    yield "undefined", _outcome(driver.wait(driver.submit_request(request)))


def task_management(machine: Machine) -> Observations:
    """No command is in flight."""
    driver = _ready(machine)
    for function in TmfType:
        for target, lun in ((0, 0), (0, 5), (7, 0)):
            response = driver.task_management(function, target, lun, tag=99)
            yield f"{function.name}_{target}_{lun}", str(response)
    yield "undefined", str(driver.task_management(77, 0, 0))
    for name, reply in (
        ("query_async", driver.query_async(0, 0, 0x7F)),
        ("query_async_absent", driver.query_async(7, 0, 0x7F)),
        ("subscribe_async", driver.subscribe_async(0, 0, 0x7F)),
    ):
        yield name, f"response {reply.response}, events {reply.event_actual:#x}"
    yield "after_reset", _outcome(driver.execute(0, 0, cdb.test_unit_ready()))
    yield "after_that", _outcome(driver.execute(0, 0, cdb.test_unit_ready()))


def _ready(machine: Machine) -> VirtioScsi:
    """A driver past all unit attentions."""
    driver = machine.driver()
    for _ in range(4):
        if driver.execute(0, 0, cdb.test_unit_ready()).status == cdb.GOOD:
            return driver
    raise AssertionError("nothing but unit attentions")


def _write_same(lba: int, blocks: int) -> bytes:
    return struct.pack(">BBQIBB", 0x93, 0, lba, blocks, 0, 0)


def _seen(
    driver: VirtioScsi, name: str, command: bytes, room: int = 0, *, data_out: bytes = b""
) -> Iterator[tuple[str, str]]:
    request = Request(encode_lun(0, 0), command, driver.next_tag(), data_out, room)
    item = driver.submit_request(request)
    result = driver.wait(item)
    yield from _parts(name, result, item.ticket.reply)
    ring = driver.queues[REQUEST_QUEUE].ring
    raw = driver.bus.memory.read(ring.layout.used_entry(ring.used_index - 1), USED_ELEMENT.size)
    used = USED_ELEMENT.unpack(raw)[1]
    writable = RESPONSE_FIXED + DEFAULT_SENSE_SIZE + room
    if used == writable - min(result.residual, room):
        yield f"{name}.used", "what was written"
    elif used == writable + len(data_out):
        yield f"{name}.used", "all buffers"
    else:
        yield f"{name}.used", str(used)


def _parts(name: str, result: Result, reply: bytes) -> Iterator[tuple[str, str]]:
    """`reply`: all of the writable buffers, so that data are seen whatever the residual says."""
    yield name, _outcome(result)
    yield f"{name}.residual", str(result.residual)
    data = reply[RESPONSE_FIXED + DEFAULT_SENSE_SIZE :]
    written = data.rstrip(bytes([UNTOUCHED])).rstrip(b"\0")
    yield f"{name}.data", written.hex() or "none"


def _outcome(result: Result) -> str:
    """Response and status; of sense data key and code, which have a place in either format."""
    words = [f"response {result.response}, status {result.status:02x}h"]
    if result.sense:
        fixed = result.sense[0] & 0x7F in (0x70, 0x71)
        key = result.sense[2 if fixed else 1] & 0xF
        code = result.sense[12:14] if fixed else result.sense[2:4]
        words.append(f"sense {key:X}/{code.hex('/')}")
    return ", ".join(words)


SCRIPTS = (
    first_command,
    identification,
    mode_pages,
    media,
    refused,
    addressing,
    residuals,
    attributes,
    task_management,
)
