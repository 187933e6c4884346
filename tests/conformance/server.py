"""`vscsi-emu serve` as a process to be tested from its socket, and what is checked of it."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.conformance.attach import attach
from tests.conformance.cdb import test_unit_ready
from vscsi_emu.driver.front_end import FrontEnd
from vscsi_emu.driver.scan import retried

START_SECONDS = 20.0
SETTLE_SECONDS = 10.0


class Server:
    """A running server. `luns`: as for `--lun`."""

    def __init__(self, directory: Path, luns: Sequence[str], *, queues: int = 4) -> None:
        self.socket = directory / "hba.sock"
        self.log = directory / "serve.log"
        self.queues = queues
        command = [
            shutil.which("vscsi-emu", path=Path(sys.executable).parent) or "vscsi-emu",
            "serve",
            f"--socket-path={self.socket}",
            f"--queues={queues}",
            *(f"--lun={lun}" for lun in luns),
        ]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        try:
            self._await_socket()
            self._warm_up()
        except BaseException:
            self.stop()
            raise

    def _await_socket(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            try:
                FrontEnd.connect(self.socket).close()
            except OSError:
                time.sleep(0.02)
            else:
                return
        raise AssertionError(f"the server did not start:\n{self.log.read_text()}")

    def _warm_up(self) -> None:
        """A session and its end: what is opened once and kept does not count as a leak."""
        self.serve_a_client()
        time.sleep(0.3)
        self.idle_fds = self.fd_count()

    def fd_count(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def serve_a_client(self) -> None:
        """A new client negotiates, and its first command is answered."""
        with attach(self) as guest:
            result = retried(guest.device, 0, 0, test_unit_ready(), 0)
            assert (result.response, result.status) == (0, 0)

    def check(self) -> None:
        """Alive, serving, and nothing left over from former clients."""
        assert self.process.poll() is None, f"the server died:\n{self.log_tail()}"
        self.serve_a_client()
        deadline = time.monotonic() + SETTLE_SECONDS
        while (count := self.fd_count()) > self.idle_fds and time.monotonic() < deadline:
            time.sleep(0.02)
        links = [
            os.readlink(entry)
            for entry in Path(f"/proc/{self.process.pid}/fd").iterdir()
            if entry.is_symlink()
        ]
        assert count <= self.idle_fds, f"{count - self.idle_fds} descriptors leaked: {links}"
        assert self.process.poll() is None, f"the server died:\n{self.log_tail()}"

    def log_tail(self, characters: int = 4000) -> str:
        return self.log.read_text(errors="replace")[-characters:]

    def stop(self) -> int:
        """SIGTERM, and its exit status; killed if it does not end."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(SETTLE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
