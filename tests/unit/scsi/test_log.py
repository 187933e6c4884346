"""LOG SENSE, LOG SELECT and the log pages (SPC-4 6.7, 6.8, 7.3)."""

from __future__ import annotations

import struct

import pytest

from tests.unit.scsi.harness import (
    Sense,
    attention,
    bad_cdb,
    bad_list,
    good,
    make_target,
    make_unit,
    refused,
    send,
)
from vscsi_emu.scsi import Asc, LogicalUnit, ScsiError, SenseKey, Target

WRITES, READS, VERIFICATIONS, NON_MEDIUM = 0x02, 0x03, 0x05, 0x06
PROVISIONING, TEMPERATURE, CYCLES, SELF_TESTS, SCANS, EXCEPTIONS = (
    0x0C,
    0x0D,
    0x0E,
    0x10,
    0x15,
    0x2F,
)
COUNTERS = [WRITES, READS, VERIFICATIONS, NON_MEDIUM]
ALL = [*COUNTERS, PROVISIONING, TEMPERATURE, CYCLES, SELF_TESTS, SCANS, EXCEPTIONS]
THRESHOLD, CUMULATIVE, DEFAULT_THRESHOLD, DEFAULT = range(4)


def sense_cdb(page: int, *, subpage: int = 0, control: int = CUMULATIVE, pointer: int = 0) -> bytes:
    return struct.pack(">BBBBxHHB", 0x4D, 0, control << 6 | page, subpage, pointer, 0xFFFF, 0)


def log(
    target: Target, page: int, *, control: int = CUMULATIVE, pointer: int = 0
) -> dict[int, bytes]:
    """The values of a page's parameters by code; headers are checked."""
    data = good(target, sense_cdb(page, control=control, pointer=pointer))
    assert data[:2] == bytes([0x80 | page, 0])
    assert int.from_bytes(data[2:4]) == len(data) - 4
    found: dict[int, bytes] = {}
    offset = 4
    while offset < len(data):
        code, flags, length = struct.unpack_from(">HBB", data, offset)
        assert flags == (0x22 if page <= NON_MEDIUM else 0x23)
        assert code > max(found, default=-1)
        found[code] = data[offset + 4 : offset + 4 + length]
        offset += 4 + length
    return found


def select_cdb(
    page: int = 0, *, subpage: int = 0, flags: int = 0, control: int = CUMULATIVE, length: int = 0
) -> bytes:
    return struct.pack(">BBBB3xHB", 0x4C, flags, control << 6 | page, subpage, length, 0)


PCR, SP = 2, 1

# ── LOG SENSE ──────────────────────────────────────────────────────────────────────────────────


def test_the_pages_that_list_the_pages() -> None:
    target = make_target(make_unit())
    pages = bytes([0, *ALL])
    assert good(target, sense_cdb(0)) == struct.pack(">xxH", len(pages)) + pages
    subpages = b"\0\0\0\xff" + b"".join(bytes([page, 0]) for page in ALL)
    data = good(target, sense_cdb(0, subpage=0xFF))
    assert data == struct.pack(">BBH", 0x40, 0xFF, len(subpages)) + subpages


@pytest.mark.parametrize("page", ALL)
def test_every_listed_page_is_there(page: int) -> None:
    assert log(make_target(make_unit()), page)


@pytest.mark.parametrize(
    ("cdb", "byte", "bit"),
    [
        (sense_cdb(0x01), 2, 5),
        (sense_cdb(0x3F), 2, 5),
        (sense_cdb(0, subpage=1), 3, 7),
        (sense_cdb(WRITES, subpage=1), 3, 7),
        (sense_cdb(0, pointer=1), 5, None),
        (sense_cdb(WRITES, pointer=7), 5, None),
        (sense_cdb(SELF_TESTS, pointer=21), 5, None),
        ("4d 01 40 00 000000 00ff", 1, 0),  # SP: nothing is saved
    ],
)
def test_what_is_not_there(cdb: str | bytes, byte: int, bit: int | None) -> None:
    assert refused(make_target(make_unit()), cdb) == bad_cdb(byte, bit)


