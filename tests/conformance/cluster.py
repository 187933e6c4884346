"""One server with several HBAs, each on a socket of its own, that share a disk."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from vscsi_emu.testing.hba import program

START_SECONDS = 60.0
STOP_SECONDS = 60.0


class Node:
    """What `attach` needs of a server."""

    def __init__(self, socket: Path) -> None:
        self.socket: Final = socket


class Cluster:
    """Listening once entered. `disk` is at 0:0 of every HBA."""

    def __init__(self, directory: Path, disk: str, nodes: int = 2) -> None:
        self.directory = directory
        self.nodes = [Node(directory / f"hba{n}.sock") for n in range(nodes)]
        hbas = "".join(
            f'[[hba]]\nsocket = "{node.socket}"\nqueues = 2\nluns = {{"0:0" = "shared"}}\n'
            for node in self.nodes
        )
        self._config = directory / "hba.toml"
        self._config.write_text(f'[[lun]]\nid = "shared"\nuri = "{disk}"\n{hbas}')

    def __enter__(self) -> Self:
        self._start()
        return self

    def restart_after_power_loss(self) -> None:
        self._process.kill()
        self._process.wait(STOP_SECONDS)
        (self.directory / "log").unlink()
        self._start()

    def _start(self) -> None:
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(program()), "serve", "--config", str(self._config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + START_SECONDS
        # The log says so of each socket once it listens.
        while self._log().count("listening on ") < len(self.nodes):
            assert self._process.poll() is None, self._log()
            if time.monotonic() > deadline:
                self._process.kill()
                self._process.wait(STOP_SECONDS)
                raise AssertionError(f"it does not listen: {self._log()}")
            time.sleep(0.02)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            code = self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(STOP_SECONDS)
            raise
        text = self._log()
        (self.directory / "log").unlink()
        assert error is not None or (code == 0 and "Traceback" not in text), text

    def _log(self) -> str:
        return (self.directory / "log").read_text(errors="replace")
