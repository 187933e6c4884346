"""Names and limits that cannot be are refused, with the reason."""

import pytest

from tests.unit.scsi.harness import UNIT_NAA, make_unit
from vscsi_emu.scsi import Identity, Limits, Target


def test_text_is_padded() -> None:
    identity = Identity("S", UNIT_NAA, vendor="V", product="P", revision="1")
    assert identity.vendor_field == b"V       "
    assert identity.product_field == b"P               "
    assert identity.revision_field == b"1   "
    assert identity.serial_field == b"S"


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("vendor", "NINECHARS", "vendor 'NINECHARS' is not 1 to 8 printable"),
        ("vendor", "", "vendor '' is not 1 to 8"),
        ("product", "x" * 17, "1 to 16"),
        ("revision", "12345", "1 to 4"),
        ("serial", "x" * 37, "1 to 36"),
        ("serial", "é", "printable ASCII"),
        ("serial", "a\n", "printable ASCII"),
        ("naa", b"", "no NAA name"),
        ("naa", bytes.fromhex("4000000000000001"), "must start with 2, 3, 5 or 6"),
        ("naa", bytes.fromhex("30000001"), "has 4 bytes; one that starts with 3 has 8"),
        ("naa", bytes.fromhex("6000000000000001"), "starts with 6 has 16"),
    ],
)
def test_what_cannot_be(field: str, value: str | bytes, message: str) -> None:
    names: dict[str, str | bytes] = {"serial": "S", "naa": UNIT_NAA, field: value}
    with pytest.raises(ValueError, match=message):
        Identity(**names)  # type: ignore[arg-type]


def test_a_16_byte_name() -> None:
    naa = bytes.fromhex("6000000000000001") + bytes(8)
    assert Identity("S", naa).naa == naa


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_transfer_blocks", 1 << 32),
        ("optimal_granularity_blocks", 1 << 16),
        ("unmap_alignment", 1 << 31),
        ("max_write_same_blocks", -1),
    ],
)
def test_limits_that_do_not_fit_their_field(field: str, value: int) -> None:
    with pytest.raises(ValueError, match=field):
        Limits(**{field: value})


def test_units_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="rotation rate 2 "):
        make_unit(rotation_rate=2)
    with pytest.raises(ValueError, match="exponent 16 "):
        make_unit(physical_block_exponent=16)
    with pytest.raises(ValueError, match="block_size"):
        make_unit(block_size=513)


def test_targets_that_cannot_be() -> None:
    unit = make_unit()
    with pytest.raises(ValueError, match="LUN 16384 "):
        Target({16384: unit})
    with pytest.raises(ValueError, match="relative target port 0 "):
        Target({}, relative_port=0)
    with pytest.raises(ValueError, match="target port group 65536 "):
        Target({}, port_group=65536)
    with pytest.raises(ValueError, match="NAA"):
        Target({}, naa=b"\x01")
    with pytest.raises(ValueError, match="LUN 0 is taken"):
        Target({0: unit}).attach({0: unit})
