"""The guests themselves, without an HBA: what they return, and that they leave nothing behind."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from vscsi_emu.testing import GuestError, GuestTimeout, GuestUnavailable, QemuGuest, UmlGuest

from .conftest import make_guest

pytestmark = pytest.mark.guest


def processes_in(directory: Path) -> list[int]:
    """Processes whose working directory is `directory`, even if that is gone by now."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cwd"):
        try:
            if os.readlink(path).removesuffix(" (deleted)") == str(directory):
                found.append(int(path.parent.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def wait_until_gone(directory: Path) -> None:
    """SIGKILL is sent to all at once; the kernel needs a moment to carry it out."""
    deadline = time.monotonic() + 10
    while processes_in(directory):
        assert time.monotonic() < deadline, "still running"
        time.sleep(0.02)


def test_output_and_exit_code_come_back_whole(kind: str) -> None:
    with make_guest(kind).start("uname -s; seq 1 5000; echo oops >&2; exit 7", 90) as running:
        directory = running.directory
        assert processes_in(directory)
        lines = list(running.lines())
        result = running.wait()
    assert lines == ["Linux", *map(str, range(1, 5001)), "oops"]
    assert result.output.splitlines() == lines
    assert result.exit_code == 7
    with pytest.raises(GuestError, match=r"exited with 7.*\n(.*\n)*    oops"):
        result.check()
    assert not directory.exists()
    assert not processes_in(directory)


def test_deadline_ends_every_process(kind: str) -> None:
    with make_guest(kind).start("echo begun; sleep 600 & sleep 600", 120) as running:
        directory = running.directory
        assert next(running.lines()) == "begun"
        with pytest.raises(GuestTimeout, match=r"did not end within 0.5 s; (.*\n)*    begun"):
            running.wait(0.5)
        wait_until_gone(directory)
    assert not directory.exists()


def test_guest_and_server_die_with_a_killed_test(kind: str) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        kill_a_test(kind, Path(place))


def kill_a_test(kind: str, place: Path) -> None:
    source = f"""
from tests.guest.conftest import make_guest
from vscsi_emu.testing import HbaProcess
with HbaProcess(["mem:16M"]) as hba, make_guest("{kind}", [hba]).start("echo up; sleep 600") as run:
    next(run.lines())
    print(run.directory, hba.pid, flush=True)
    run.wait()
"""
    with subprocess.Popen(
        [sys.executable, "-c", source],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "TMPDIR": str(place)},
        stdout=subprocess.PIPE,
        text=True,
    ) as runner:
        assert runner.stdout is not None
        directory, server = runner.stdout.readline().split()
        assert processes_in(Path(directory))
        runner.kill()
    wait_until_gone(Path(directory))
    deadline = time.monotonic() + 20
    while Path("/proc", server).exists():
        assert time.monotonic() < deadline, "the server still runs"
        time.sleep(0.05)
    while left := list(place.iterdir()):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def test_a_guest_that_dies_is_an_error_with_its_console(kind: str) -> None:
    with pytest.raises(GuestError, match=r"ended before its script did(.*\n)*.*panic"):
        make_guest(kind).run("echo c >/proc/sysrq-trigger; sleep 60", 60)


def test_uml_cannot_write_to_the_host(tmp_path: Path) -> None:
    guest = UmlGuest()
    try:
        guest.require()
    except GuestUnavailable as error:
        pytest.skip(str(error))
    # Not in this checkout, which may lie in /tmp: there the guest has memory of its own.
    host = Path("/usr/vscsi-emu-written-by-guest")
    result = guest.run(f"touch {host} {tmp_path}/x")
    assert "Read-only file system" in result.output
    assert not host.exists()
    assert not list(tmp_path.iterdir())


def test_qemu_takes_further_devices(tmp_path: Path) -> None:
    image = tmp_path / "disk"
    image.write_bytes(b"on the disk".ljust(1 << 20, b"\0"))
    guest = QemuGuest(
        arguments=[
            *("-blockdev", f"file,node-name=disk,filename={image}"),
            *("-device", "virtio-scsi-pci", "-device", "scsi-hd,drive=disk,scsi-id=3,lun=2"),
        ]
    )
    try:
        guest.require()
    except GuestUnavailable as error:
        pytest.skip(str(error))
    result = guest.run("head -c 11 $(disk 3:2); echo; sg_inq $(sg 3:2)", 90).check()
    assert result.output.startswith("on the disk\n")
    assert "QEMU HARDDISK" in result.output


def test_without_uml_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name, path=None: None)
    with pytest.raises(GuestUnavailable, match="apt-get install user-mode-linux"):
        UmlGuest().run("true")
