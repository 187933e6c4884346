"""docs/commands.md says what is declared."""

import runpy
from pathlib import Path

from tests.unit.scsi.harness import make_target, make_unit, refused
from vscsi_emu.scsi import Asc

ROOT = Path(__file__).parents[3]


def test_the_table_is_up_to_date() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "command-table"))
    text = script["DOCUMENT"].read_text()
    assert script["updated"](text) == text, "run scripts/command-table"


def test_32_byte_commands_need_type_2_protection() -> None:
    target = make_target(make_unit())
    for action in (0x09, 0x0A, 0x0B, 0x0C, 0x0D):
        cdb = bytes([0x7F, 0, 0, 0, 0, 0, 0, 0x18, 0, action]) + bytes(22)
        assert refused(target, cdb).code == Asc.INVALID_COMMAND_OPERATION_CODE
