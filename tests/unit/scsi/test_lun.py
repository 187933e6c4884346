"""SAM-6: LUN addressing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vscsi_emu.scsi import MAX_LUN, REPORT_LUNS_WLUN, decode_lun, encode_lun


@pytest.mark.parametrize(
    ("lun", "wire"),
    [
        (0, "0000000000000000"),
        (1, "0001000000000000"),
        (255, "00ff000000000000"),
        (256, "4100000000000000"),
        (16383, "7fff000000000000"),
        (REPORT_LUNS_WLUN, "c101000000000000"),
    ],
)
def test_vectors(lun: int, wire: str) -> None:
    assert encode_lun(lun).hex() == wire
    assert decode_lun(bytes.fromhex(wire)) == lun


@pytest.mark.parametrize(
    "wire",
    [
        "0100000000000000",  # peripheral addressing on bus 1
        "0001000100000000",  # a second level
        "0001000000000001",
        "8001000000000000",  # logical unit addressing
        "c102000000000000",  # the ACCESS CONTROLS well known logical unit
        "ffffffffffffffff",
    ],
)
def test_what_addresses_nothing_here(wire: str) -> None:
    assert decode_lun(bytes.fromhex(wire)) is None


def test_small_luns_are_understood_in_flat_space_addressing() -> None:
    assert decode_lun(bytes.fromhex("4005000000000000")) == 5


@pytest.mark.parametrize("lun", [MAX_LUN + 1, 1 << 16])
def test_too_large(lun: int) -> None:
    with pytest.raises(ValueError, match="16383"):
        encode_lun(lun)


@given(st.integers(0, MAX_LUN))
def test_round_trip(lun: int) -> None:
    assert decode_lun(encode_lun(lun)) == lun


@given(st.binary(min_size=8, max_size=8))
def test_any_bytes_decode_to_a_lun_or_to_none(wire: bytes) -> None:
    lun = decode_lun(wire)
    assert lun is None or lun == REPORT_LUNS_WLUN or 0 <= lun <= MAX_LUN
