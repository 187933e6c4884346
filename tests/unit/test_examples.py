"""Examples that need no guest of their own: each is run, and what documentation shows of it."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from vscsi_emu import Hba

ROOT = Path(__file__).parents[2]


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def dma_coherency() -> ModuleType:
    return load("dma_coherency")


def test_the_coherency_matrix_is_as_the_rules_say_and_as_the_documentation_shows(
    dma_coherency: ModuleType,
) -> None:
    rows = [dma_coherency.HEADINGS]
    for case in dma_coherency.cases():
        outcome = dma_coherency.run(case)
        assert dma_coherency.as_expected(case, outcome), f"{case}: {outcome}"
        rows.append(dma_coherency.cells(case, outcome))

    text = (ROOT / "docs" / "dma-coherency.md").read_text()
    shown = [line for line in text.splitlines() if line.startswith("|") and "---" not in line]
    assert [tuple(c.strip() for c in line[1:-1].split("|")) for line in shown] == rows


def test_a_row_that_comes_out_otherwise_fails_the_example(
    dma_coherency: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    case = next(dma_coherency.cases())
    monkeypatch.setattr(dma_coherency, "cases", lambda: iter([case]))
    assert dma_coherency.main() == 0
    monkeypatch.setattr(dma_coherency, "run", lambda _: dma_coherency.Outcome("hang", None))
    assert dma_coherency.main() == 1
    assert "1 rows are not as the rules say" in capsys.readouterr().out


def test_a_custom_command_is_known_to_all_disks() -> None:
    run = subprocess.run(
        [sys.executable, ROOT / "examples/custom_command.py"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    dark, lit, refused = run.stdout.splitlines()
    assert (dark, lit) == ("0:0 is dark", "1:0 is lit")
    assert refused == "a reserved bit: sense 70 00 05 00 00 00 00 0a 00 00 00 00 24 00 00 c9 00 01"


def test_a_drivers_error_handling_is_tested_step_by_step(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    shutil.copy(ROOT / "examples/test_error_path.py", pytester.path)
    result = pytester.runpytest_subprocess("-p", "vscsi_emu.testing.plugin", timeout=120)
    result.assert_outcomes(passed=4)


def test_a_backend_in_thirty_lines_of_python() -> None:
    path = ROOT / "examples/python_backend.py"
    assert len(path.read_text().splitlines()) <= 30
    with Hba(f"python:{path}:Compressed") as hba, hba.driver() as guest:
        assert hba.control.hba_query().luns[0].thin
        disk = guest.disks[0, 0]
        data = b"compress me".ljust(4096) * 1000
        disk.write(5, data)
        assert disk.read(4, 1002) == bytes(4096) + data + bytes(4096)
