"""The Block Limits VPD page that a guest gets."""

from __future__ import annotations

import pytest

from vscsi_emu.host.block_limits import for_guest

SIZE = 64
FIELDS = {
    "caw": (5, 6),
    "granularity": (6, 8),
    "max_transfer": (8, 12),
    "optimal": (12, 16),
    "max_unmap": (20, 24),
    "max_write_same": (36, 44),
    "max_atomic": (44, 48),
    "max_atomic_with_boundary": (56, 60),
}


def page(size: int = SIZE, **values: int) -> bytes:
    made = bytearray(size)
    made[:4] = bytes([0, 0xB0, 0, size - 4])
    for name, value in values.items():
        start, stop = FIELDS[name]
        made[start:stop] = value.to_bytes(stop - start, "big")
    return bytes(made)


def values(made: bytes) -> dict[str, int]:
    found = {name: int.from_bytes(made[slice(*at)], "big") for name, at in FIELDS.items()}
    return {name: value for name, value in found.items() if value}


@pytest.mark.parametrize(
    ("given", "limit", "expected"),
    [
        ({"max_transfer": 4096}, 256, {"max_transfer": 256}),
        ({"max_transfer": 128}, 256, {"max_transfer": 128}),
        ({}, 256, {"max_transfer": 256}),
        ({"optimal": 128}, 256, {"max_transfer": 256, "optimal": 128}),
        ({"optimal": 1024}, 256, {"max_transfer": 256, "optimal": 256}),
        (
            {"optimal": 1024, "granularity": 48},
            256,
            {"max_transfer": 256, "optimal": 240, "granularity": 48},
        ),
        (
            {"optimal": 1024, "granularity": 512},
            256,
            {"max_transfer": 256, "optimal": 256, "granularity": 512},
        ),
        ({"caw": 255}, 8, {"max_transfer": 8, "caw": 4}),
        ({"caw": 1}, 1, {"max_transfer": 1}),
        (
            {"max_atomic": 64, "max_atomic_with_boundary": 4},
            8,
            {"max_transfer": 8, "max_atomic": 8, "max_atomic_with_boundary": 4},
        ),
        (
            {"max_unmap": 1 << 20, "max_write_same": 1 << 40},
            8,
            {"max_transfer": 8, "max_unmap": 1 << 20, "max_write_same": 1 << 40},
        ),
    ],
)
def test_no_transfer_is_longer_than_the_limit(
    given: dict[str, int], limit: int, expected: dict[str, int]
) -> None:
    made = for_guest(page(**given), 0, limit)
    assert values(made) == expected
    assert made[:4] == bytes([0, 0xB0, 0, 60])


def test_a_page_of_an_old_standard_is_lengthened() -> None:
    made = for_guest(page(16, max_transfer=64), 0, 32)
    assert (len(made), made[:4]) == (SIZE, bytes([0, 0xB0, 0, 60]))
    assert values(made) == {"max_transfer": 32}


def test_a_page_of_a_newer_one_keeps_its_tail() -> None:
    made = for_guest(page(72) + b"", 0, 32)
    assert (len(made), made[3]) == (72, 68)


def test_a_device_without_a_page_gets_one() -> None:
    made = for_guest(None, 0x05, 640)
    assert (made[:4], values(made)) == (bytes([5, 0xB0, 0, 60]), {"max_transfer": 640})
