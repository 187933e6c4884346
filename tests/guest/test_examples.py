"""The examples that README shows do what it says."""

import subprocess
import sys
from pathlib import Path

import pytest

from vscsi_emu.config import from_file

ROOT = Path(__file__).parents[2]


@pytest.mark.guest
def test_the_guest_example_prints_a_vpd_page() -> None:
    example = ROOT / "examples" / "guest.py"
    run = subprocess.run(
        [sys.executable, example], capture_output=True, text=True, timeout=120, check=False
    )
    assert run.returncode == 0, run.stderr
    assert "Maximum transfer length" in run.stdout


def test_the_readme_shows_the_guest_example() -> None:
    example = (ROOT / "examples" / "guest.py").read_text()
    code = example.split('"""')[2].strip()
    assert code in (ROOT / "README.md").read_text()


def test_the_configuration_example_shares_a_disk() -> None:
    config = from_file(str(ROOT / "examples" / "hba.toml"))
    first, second = config.hbas
    assert first.luns[3, 2] == second.luns[0, 0]
    assert [lun.spec.block_size for lun in config.luns] == [None, 4096]
