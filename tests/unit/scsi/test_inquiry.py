"""INQUIRY: standard data and VPD pages, byte by byte (SPC-6, SBC-4 6.6)."""

import struct

import pytest

from tests.unit.scsi.harness import (
    PORT_NAA,
    UNIT_NAA,
    attention,
    bad_cdb,
    good,
    make_target,
    make_unit,
    new_target,
    refused,
)
from vscsi_emu._dataplane import Engine
from vscsi_emu.scsi import REPORT_LUNS_WLUN, Asc, Identity, Limits, LogicalUnit, Target


def vpd(target: Target, page: int, lun: int = 0) -> bytes:
    data = good(target, bytes([0x12, 1, page, 0xFF, 0xFF, 0]), lun=lun)
    assert data[1] == page
    assert int.from_bytes(data[2:4]) == len(data) - 4
    return data


# ── Standard INQUIRY data ──────────────────────────────────────────────────────────────────────


def test_standard_data() -> None:
    data = good(make_target(make_unit()), "1200 00 00ff 00")
    assert data == (
        bytes.fromhex("00 00 06 32 5b 38 00 02")
        + b"ACME    "
        + b"Rocket disk     "
        + b"0001"
        + bytes(22)
        + bytes.fromhex("00a0 0460 04c0")
        + bytes(10 + 22)
    )
    # Not padded to the allocation length; ADDITIONAL LENGTH counts what follows byte 4.
    assert len(data) == 96 == data[4] + 5


def test_multip_is_for_several_target_ports() -> None:
    unit = make_unit()
    target = make_target(unit)
    assert multip(target) == 0
    other = new_target(unit, number=1)
    assert refused(target, "00") == attention(Asc.INQUIRY_DATA_HAS_CHANGED)
    # A port that is still to hear of POWER ON will ask all the same.
    assert refused(other, "00") == attention(Asc.POWER_ON_OCCURRED)
    assert good(other, "00") == good(target, "00") == b""
    assert (multip(target), multip(other)) == (0x10, 0x10)
    third = make_target(unit, number=2)
    assert good(target, "00") == good(third, "00") == b"", "nothing has changed"
    third.close()
    other.close()
    assert refused(target, "00") == attention(Asc.INQUIRY_DATA_HAS_CHANGED)
    assert multip(target) == 0


def test_several_luns_of_one_port_are_not_several_ports() -> None:
    unit = make_unit()
    target = make_target(unit)
    target.attach({1: unit})
    assert multip(target) == 0


def test_the_ports_that_make_multip_are_those_that_are_reported() -> None:
    unit = make_unit()
    target = make_target(unit)
    other = make_target(unit, number=1)
    good(target, "12 00 00 00ff 00")
    for port, own in ((target, 1), (other, 2)):
        page = vpd(port, 0x83)
        assert bytes.fromhex("01 14 00 04 0000") + own.to_bytes(2) in page
        assert bytes.fromhex("01 15 00 04 0000") + own.to_bytes(2) in page


def multip(target: Target) -> int:
    return good(target, "1200 00 00ff 00")[6] & 0x10


@pytest.mark.parametrize("allocation", [0, 5, 36, 95, 96, 0x1234])
def test_allocation_length_cuts(allocation: int) -> None:
    target = make_target(make_unit())
    full = good(target, "120000ffff00")
    cdb = bytes([0x12, 0, 0]) + allocation.to_bytes(2)
    assert good(target, cdb) == full[:allocation]


def test_page_code_without_evpd() -> None:
    target = make_target(make_unit())
    assert refused(target, "120080ffff00") == bad_cdb(2, 7)


def test_cmddt_is_refused() -> None:
    assert refused(make_target(make_unit()), "120200ffff00") == bad_cdb(1, 1)


def test_absent_logical_unit() -> None:
    data = good(make_target(make_unit()), "120000ffff00", lun=9)
    assert data[0] == 0x7F
    assert data[2:4] == bytes([6, 0x12])
    assert len(data) == 96
    assert vpd(make_target(make_unit()), 0x00, lun=9) == bytes([0x7F, 0, 0, 1, 0])


def test_well_known_logical_unit() -> None:
    data = good(make_target(make_unit()), "120000ffff00", lun=REPORT_LUNS_WLUN)
    assert data[0] == 0x1E
    assert data[2] == 6
    page = vpd(make_target(make_unit()), 0x00, lun=REPORT_LUNS_WLUN)
    assert page == bytes([0x1E, 0, 0, 2, 0x00, 0x83])


# ── VPD pages ──────────────────────────────────────────────────────────────────────────────────


def test_supported_pages() -> None:
    thin, thick = make_target(make_unit()), make_target(make_unit(discard=False))
    assert vpd(thin, 0x00) == bytes.fromhex("00 00 000a 00 80 83 86 87 8a 8f b0 b1 b2")
    assert vpd(thick, 0x00) == bytes.fromhex("00 00 0009 00 80 83 86 87 8a 8f b0 b1")


@pytest.mark.parametrize("page", [0x01, 0x81, 0x84, 0x85, 0x88, 0x89, 0xB3, 0xFF])
def test_unsupported_page(page: int) -> None:
    assert refused(make_target(make_unit()), bytes([0x12, 1, page, 0, 255])) == bad_cdb(2, 7)


def test_every_listed_page_is_there() -> None:
    target = make_target(make_unit())
    for page in vpd(target, 0x00)[4:]:
        vpd(target, page)