@pytest.mark.parametrize(
    ("pointer", "codes"), [(0, range(1, 21)), (1, range(1, 21)), (7, range(7, 21)), (20, [20])]
)
def test_parameter_pointer(pointer: int, codes: range) -> None:
    assert list(log(make_target(make_unit()), SELF_TESTS, pointer=pointer)) == list(codes)
    # Between two codes: the next one.
    assert list(log(make_target(make_unit()), CYCLES, pointer=2)) == [4]


@pytest.mark.parametrize("page", [WRITES, READS, VERIFICATIONS, NON_MEDIUM])
def test_page_control_of_counters(page: int) -> None:
    unit = make_unit()
    target = make_target(unit)
    unit.errors.note(ScsiError(SenseKey.MEDIUM_ERROR, Asc.WRITE_ERROR))
    code = 0 if page == NON_MEDIUM else 6
    most, zero = {code: b"\xff" * 8}, {code: bytes(8)}
    assert log(target, page, control=THRESHOLD) == most
    assert log(target, page, control=DEFAULT_THRESHOLD) == most
    assert log(target, page, control=DEFAULT) == zero
    assert log(target, page) == {code: (page == WRITES).to_bytes(8)}


def test_lists_are_the_same_whatever_page_control() -> None:
    target = make_target(make_unit())
    for page in (TEMPERATURE, CYCLES, SELF_TESTS, EXCEPTIONS):
        assert len({str(log(target, page, control=control)) for control in range(4)}) == 1


# ── What is counted ────────────────────────────────────────────────────────────────────────────


def counts(unit: LogicalUnit) -> list[int]:
    target = make_target(unit)
    values = []
    for page in (WRITES, READS, VERIFICATIONS, NON_MEDIUM):
        (value,) = log(target, page).values()
        values.append(int.from_bytes(value))
    return values


async def _full() -> None:
    raise OSError(5, "Input/output error")


def test_errors_of_commands_that_python_ends() -> None:
    unit = make_unit(flush=_full)
    target = make_target(unit)
    assert refused(target, "1d 04 00 00 00").key == SenseKey.HARDWARE_ERROR
    assert counts(unit) == [0, 0, 0, 1]
    # STOP answers with a medium error where the cache cannot be written back.
    assert refused(target, "1b 00 00 00 00").code == Asc.WRITE_ERROR
    assert counts(unit) == [1, 0, 0, 1]
    # Deferred, and counted once.
    send(target, "1b 01 00 00 00")
    assert refused(target, "00").deferred
    assert counts(unit) == [2, 0, 0, 1]
    refused(target, "28 00 ffffffff 00 0001 00 ff")
    assert counts(unit) == [2, 0, 0, 1]


def test_errors_of_the_data_plane_come_first_in_its_order() -> None:
    unit = make_unit()
    assert unit.data_plane.errors == (0, 0, 0, 0)
    assert counts(unit) == [0, 0, 0, 0]


def test_temperature_cannot_be_measured() -> None:
    target = make_target(make_unit())
    assert log(target, TEMPERATURE) == {0: b"\x00\xff"}
    assert log(target, EXCEPTIONS) == {0: b"\x00\x00\xff\x00"}


def test_start_stop_cycles() -> None:
    target = make_target(make_unit(removable=True))
    assert log(target, CYCLES) == {4: bytes(4), 6: bytes(4)}
    for cdb in ("1b 00 00 00 00", "1b 00 00 00 00", "1b 00 00 00 01", "1b 00 00 00 01"):
        good(target, cdb)
    assert log(target, CYCLES) == {4: b"\0\0\0\1", 6: bytes(4)}
    for cdb in ("1b 00 00 00 02", "1b 00 00 00 03", "1b 00 00 00 02", "1b 00 00 00 03"):
        good(target, cdb)
    assert log(target, CYCLES)[6] == b"\0\0\0\2"
    assert list(log(make_target(make_unit()), CYCLES)) == [4]


