"""What README and docs/ show in Python works as it stands there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "docs/index.md", "docs/testing.md", "docs/python-devices.md")
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(*, tests: bool) -> list[object]:
    return [
        pytest.param(source, id=f"{page}-{number}")
        for page in PAGES
        for number, source in enumerate(BLOCK.findall((ROOT / page).read_text()))
        # What boots a kernel is examples/guest.py, which tests/guest runs.
        if ("def test_" in source) == tests and "UmlGuest" not in source
    ]


@pytest.mark.parametrize("source", blocks(tests=False))
def test_a_program_runs(source: str, tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", source],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("source", blocks(tests=True))
def test_tests_pass(
    source: str, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    with (pytester.path / "disk.img").open("wb") as image:
        image.truncate(1 << 20)
    pytester.makepyfile(source)
    result = pytester.runpytest_subprocess("-p", "vscsi_emu.testing.plugin", timeout=120)
    outcomes = result.parseoutcomes()
    assert outcomes.get("passed", 0) + outcomes.get("skipped", 0) == source.count("def test_")
    assert not outcomes.keys() & {"failed", "errors"}


def test_the_readme_shows_python_in_ten_lines() -> None:
    source = BLOCK.findall((ROOT / "README.md").read_text())[0]
    assert source.startswith("from vscsi_emu import Hba\n")
    assert len(source.splitlines()) <= 10
    assert source in (ROOT / "docs/index.md").read_text()
