"""The differences that docs/qemu-differences.md explains."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from vscsi_emu.virtio.mmio_registers import LEGACY, MODERN

DOCUMENT: Final = Path(__file__).parents[3] / "docs" / "qemu-differences.md"
ANY: Final = "…"
"""A value that is not pinned; at the end of one: it goes on."""
_VERSIONS: Final = {
    "both": frozenset({MODERN, LEGACY}),
    "modern": frozenset({MODERN}),
    "legacy": frozenset({LEGACY}),
}


@dataclass(frozen=True, slots=True)
class Difference:
    """A row: the observations it is about (a shell pattern), and what either device shows."""

    pattern: str
    versions: frozenset[int]
    ours: str
    qemu: str
    reason: str

    def explains(self, name: str, version: int, ours: str, qemu: str) -> bool:
        return (
            version in self.versions
            and fnmatchcase(name, self.pattern)
            and _matches(ours, self.ours)
            and _matches(qemu, self.qemu)
        )


@dataclass(frozen=True, slots=True)
class Found:
    """A difference between the two devices that run."""

    name: str
    ours: str
    qemu: str

    def __str__(self) -> str:
        return f"| `{self.name}` | … | `{self.ours}` | `{self.qemu}` | … |"


def explained(text: str) -> Iterator[Difference]:
    """The rows of the document's tables. `ValueError` for one that is not whole."""
    for line in text.splitlines():
        if not line.startswith("| `"):
            continue
        cells = [cell.strip().strip("`") for cell in line.strip().strip("|").split("|")]
        if len(cells) != 5 or not all(cells) or cells[1] not in _VERSIONS:
            raise ValueError(f"not a difference with its reason: {line}")
        pattern, versions, ours, qemu, reason = cells
        yield Difference(pattern, _VERSIONS[versions], ours, qemu, reason)


def found(ours: Mapping[str, str], qemu: Mapping[str, str]) -> list[Found]:
    """What differs, an observation that one of them does not have included."""
    return [
        Found(name, ours.get(name, "absent"), qemu.get(name, "absent"))
        for name in sorted({*ours, *qemu})
        if ours.get(name) != qemu.get(name)
    ]


def unexplained(rows: Sequence[Difference], all_found: Sequence[Found], version: int) -> list[str]:
    return [
        str(item)
        for item in all_found
        if not any(row.explains(item.name, version, item.ours, item.qemu) for row in rows)
    ]


def stale(rows: Sequence[Difference], all_found: Sequence[Found], version: int) -> list[str]:
    """Rows about this version that explain nothing."""
    return [
        row.pattern
        for row in rows
        if version in row.versions
        and not any(row.explains(item.name, version, item.ours, item.qemu) for item in all_found)
    ]


def _matches(value: str, wanted: str) -> bool:
    if wanted.endswith(ANY):
        return value.startswith(wanted.removesuffix(ANY))
    return value == wanted
