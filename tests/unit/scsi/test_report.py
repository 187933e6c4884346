"""REPORT LUNS, REPORT SUPPORTED …, LOG SENSE (SPC-6)."""

import struct

import pytest

from tests.unit.scsi.harness import bad_cdb, good, make_target, make_unit, refused
from vscsi_emu.scsi import REPORT_LUNS_WLUN, Target

WELL_KNOWN = "c101000000000000"
THREE = ["0000000000000000", "0005000000000000", "412c000000000000"]


def three_units() -> Target:
    return Target({300: make_unit(), 0: make_unit(), 5: make_unit()})


def report_luns(target: Target, select: int, *, lun: int = 0, allocation: int = 0x1000) -> bytes:
    return good(target, struct.pack(">BxB3xI", 0xA0, select, allocation), lun=lun)


# ── REPORT LUNS ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("select", "entries"),
    [
        (0x00, THREE),
        (0x01, [WELL_KNOWN]),
        (0x02, [*THREE, WELL_KNOWN]),
        (0x10, []),
        (0x11, THREE),
    ],
)
@pytest.mark.parametrize("lun", [0, REPORT_LUNS_WLUN])
def test_select_report(select: int, entries: list[str], lun: int) -> None:
    data = report_luns(three_units(), select, lun=lun)
    assert data == struct.pack(">I4x", 8 * len(entries)) + bytes.fromhex("".join(entries))


@pytest.mark.parametrize(("select", "lun"), [(0x03, 0), (0x12, 0), (0x10, 5), (0x11, 5), (0xFF, 0)])
def test_select_report_that_cannot_be(select: int, lun: int) -> None:
    cdb = struct.pack(">BxB3xI", 0xA0, select, 0x100)
    assert refused(three_units(), cdb, lun=lun) == bad_cdb(2, 7)


@pytest.mark.parametrize("allocation", [0, 8, 15])
def test_too_small_an_allocation_length(allocation: int) -> None:
    cdb = struct.pack(">BxB3xI", 0xA0, 0, allocation)
    assert refused(three_units(), cdb) == bad_cdb(6, 7)


def test_the_list_length_is_whole_when_the_data_is_cut() -> None:
    data = report_luns(three_units(), 0, allocation=16)
    assert data == bytes.fromhex("00000018 00000000" + THREE[0])


# ── REPORT SUPPORTED OPERATION CODES ───────────────────────────────────────────────────────────


def one_command(
    target: Target, options: int, opcode: int, action: int = 0, *, allocation: int = 0xFF
) -> bytes:
    return good(target, struct.pack(">BBBBHI", 0xA3, 0x0C, options, opcode, action, allocation))


@pytest.mark.parametrize("discard", [True, False])
@pytest.mark.parametrize("timeouts", [False, True])
def test_all_commands(discard: bool, timeouts: bool) -> None:
    unit = make_unit(discard=discard)
    target = make_target(unit)
    data = one_command(target, 0x80 if timeouts else 0, 0, allocation=0x10000)
    size = 20 if timeouts else 8
    assert int.from_bytes(data[:4]) == len(data) - 4
    listed = []
    for offset in range(4, len(data), size):
        opcode, action, flags, length = struct.unpack_from(">BxHxBH", data, offset)
        has_action = bool(flags & 1)
        listed.append((opcode, action if has_action else None, length))
        assert bool(flags & 2) == timeouts
        if timeouts:
            descriptor = struct.unpack_from(">HHII", data, offset + 8)
            assert descriptor[:3] == (10, 0, 0)
            assert descriptor[3] >= 60
    table = [(entry.opcode, entry.service_action, entry.length) for entry in unit.commands]
    assert listed == table
    assert ((0x42, None, 10) in table) == discard
    assert ((0x42, None, 10) in listed) == discard


LBA_32 = "ff" * 8


