"""docs/monitor.md lists every method as it is declared."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

from vscsi_emu.control.documentation import table
from vscsi_emu.control.methods import METHODS, EventKind
from vscsi_emu.journal import Kind

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "monitor.md"


def test_the_table_is_generated_from_the_declarations() -> None:
    shown = re.search(r"<!-- methods -->\n(.*?)<!-- end -->", PAGE.read_text(), re.DOTALL)
    assert shown is not None
    assert shown[1] == table(METHODS.values()), (
        "run: python -m vscsi_emu.control.documentation docs/monitor.md"
    )


def test_every_kind_of_event_can_be_asked_for() -> None:
    assert set(get_args(EventKind)) == {kind.value for kind in Kind}
    assert all(f"`{kind}`" in PAGE.read_text() for kind in Kind)
