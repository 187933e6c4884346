"""The declarations as tables of Markdown: ``python -m vscsi_emu.faults.documentation
docs/faults.md`` puts them between the page's comments."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path

from vscsi_emu.faults.scsi_debug import ERRORS, HOST_BYTES, OPTS, PARAMETERS
from vscsi_emu.faults.vocabulary import KINDS


def kinds() -> str:
    """A row a kind."""
    return _table(
        ["kind", "what happens", "commands", "takes"],
        (
            [f"`{name}`", kind.doc, ", ".join(kind.commands) or "all", _code(kind.takes)]
            for name, kind in KINDS.items()
        ),
    )


def opts() -> str:
    """A row a bit of scsi_debug's `opts`."""
    return _table(
        ["bit", "`SDEBUG_OPT_…`", "fault", "`every_nth`", ""],
        (
            [
                f"{opt.bit:#x}",
                opt.name,
                f"`{opt.fault['kind']}`" if opt.fault else "-",
                "yes" if opt.fault and opt.counted else "-",
                opt.note,
            ]
            for opt in OPTS
        ),
    )


def parameters() -> str:
    """A row a parameter of scsi_debug."""
    return _table(["there", "here"], ([name, text] for name, text in PARAMETERS.items()))


def host_bytes() -> str:
    """A row a host byte."""
    return _table(
        ["host byte", "", "virtio response", ""],
        (
            [
                f"{each.value:#04x}",
                each.name,
                each.response.name if each.response is not None else "refused",
                each.note,
            ]
            for each in HOST_BYTES
        ),
    )


def errors() -> str:
    """A row a type of line of scsi_debug's `error` file."""
    return _table(
        ["type", "", "columns behind the opcode", "fault"],
        (
            [str(error.number), error.name, ", ".join(error.columns) or "-", error.shown]
            for error in ERRORS
        ),
    )


TABLES = {
    "kinds": kinds,
    "opts": opts,
    "parameters": parameters,
    "errors": errors,
    "host bytes": host_bytes,
}
"""By the comment that stands before each."""


def _code(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "-"


def _table(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def updated(text: str) -> str:
    """The page with the tables as they are declared."""
    for name, table in TABLES.items():
        old = re.search(rf"(?<=<!-- {name} -->\n).*?(?=<!-- end -->)", text, re.DOTALL)
        assert old is not None, f"the page has no place for {name}"
        text = text[: old.start()] + table() + text[old.end() :]
    return text


if __name__ == "__main__":
    page = Path(sys.argv[1])
    page.write_text(updated(page.read_text()))
