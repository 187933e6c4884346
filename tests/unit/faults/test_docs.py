"""docs/faults.md shows what is declared."""

from __future__ import annotations

from dataclasses import MISSING, fields
from pathlib import Path
from typing import get_args

from vscsi_emu.control.method import REQUIRED
from vscsi_emu.control.methods import METHODS
from vscsi_emu.faults.documentation import updated
from vscsi_emu.faults.vocabulary import KINDS, Fault, Function
from vscsi_emu.virtio.scsi import TmfType

PAGE = Path(__file__).parents[3] / "docs" / "faults.md"


def test_the_tables_are_generated_from_the_declarations() -> None:
    text = PAGE.read_text()
    assert updated(text) == text, "run: python -m vscsi_emu.faults.documentation docs/faults.md"


def test_every_field_is_explained() -> None:
    text = PAGE.read_text()
    for field in fields(Fault):
        assert f"`{field.name}`" in text or field.name == "kind"


def test_the_method_takes_the_fields_of_a_fault() -> None:
    taken = {parameter.name: parameter for parameter in METHODS["fault.add"].parameters}
    for field in fields(Fault):
        required = field.default is MISSING
        assert taken[field.name].default == (REQUIRED if required else field.default)
    assert set(taken) == {field.name for field in fields(Fault)} | {"lun", "hba"}


def test_every_function_can_fail() -> None:
    assert set(get_args(Function)) == set(TmfType.__members__)


def test_kinds_take_fields_that_exist() -> None:
    names = {field.name for field in fields(Fault)}
    assert all(set(kind.takes) <= names for kind in KINDS.values())
