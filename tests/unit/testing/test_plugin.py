"""The pytest plugin, in a pytest of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vscsi_emu.leftovers import Leftovers

PLUGIN = ("-p", "vscsi_emu.testing.plugin")


@pytest.fixture(autouse=True)
def only_these_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether this checkout's plugin is installed as one or not."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")


def run(pytester: pytest.Pytester, source: str, *arguments: str) -> pytest.RunResult:
    pytester.makepyfile(source)
    return pytester.runpytest_subprocess(*PLUGIN, *arguments, timeout=120)


def test_each_fixture_is_what_it_says(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
        import socket
        import pytest

        def test_together(hba, scsi_disk, builtin_guest, vhost_user_socket, scsi_lab):
            disk = scsi_disk(size="1M", block_size=4096)
            found = builtin_guest().disks[disk.address]
            found.write(1, b"x" * 4096)
            assert found.read(1, 1) == b"x" * 4096
            assert hba.socket == vhost_user_socket == scsi_lab.socket

        def test_none_by_default(hba):
            assert hba.device.luns == {}

        @pytest.mark.hba("mem:1M", "2:1=mem:1M", queues=3)
        def test_marker(hba):
            assert list(hba.device.luns) == [(0, 0), (2, 1)]
            assert hba.device.config.num_queues == 3

        def test_no_guest_of_that_kind(linux_guest):
            with pytest.raises(ValueError):
                linux_guest("vmware")
        """,
        "--strict-markers",
    )
    result.assert_outcomes(passed=4)


def test_fixtures_are_described(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_subprocess(*PLUGIN, "--fixtures")
    text = result.stdout.str()
    for name in ("hba", "scsi_disk", "vhost_user_socket", "builtin_guest", "linux_guest"):
        assert re.search(rf"^{name} -- .*\n    \S", text, re.MULTILINE), name


def test_a_failure_reports_the_hba(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
        import pytest

        @pytest.mark.hba("2:1=mem:1M")
        def test_fails(builtin_guest):
            builtin_guest()
            assert False

        @pytest.mark.hba("mem:1M")
        def test_passes(hba):
            pass
        """,
    )
    result.assert_outcomes(passed=1, failed=1)
    text = result.stdout.str()
    assert text.count("- HBA -") == 1
    result.stdout.fnmatch_lines(["*2:1 disk-2-1: mem:*", "*session.connected*"])


def test_a_report_that_fails_hides_nothing(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
        def test_fails(scsi_lab, monkeypatch):
            monkeypatch.setattr(type(scsi_lab), "report", lambda lab: 1 / 0)
            assert "the reason" == ""
        """,
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*the reason*", "*no report: ZeroDivisionError*"])


@pytest.mark.parametrize("required", [False, True])
def test_a_missing_guest_skips_unless_required(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, required: bool
) -> None:
    if required:
        monkeypatch.setenv("VSCSI_EMU_REQUIRE_GUESTS", "1")
    else:
        monkeypatch.delenv("VSCSI_EMU_REQUIRE_GUESTS", raising=False)
    result = run(
        pytester,
        """
        import shutil

        def test_boots(linux_guest, monkeypatch):
            monkeypatch.setattr(shutil, "which", lambda name, path=None: None)
            linux_guest("uml")
        """,
    )
    result.assert_outcomes(**({"failed": 1} if required else {"skipped": 1}))
    result.stdout.fnmatch_lines(["*User-Mode Linux is not installed*"] if required else ["*"])


def test_in_parallel(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
        import pytest

        @pytest.mark.parametrize("number", range(8))
        def test_alone(scsi_disk, builtin_guest, number):
            disk = scsi_disk("1M")
            found = builtin_guest().disks[disk.address]
            found.write(0, bytes([number]) * 512)
            assert found.read(0, 1) == bytes([number]) * 512
        """,
        *("-p", "xdist", "-n", "2"),
    )
    result.assert_outcomes(passed=8)


def test_a_killed_run_leaves_nothing(tmp_path: Path, short_path: Path) -> None:
    place, told = short_path, tmp_path / "told"
    (tmp_path / "test_killed.py").write_text(
        f"""
import os, time
from pathlib import Path

def test_waits(scsi_disk, builtin_guest, vhost_user_socket):
    scsi_disk("1M")
    builtin_guest()
    Path({str(told)!r} + f".{{os.getpid()}}").touch()
    time.sleep(600)

test_waits_too = test_waits
"""
    )
    command = [sys.executable, "-m", "pytest", *PLUGIN, "-p", "xdist", "-n", "2", "test_killed.py"]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        env={**os.environ, "TMPDIR": str(place)},
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    ) as runner:
        try:
            deadline = time.monotonic() + 60
            while len(list(tmp_path.glob("told.[0-9]*"))) < 2:
                assert time.monotonic() < deadline, "the tests did not start"
                time.sleep(0.02)
            assert list(place.glob("vscsi-emu-*/hba.sock"))
        finally:
            # As a CI system does it: runner and workers at once.
            os.killpg(runner.pid, signal.SIGKILL)
    deadline = time.monotonic() + 20
    while left := list(place.glob("vscsi-emu-*")):
        assert time.monotonic() < deadline, left
        time.sleep(0.02)
    running = [
        path.parent.name
        for path in Path("/proc").glob("[0-9]*/environ")
        if str(place).encode() in _read(path)
    ]
    assert running == []


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_the_watcher_outlives_its_group() -> None:
    """What the test above relies on."""
    leftovers = Leftovers("vscsi-emu-group")
    try:
        watcher = leftovers._watcher.pid
        assert os.getpgid(watcher) == os.getsid(watcher) == watcher
    finally:
        leftovers.clean()