def test_self_test_results(monkeypatch: pytest.MonkeyPatch) -> None:
    unit = make_unit(flush=_full)
    monkeypatch.setattr(LogicalUnit, "powered_on", 3600 * 70000.0)
    target = make_target(unit)
    refused(target, "1d a0 00 00 00")
    found = log(target, SELF_TESTS)
    assert list(found) == list(range(1, 21))
    # Foreground short; its first segment failed; hours saturate; nowhere; WRITE ERROR.
    assert found[1] == bytes.fromhex("a5 00 ffff ffffffffffffffff 03 0c00 00")
    assert set(map(bytes, list(found.values())[1:])) == {bytes(16)}


def test_background_scan_has_the_power_on_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LogicalUnit, "powered_on", 60 * 1000 + 59.0)
    assert log(make_target(make_unit()), SCANS) == {0: struct.pack(">I8x", 1000)}


# ── LOG SELECT ─────────────────────────────────────────────────────────────────────────────────


def failing() -> tuple[LogicalUnit, Target, Target]:
    """A unit with one write error and one of another kind."""
    unit = make_unit()
    unit.errors.note(ScsiError(SenseKey.MEDIUM_ERROR, Asc.WRITE_ERROR))
    unit.errors.note(ScsiError(SenseKey.HARDWARE_ERROR, Asc.INTERNAL_TARGET_FAILURE))
    return unit, make_target(unit), make_target(unit, number=1)


@pytest.mark.parametrize(
    ("cdb", "left"),
    [
        (select_cdb(flags=PCR), [0, 0, 0, 0]),
        (select_cdb(subpage=0xFF, flags=PCR, control=THRESHOLD), [0, 0, 0, 0]),
        (select_cdb(WRITES, flags=PCR), [0, 0, 0, 1]),
        (select_cdb(WRITES, subpage=0xFF, flags=PCR), [0, 0, 0, 1]),
        (select_cdb(NON_MEDIUM, flags=PCR | SP, control=DEFAULT), [1, 0, 0, 0]),
        (select_cdb(WRITES, control=DEFAULT), [0, 0, 0, 1]),
        (select_cdb(WRITES, flags=SP, control=DEFAULT), [0, 0, 0, 1]),
        (select_cdb(WRITES), [1, 0, 0, 1]),
        (select_cdb(control=THRESHOLD), [1, 0, 0, 1]),
        (select_cdb(control=DEFAULT_THRESHOLD), [1, 0, 0, 1]),
        (select_cdb(READS, flags=PCR), [1, 0, 0, 1]),
        (select_cdb(CYCLES, flags=PCR), [1, 0, 0, 1]),
    ],
)
def test_reset(cdb: bytes, left: list[int]) -> None:
    unit, target, other = failing()
    good(target, cdb)
    assert counts(unit) == left
    assert target.nexuses[0].pending == ()
    if left == [1, 0, 0, 1]:
        assert other.nexuses[0].pending == ()
    else:
        assert refused(other, "00") == attention(Asc.LOG_PARAMETERS_CHANGED)
    unit.errors.note(ScsiError(SenseKey.MEDIUM_ERROR, Asc.WRITE_ERROR))
    assert counts(unit)[0] == left[0] + 1


