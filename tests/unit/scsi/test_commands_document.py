"""docs/commands.md says what is declared."""

import runpy
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_the_table_is_up_to_date() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "command-table"))
    text = script["DOCUMENT"].read_text()
    assert script["updated"](text) == text, "run scripts/command-table"
