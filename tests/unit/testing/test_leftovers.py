"""What goes when the process that made it is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vscsi_emu.leftovers import Leftovers

KILLED = """
import subprocess, sys, time
from vscsi_emu.leftovers import Leftovers
leftovers = Leftovers("vscsi-emu-killed")
(leftovers.directory / "below").mkdir()
(leftovers.directory / "below/file").write_text("x")
child = subprocess.Popen(["sleep", "600"], start_new_session=True)
leftovers.add_group(child.pid)
print(leftovers.directory, child.pid, flush=True)
time.sleep(600)
"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_cleaning_removes_all_and_may_be_repeated() -> None:
    leftovers = Leftovers("vscsi-emu-cleaned")
    (leftovers.directory / "file").write_text("x")
    assert leftovers.directory.stat().st_mode & 0o777 == 0o700
    leftovers.clean()
    leftovers.clean()
    assert not leftovers.directory.exists()


def test_two_of_one_name_differ() -> None:
    first, second = Leftovers("vscsi-emu-twin"), Leftovers("vscsi-emu-twin")
    try:
        assert first.directory != second.directory
    finally:
        first.clean()
        second.clean()


def test_a_place_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: "/nowhere")
    with pytest.raises(FileNotFoundError):
        Leftovers("vscsi-emu")


def test_a_place_that_is_too_long_for_sockets_is_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    place = tmp_path / ("x" * 64)
    place.mkdir()
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(place))
    leftovers = Leftovers("vscsi-emu")
    assert leftovers.directory.parent == Path("/tmp")
    leftovers.clean()
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("blank", ["", "a place with blanks"])
def test_a_killed_process_leaves_nothing(short_path: Path, blank: str) -> None:
    place = short_path / blank
    place.mkdir(exist_ok=True)
    with subprocess.Popen(
        [sys.executable, "-c", KILLED],
        env={**os.environ, "TMPDIR": str(place)},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        directory, _, child = process.stdout.readline().rstrip().rpartition(" ")
        assert (Path(directory) / "below/file").exists()
        assert alive(int(child))
        process.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 20
    while Path(directory).exists() or alive(int(child)):
        assert time.monotonic() < deadline, "something is still there"
        time.sleep(0.02)
    assert list(place.iterdir()) == []
