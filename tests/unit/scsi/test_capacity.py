"""READ CAPACITY (SBC-4 5.20, 5.21)."""

import pytest

from tests.unit.scsi.harness import bad_cdb, good, make_target, make_unit, refused

READ_CAPACITY_16 = "9e10 0000000000000000 000000ff 0000"


@pytest.mark.parametrize(
    ("size", "block_size", "data"),
    [
        (1 << 20, 512, "000007ff 00000200"),
        (1 << 20, 4096, "000000ff 00001000"),
        (512 << 32, 512, "ffffffff 00000200"),  # the last LBA that fits, by value
        (513 << 32, 512, "ffffffff 00000200"),
    ],
)
def test_10(size: int, block_size: int, data: str) -> None:
    target = make_target(make_unit(size=size, block_size=block_size))
    assert good(target, "25") == bytes.fromhex(data)


def test_16() -> None:
    target = make_target(make_unit(size=3 << 40))
    data = good(target, READ_CAPACITY_16)
    assert data[:14] == bytes.fromhex("000000017fffffff 00000200 00 00")
    assert len(data) == 32


@pytest.mark.parametrize(
    ("discard", "lbprz", "flags"),
    [(True, False, "8000"), (True, True, "c000"), (False, True, "0000")],
)
def test_16_provisioning(discard: bool, lbprz: bool, flags: str) -> None:
    target = make_target(make_unit(discard=discard, lbprz=lbprz, physical_block_exponent=3))
    assert good(target, READ_CAPACITY_16) == bytes.fromhex(
        "00000000000007ff 00000200 00 03" + flags + "00" * 16
    )


def test_16_is_cut_by_allocation_length() -> None:
    target = make_target(make_unit())
    assert good(target, "9e10 0000000000000000 0000000c 0000") == bytes.fromhex(
        "00000000000007ff 00000200"
    )


def test_pmi_and_lba_are_obsolete() -> None:
    target = make_target(make_unit())
    assert refused(target, "25 00 00000001") == bad_cdb(5, 0)
    assert refused(target, "25 00 00000000 0000 01") == bad_cdb(8, 0)
