import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vscsi_emu.driver.host_byte import split_residual
from vscsi_emu.driver.request import (
    Framing,
    Request,
    Result,
    cut_at,
    every,
    joined,
    paged,
    separate,
)
from vscsi_emu.driver.scan import ScanError, decode_reported, sense_key

FRAMINGS = st.one_of(
    st.sampled_from([separate, joined]),
    st.integers(1, 600).map(every),
    st.integers(1, 600).map(paged),
    st.lists(st.integers(1, 600), max_size=5).map(lambda points: cut_at(*points)),
)


@given(FRAMINGS, st.integers(1, 300), st.integers(0, 600))
def test_pieces_make_up_the_whole(framing: Framing, header: int, data: int) -> None:
    pieces = framing(header, data)
    assert sum(pieces) == header + data
    assert min(pieces) >= 0


def test_cuts() -> None:
    assert list(cut_at(5, 60)(51, 20)) == [5, 55, 11]
    assert list(every(30)(51, 20)) == [30, 30, 11]
    assert list(paged(16)(51, 20)) == [51, 16, 4]


@pytest.mark.parametrize(
    ("residual", "out", "into", "expected"),
    [
        (0, 10, 20, (0, 0)),
        (5, 10, 20, (0, 5)),
        (20, 10, 20, (0, 20)),
        (25, 10, 20, (5, 20)),
        (30, 10, 20, (10, 20)),
        (99, 10, 20, (10, 20)),
        (3, 10, 0, (3, 0)),
    ],
)
def test_residual_of_two_directions(
    residual: int, out: int, into: int, expected: tuple[int, int]
) -> None:
    assert split_residual(residual, out, into) == expected


def test_reported_luns() -> None:
    assert decode_reported(bytes.fromhex("0005000000000000")) == 5
    assert decode_reported(bytes.fromhex("7fff000000000000")) == 16383
    for odd in ("0105000000000000", "c101000000000000", "0005000100000000"):
        with pytest.raises(ScanError):
            decode_reported(bytes.fromhex(odd))


def test_sense_keys() -> None:
    assert sense_key(bytes.fromhex("7000060000000000")) == 6
    assert sense_key(bytes.fromhex("7205240000000000")) == 5
    assert sense_key(b"") == 0


@pytest.mark.parametrize(
    ("residual", "out", "into", "data"),
    [(0, 0, 0, b"abcd"), (3, 0, 3, b"a"), (4, 0, 4, b""), (9, 5, 4, b""), (99, 10, 4, b"")],
)
def test_a_residual_of_both_directions(residual: int, out: int, into: int, data: bytes) -> None:
    """Data-out moves first, so what is missing is data-in's before it is data-out's."""
    request = Request(bytes(8), bytes(6), 1, data_out=bytes(10), data_in_length=4)
    reply = struct.pack("<IIHBB", 0, residual, 0, 0, 0) + bytes(96) + b"abcd"
    result = Result.unpack(reply, 96, request)
    assert (result.residual_out, result.residual_in, result.data) == (out, into, data)
