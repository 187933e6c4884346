"""Descriptors 0, 1 and 2 of ``vscsi-emu serve`` (vhost-user, "Backend program conventions")."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from subprocess import PIPE

import pytest

from tests.unit.cli.test_serve import PROGRAM, TIMEOUT, connected, features


@pytest.mark.normative("vu.prog.b5")
def test_standard_descriptors_stay_what_they_were(tmp_path: Path) -> None:
    path = tmp_path / "hba.sock"
    command = [*PROGRAM, f"--socket-path={path}", "--lun", "mem:1M"]
    with subprocess.Popen(command, stdin=PIPE, stdout=PIPE, stderr=PIPE, text=True) as process:
        streams = (process.stdin, process.stdout, process.stderr)
        given = [f"pipe:[{os.fstat(stream.fileno()).st_ino}]" for stream in streams if stream]

        def standard() -> list[str]:
            return [os.readlink(f"/proc/{process.pid}/fd/{number}") for number in range(3)]

        try:
            assert process.stderr is not None
            assert "listening" in process.stderr.readline()
            for _ in range(3):
                with connected(path) as connection:
                    assert features(connection)
                    assert standard() == given
            assert standard() == given
            process.send_signal(signal.SIGTERM)
            output, errors = process.communicate(timeout=TIMEOUT)
        finally:
            process.kill()
    assert process.returncode == 0
    assert not output, "what is logged is no output"
    assert "disconnected" in errors
