"""Our device and QEMU's, asked the same questions over qtest: every difference is explained."""

import subprocess
from pathlib import Path

import pytest

from tests.conformance.differential import commands, differences, processes, registers, rings
from tests.conformance.differential.machine import Machine
from vscsi_emu.testing import GuestUnavailable
from vscsi_emu.testing.qemu import emulator
from vscsi_emu.virtio.mmio_registers import LEGACY, MODERN

DOCUMENT = differences.DOCUMENTS / "qemu-differences.md"
QEMU_VERSION = "7.2"
"""The one that the document is about: Debian 12's."""
PLACES = {MODERN: "modern", LEGACY: "legacy"}
SCRIPTS = (*registers.SCRIPTS, *commands.SCRIPTS, *rings.SCRIPTS)


@pytest.fixture(scope="module")
def rows() -> list[differences.Difference]:
    return list(differences.explained(DOCUMENT.read_text(), PLACES.values()))


def observe(machine: Machine) -> dict[str, str]:
    return {
        f"{script.__name__}.{name}": value for script in SCRIPTS for name, value in script(machine)
    }


@pytest.mark.guest
@pytest.mark.timeout(180)
@pytest.mark.parametrize("version", [MODERN, LEGACY], ids=["modern", "legacy"])
def test_differences_are_those_that_are_explained(
    version: int, tmp_path: Path, rows: list[differences.Difference]
) -> None:
    require_qemu()
    seen = []
    for name, start in (("ours", processes.ours), ("qemu", processes.qemu)):
        directory = tmp_path / name
        directory.mkdir()
        with start(directory, version) as machine:
            seen.append(observe(machine))
    found = differences.found(*seen)
    # Both directions: a difference without a reason, and a reason without a difference.
    assert differences.unexplained(rows, found, PLACES[version]) == []
    assert differences.stale(rows, found, PLACES[version]) == []


def require_qemu() -> None:
    try:
        program, environment, _ = emulator()
    except GuestUnavailable as error:
        pytest.skip(str(error))
    done = subprocess.run(
        [str(program), "--version"], env=environment, capture_output=True, text=True, timeout=30
    )
    if f"version {QEMU_VERSION}." not in done.stdout:
        pytest.skip(f"the document is about QEMU {QEMU_VERSION}, this is {done.stdout[:60]!r}")


def test_a_difference_without_a_row_is_seen(rows: list[differences.Difference]) -> None:
    found = differences.found({"a.b": "1", "a.c": "2"}, {"a.b": "1", "a.d": "3"})
    assert [(f.name, f.ours, f.theirs) for f in found] == [
        ("a.c", "2", "absent"),
        ("a.d", "absent", "3"),
    ]
    assert len(differences.unexplained(rows, found, "modern")) == 2
    assert differences.stale(rows, found, "modern")


@pytest.mark.parametrize(
    ("row", "explains"),
    [
        ("| `a.*` | both | `1` | `2` | why |", True),
        ("| `a.b` | legacy | `1` | `2` | why |", False),
        ("| `a.b` | modern | `…` | `2` | why |", True),
        ("| `a.b` | modern | `1` | `20…` | why |", False),
        ("| `a.b` | modern | `2` | `1` | why |", False),
    ],
)
def test_what_a_row_explains(row: str, explains: bool) -> None:
    (difference,) = differences.explained(row, PLACES.values())
    assert difference.explains("modern", differences.Found("a.b", "1", "2")) is explains


@pytest.mark.parametrize(
    "row",
    ["| `a` | both | `1` | `2` |", "| `a` | both | `1` | `2` |  |", "| `a` | x | 1 | 2 | y |"],
)
def test_a_row_without_its_reason_is_an_error(row: str) -> None:
    with pytest.raises(ValueError, match="not a difference"):
        list(differences.explained(row, PLACES.values()))