def test_unit_serial_number() -> None:
    assert vpd(make_target(make_unit()), 0x80) == b"\0\x80\0\x08SERIAL-1"


def test_device_identification() -> None:
    assert vpd(make_target(make_unit()), 0x83)[4:] == b"".join(
        [
            bytes.fromhex("01 03 00 08") + UNIT_NAA,
            bytes.fromhex("02 01 00 20") + b"ACME    Rocket disk     SERIAL-1",
            bytes.fromhex("03 08 00 18") + b"naa.3000000000000001\0\0\0\0",
            bytes.fromhex("01 14 00 04 00000001"),
            bytes.fromhex("01 13 00 08") + PORT_NAA,
            bytes.fromhex("03 18 00 18") + b"naa.3000000000000002\0\0\0\0",
            bytes.fromhex("01 15 00 04 0000 0001"),
        ]
    )


def test_device_identification_of_the_well_known_unit_names_the_port_only() -> None:
    page = vpd(make_target(make_unit()), 0x83, lun=REPORT_LUNS_WLUN)
    assert page[4:12] == bytes.fromhex("01 14 00 04 00000001")
    assert UNIT_NAA not in page
    assert bytes.fromhex("01 15 00 04") not in page


def test_device_identification_of_a_nameless_port() -> None:
    target = Target({0: make_unit()}, relative_port=7, port_group=9)
    assert vpd(target, 0x83)[-16:] == bytes.fromhex("01 14 00 04 00000007 01 15 00 04 00000009")


def test_a_16_byte_name() -> None:
    naa = bytes.fromhex("600000000000000100000000000000ff")
    unit = LogicalUnit(Engine.memory(1 << 20), Identity("S", naa))
    page = vpd(make_target(unit), 0x83)
    assert page[4:8] == bytes.fromhex("01 03 00 10")
    assert page[8:24] == naa


def test_power_conditions() -> None:
    # standby_y, standby_z; idle_c, idle_b, idle_a; no recovery times.
    page = vpd(make_target(make_unit()), 0x8A)
    assert page == bytes.fromhex("00 8a 000e 03 07") + bytes(12)


def test_extended_inquiry() -> None:
    page = vpd(make_target(make_unit()), 0x86)
    # HEADSUP, ORDSUP, SIMPSUP; V_SUP; LUICLR.
    assert page == bytes.fromhex("00 86 003c 00 07 01 01") + bytes(56)


def test_mode_page_policy() -> None:
    assert vpd(make_target(make_unit()), 0x87) == bytes.fromhex("00 87 0004 3f ff 00 00")


def test_block_limits() -> None:
    limits = Limits(
        max_transfer_blocks=0x10000,
        optimal_transfer_blocks=0x800,
        optimal_granularity_blocks=8,
        max_write_same_blocks=0x8000,
        max_unmap_blocks=0x100000,
        max_unmap_descriptors=0x100,
        unmap_granularity_blocks=8,
        unmap_alignment=3,
        max_compare_and_write_blocks=0xFE,
        max_atomic_blocks=0x800,
        atomic_granularity_blocks=8,
    )
    assert vpd(make_target(make_unit(limits=limits)), 0xB0) == bytes.fromhex(
        "00 b0 003c 00 fe 0008"
        "00010000 00000800 00000000 00100000 00000100 00000008 80000003"
        "0000000000008000 00000800 00000008 00000008" + "00" * 8
    )


def test_block_limits_without_discard_promise_no_unmap() -> None:
    page = vpd(make_target(make_unit(discard=False)), 0xB0)
    assert page[20:36] == bytes(16)
    assert len(page) == 64


@pytest.mark.parametrize("block_size", [512, 4096])
def test_default_limits_are_what_the_data_plane_obeys(block_size: int) -> None:
    unit = make_unit(block_size=block_size)
    page = vpd(make_target(unit), 0xB0)
    transfer, unmap, descriptors = struct.unpack_from(">I8xII", page, 8)
    write_same = int.from_bytes(page[36:44])
    atomic, alignment, granularity = struct.unpack_from(">III", page, 44)
    policy = unit.data_plane.policy
    assert (transfer, write_same, unmap, descriptors) == (
        policy.max_transfer_blocks,
        policy.max_write_same_blocks,
        policy.max_unmap_blocks,
        policy.max_unmap_descriptors,
    )
    assert page[5] == policy.max_compare_and_write_blocks == 255
    assert atomic == policy.max_atomic_blocks == (1 << 20) // block_size
    assert alignment == granularity == policy.atomic_granularity_blocks == 4096 // block_size
    assert transfer * block_size == 32 << 20
    assert 256 <= write_same < 65536


@pytest.mark.parametrize("rate", [0, 1, 7200])
def test_block_device_characteristics(rate: int) -> None:
    page = vpd(make_target(make_unit(rotation_rate=rate)), 0xB1)
    assert page == bytes.fromhex("00 b1 003c") + rate.to_bytes(2) + b"\0\x50\x07" + bytes(55)


@pytest.mark.parametrize(("lbprz", "flags"), [(False, "e0"), (True, "e4")])
def test_logical_block_provisioning(lbprz: bool, flags: str) -> None:
    # LBPU, LBPWS, LBPWS10, LBPRZ 000b or 001b; thin.
    page = vpd(make_target(make_unit(lbprz=lbprz)), 0xB2)
    assert page == bytes.fromhex(f"00 b2 0004 00 {flags} 02 00")