@pytest.mark.parametrize(
    ("cdb", "byte", "bit"),
    [
        (select_cdb(0x01, flags=PCR), 2, 5),
        (select_cdb(0x00, subpage=1, flags=PCR), 2, 5),
        (select_cdb(WRITES, subpage=1, flags=PCR), 3, 7),
        (select_cdb(flags=SP, control=THRESHOLD), 1, 0),
        (select_cdb(flags=SP | PCR, control=CUMULATIVE), 1, 0),
        (select_cdb(flags=PCR, length=4), 1, 1),
        (select_cdb(WRITES, length=4), 2, 5),
    ],
)
def test_what_cannot_be_selected(cdb: bytes, byte: int, bit: int | None) -> None:
    unit, target, _ = failing()
    assert refused(target, cdb, data_out=bytes(4)) == bad_cdb(byte, bit)
    assert counts(unit) == [1, 0, 0, 1]


def page(code: int, *parameters: bytes, ds: bool = True, subpage: int = 0) -> bytes:
    body = b"".join(parameters)
    return struct.pack(">BBH", ds << 7 | code, subpage, len(body)) + body


def counter(code: int, value: int, control: int = 0x22) -> bytes:
    return struct.pack(">HBBQ", code, control, 8, value)


@pytest.mark.parametrize(
    "data",
    [
        page(WRITES, counter(6, 1)),
        page(WRITES, counter(6, 1), ds=False) + page(NON_MEDIUM, counter(0, 1)),
        page(WRITES),
        # DU of a list, TMC: ignored.
        page(TEMPERATURE, bytes.fromhex("0000 af 02 00ff")),
    ],
)
def test_a_list_that_changes_nothing(data: bytes) -> None:
    unit, target, other = failing()
    good(target, select_cdb(length=len(data)), data_out=data)
    assert counts(unit) == [1, 0, 0, 1]
    assert other.nexuses[0].pending == ()


@pytest.mark.parametrize(
    ("data", "byte", "bit"),
    [
        (page(WRITES, counter(6, 2)), 8, None),
        (page(WRITES, counter(6, 0)), 8, None),
        (page(WRITES, counter(6, 1, control=0x32)), 6, 4),  # ETC
        (page(WRITES, counter(6, 1, control=0xA2)), 6, 7),  # DU
        (page(WRITES, counter(6, 1, control=0x02)), 6, 5),  # TSD
        (page(WRITES, counter(6, 1, control=0x20)), 6, 1),
        (page(WRITES, counter(5, 1)), 4, None),
        (page(WRITES, counter(6, 1), counter(6, 1)), 16, None),
        (page(WRITES, struct.pack(">HBBI", 6, 0x22, 4, 1)), 7, None),
        (page(WRITES, b"\0\6"), 2, None),
        (page(WRITES, counter(6, 1)[:-1]), 7, None),
        (b"\x82\0\0\x20" + counter(6, 1), 2, None),
        (page(0x01), 0, 5),
        (page(0), 0, 5),
        (page(WRITES, subpage=1), 0, 5),
        (page(WRITES) + page(WRITES), 4, 5),
        (page(READS) + page(WRITES), 4, 5),
        (page(CYCLES, struct.pack(">HBBI", 4, 0x23, 4, 9)), 8, None),
    ],
)
def test_lists_that_cannot_be(data: bytes, byte: int, bit: int | None) -> None:
    unit, target, _ = failing()
    assert refused(target, select_cdb(length=len(data)), data_out=data) == bad_list(byte, bit)
    assert counts(unit) == [1, 0, 0, 1]


def test_a_list_to_save() -> None:
    _, target, _ = failing()
    data = page(WRITES, counter(6, 1))
    good(target, select_cdb(flags=SP, length=len(data)), data_out=data)
    data = page(WRITES, counter(6, 1), ds=False)
    cdb = select_cdb(flags=SP, length=len(data))
    assert refused(target, cdb, data_out=data) == bad_list(0, 7)


def test_a_list_that_ends_too_early() -> None:
    _, target, _ = failing()
    too_short = Sense(SenseKey.ILLEGAL_REQUEST, Asc.PARAMETER_LIST_LENGTH_ERROR)
    assert refused(target, select_cdb(length=3), data_out=bytes(3)) == too_short
