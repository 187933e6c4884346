"""The differences that a page of docs/ explains, and those that were found."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

DOCUMENTS: Final = Path(__file__).parents[3] / "docs"
BOTH: Final = "both"
"""Of the two places that a page tells apart: versions of the registers, or others' disks."""
ANY: Final = "…"
"""A value that is not pinned; at the end of one: it goes on."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A row: the observations it is about (a shell pattern), where, and what either side shows."""

    pattern: str
    where: str
    ours: str
    theirs: str
    reason: str

    def concerns(self, where: str) -> bool:
        return self.where in (where, BOTH)

    def explains(self, where: str, item: Found) -> bool:
        return (
            self.concerns(where)
            and _matches(item.ours, self.ours)
            and _matches(item.theirs, self.theirs)
            and fnmatchcase(item.name, self.pattern)
        )


@dataclass(frozen=True, slots=True)
class Found:
    """A difference between the two that run."""

    name: str
    ours: str
    theirs: str

    def __str__(self) -> str:
        return f"| `{self.name}` | … | `{self.ours}` | `{self.theirs}` | … |"


def explained(text: str, places: Collection[str]) -> Iterator[Difference]:
    """The rows of a page's tables. `ValueError` for one that is not whole."""
    for line in text.splitlines():
        if not line.startswith("| `"):
            continue
        cells = [cell.strip().strip("`") for cell in line.strip().strip("|").split("|")]
        if len(cells) != 5 or not all(cells) or cells[1] not in (*places, BOTH):
            raise ValueError(f"not a difference with its reason: {line}")
        yield Difference(*cells)


def found(ours: Mapping[str, str], theirs: Mapping[str, str]) -> list[Found]:
    """What differs, an observation that one of them does not have included."""
    return [
        Found(name, ours.get(name, "absent"), theirs.get(name, "absent"))
        for name in sorted({*ours, *theirs})
        if ours.get(name) != theirs.get(name)
    ]


def unexplained(rows: Sequence[Difference], all_found: Sequence[Found], where: str) -> list[str]:
    return [str(item) for item in all_found if not any(row.explains(where, item) for row in rows)]


def stale(rows: Sequence[Difference], all_found: Sequence[Found], where: str) -> list[str]:
    """Rows about this place that explain nothing."""
    return [
        row.pattern
        for row in rows
        if row.concerns(where) and not any(row.explains(where, item) for item in all_found)
    ]


def _matches(value: str, wanted: str) -> bool:
    if wanted.endswith(ANY):
        return value.startswith(wanted.removesuffix(ANY))
    return value == wanted
