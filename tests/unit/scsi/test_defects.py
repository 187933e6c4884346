"""READ DEFECT DATA: the lists are empty in every format."""

import pytest

from tests.unit.scsi.harness import bad_cdb, good, make_target, make_unit, refused


@pytest.mark.parametrize("form", range(6))
@pytest.mark.parametrize("lists", [0x00, 0x08, 0x10, 0x18])
def test_empty_lists(form: int, lists: int) -> None:
    target = make_target(make_unit())
    asked = lists | form
    assert good(target, f"37 00 {asked:02x} 00000000 00ff 00") == bytes([0, asked, 0, 0])
    long = good(target, f"b7 {asked:02x} 00000007 000000ff 00 00")
    assert long == bytes([0, asked, *bytes(6)])
    assert good(target, f"37 00 {asked:02x} 00000000 0003 00") == bytes([0, asked, 0])


@pytest.mark.parametrize("form", [6, 7])
def test_formats_that_do_not_exist(form: int) -> None:
    target = make_target(make_unit())
    assert refused(target, f"37 00 {form:02x} 00000000 00ff 00") == bad_cdb(2, 2)
    assert refused(target, f"b7 {form:02x} 00000000 000000ff 00 00") == bad_cdb(1, 2)
