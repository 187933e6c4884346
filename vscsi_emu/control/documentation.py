"""The methods as a table of Markdown: ``python -m vscsi_emu.control.documentation docs/monitor.md``
puts it between the page's two comments ``methods`` and ``end``."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vscsi_emu.control.method import Method
from vscsi_emu.control.schema import type_name


def table(methods: Iterable[Method[Any, Any]]) -> str:
    """A row a method: parameters with types and defaults, result, what it does."""
    rows = ["| method | parameters | result | |", "|---|---|---|---|"]
    for method in methods:
        parameters = "<br>".join(
            f"`{parameter.name}`: {_cell(type_name(parameter.kind))}"
            + ("" if parameter.required else f" = {json.dumps(parameter.default)}")
            for parameter in method.parameters
        )
        doc = _cell(method.doc.replace("\n", "<br>"))
        result = _cell(type_name(method.result))
        rows.append(f"| `{method.name}` | {parameters} | {result} | {doc} |")
    return "\n".join(rows) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def update(page: Path) -> None:
    """Writes the table into the page."""
    from vscsi_emu.control.methods import METHODS

    text = page.read_text()
    new = f"<!-- methods -->\n{table(METHODS.values())}<!-- end -->"
    page.write_text(
        re.sub(r"<!-- methods -->\n.*?<!-- end -->", lambda _: new, text, flags=re.DOTALL)
    )


if __name__ == "__main__":
    update(Path(sys.argv[1]))
