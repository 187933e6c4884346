"""The examples that README shows do what it says."""

import subprocess
import sys
from pathlib import Path

import pytest

from vscsi_emu.config import from_file
from vscsi_emu.testing import GuestUnavailable, Lab, UmlGuest
from vscsi_emu.testing.initramfs import find_program

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


def run_example(name: str) -> list[str]:
    """Lines of its output; skips where this machine lacks what it needs."""
    try:
        UmlGuest().require()
    except GuestUnavailable as error:
        pytest.skip(str(error))
    run = subprocess.run(
        [sys.executable, ROOT / "examples" / name],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return [line.rstrip() for line in run.stdout.splitlines()]


@pytest.mark.guest
def test_a_raid_loses_a_leg_and_no_data() -> None:
    if find_program("mdadm") is None:
        pytest.skip("mdadm is not installed: apt-get install mdadm")
    assert run_example("raid_loses_a_leg.py") == [
        "ready: [UU]",
        "leg lost: [U_]",
        "rebuilt: [UU]",
        "the new disk alone: [_U]",
    ]


@pytest.mark.guest
def test_a_file_system_notices_what_it_has_checksums_for() -> None:
    honest, data, name = run_example("lying_disk.py")
    assert honest == "an honest disk: read without an error; and it is as it was"
    assert data.endswith("read without an error; and it is not what was written")
    assert "; not read;" in name
    assert "EXT4-fs error" in name
    assert "checksumming directory block" in name


TAPE = """
set -eu
mkdir in && seq 1 20000 >in/numbers && echo here >in/note
tar -C in -cf /dev/nst0 numbers
tar -C in -cf /dev/nst0 note
mt -f /dev/nst0 rewind
mt -f /dev/nst0 fsf 1
tar -xOf /dev/nst0
mt -f /dev/nst0 rewind
tar -xOf /dev/nst0 | cmp - in/numbers && echo same
mt -f /dev/nst0 rewind
dd if=/dev/zero of=/dev/nst0 bs=1M count=9 2>&1 | grep -o 'Input/output error\\|No space left.*'
"""


@pytest.mark.guest
def test_linux_uses_the_tape() -> None:
    if find_program("mt") is None:
        pytest.skip("mt is not installed: apt-get install cpio")
    tape = ROOT / "examples/tape.py"
    with Lab(f"python:{tape}:Tape,argument=8M") as lab:
        try:
            guest = lab.linux_guest("uml", modules=["st"])
        except GuestUnavailable as error:
            pytest.skip(str(error))
        result = guest.run(TAPE, timeout=60).check()
    assert result.output.splitlines() == ["here", "same", "Input/output error"]