@pytest.mark.parametrize(
    ("options", "opcode", "action", "data"),
    [
        (1, 0x28, 0, "00 03 000a 2818ffffffff00ffff04"),
        (1, 0x00, 0, "00 03 0006 000000000004"),
        (2, 0x9E, 0x10, "00 03 0010 9e100000000000000000ffffffff0004"),
        (3, 0x9E, 0x10, "00 03 0010 9e100000000000000000ffffffff0004"),
        (3, 0x28, 0, "00 03 000a 2818ffffffff00ffff04"),
        (0x81, 0x28, 0, "00 83 000a 2818ffffffff00ffff04 000a 0000 00000000 0000003c"),
        (0x81, 0x04, 0, "00 83 0006 043f00000004 000a 0000 00000000 00015180"),
        (0x81, 0x35, 0, "00 83 000a 3502ffffffff00ffff04 000a 0000 00000000 00000384"),
        (0x81, 0x2F, 0, "00 83 000a 2f16ffffffff00ffff04 000a 0000 00000000 00003840"),
        # Not supported: by operation code, by service action, with one that it has not.
        (1, 0xFF, 0, "00 01 0000"),
        (2, 0x9E, 0x1F, "00 01 0000"),
        (3, 0x9E, 0x1F, "00 01 0000"),
        (3, 0x28, 1, "00 01 0000"),
        (2, 0xFF, 0, "00 01 0000"),
        (1, 0x9D, 0, "00 01 0000"),
        (2, 0x7F, 0x09, "00 03 0020 7f04 00000000 0018 0009 1800" + LBA_32 + "00" * 8 + "ff" * 4),
        (3, 0x7F, 0x0A, "00 03 0020 7f04 00000000 0018 000a 1600" + LBA_32 + "00" * 8 + "ff" * 4),
        (2, 0x7F, 0x0E, "00 01 0000"),
        (3, 0x7F, 0x0109, "00 01 0000"),
    ],
)
def test_one_command(options: int, opcode: int, action: int, data: str) -> None:
    target = make_target(make_unit(cdb_32=True))
    assert one_command(target, options, opcode, action) == bytes.fromhex(data)


@pytest.mark.parametrize(
    ("options", "opcode"),
    [
        (1, 0x9E),  # needs a service action to name a command
        (2, 0x28),  # has none
        (4, 0x28),
        (7, 0x28),
    ],
)
def test_one_command_asked_for_wrongly(options: int, opcode: int) -> None:
    cdb = struct.pack(">BBBBHI", 0xA3, 0x0C, options, opcode, 0, 0xFF)
    # Not byte 1: the libiscsi suite takes that for a command that is not implemented.
    assert refused(make_target(make_unit()), cdb) == bad_cdb(2, 2)


def test_unmap_is_reported_only_where_it_works() -> None:
    assert one_command(make_target(make_unit(discard=False)), 1, 0x42)[1] == 1
    assert one_command(make_target(make_unit()), 1, 0x42)[1] == 3


def test_dpo_and_fua_agree_with_mode_sense() -> None:
    target = make_target(make_unit())
    dpofua = good(target, "1a 08 08 00 ff")[2] & 0x10
    for opcode in (0x28, 0xA8, 0x88, 0x2A, 0xAA, 0x8A):
        assert (one_command(target, 1, opcode)[5] & 0x18 == 0x18) == bool(dpofua)


# ── REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS ─────────────────────────────────────────────────


def test_task_management_functions() -> None:
    target = make_target(make_unit())
    assert good(target, "a30d 00 000000 000000ff 0000") == bytes.fromhex("fc 03 00 00")
    assert good(target, "a30d 80 000000 000000ff 0000") == bytes.fromhex("fc 03 00 0c") + bytes(12)
    assert good(target, "a30d 80 000000 00000004 0000") == bytes.fromhex("fc 03 00 0c")
    assert refused(target, "a30d 00 000000 00000003 0000") == bad_cdb(6, 7)
