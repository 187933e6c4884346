"""``vscsi-emu serve`` as a process of its own, for guests to attach to."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from vscsi_emu.control import Client
from vscsi_emu.leftovers import Leftovers

from .errors import ServerError, tail

PROGRAM = "vscsi-emu"
START_SECONDS = 60.0
STOP_SECONDS = 60.0
_POLL_SECONDS = 0.01
_LISTENING = "00010000"  # __SO_ACCEPTCON (include/linux/net.h) in the flags of /proc/net/unix


class HbaProcess:
    """A running server; listening once constructed. Its context ends it.

    It has one HBA with `luns`, values of ``--lun``, or what `config` says, the text of an
    ``hba.toml`` whose paths are relative to a directory of the server's own. `arguments` are
    further ones of ``serve``. With `monitor` it can be asked and changed, by `control` or at that
    path. `ServerError` if it is not listening within `START_SECONDS`.
    """

    def __init__(
        self,
        luns: Sequence[str] = (),
        *,
        queues: int | None = None,
        config: str | None = None,
        monitor: bool = False,
        arguments: Sequence[str] = (),
    ) -> None:
        names = ["hba.sock"] if config is None else _socket_names(config)
        self._leftovers = Leftovers("vscsi-emu-hba")
        self._directory = self._leftovers.directory
        self.sockets = [self._directory / name for name in names]
        """Where its HBAs listen."""
        command = [str(program()), "serve"]
        if config is None:
            command += ["--socket-path", str(self.socket)]
        else:
            (self._directory / "hba.toml").write_text(config)
            command += ["--config", str(self._directory / "hba.toml")]
        command += [part for lun in luns for part in ("--lun", lun)]
        command += ["--queues", str(queues)] if queues is not None else []
        self._control: Client | None = None
        command += ["--monitor", str(self.monitor)] if monitor else []
        self._awaited = [*self.sockets, self.monitor] if monitor else self.sockets
        try:
            with (self._directory / "log").open("wb") as log:
                self._process = subprocess.Popen(
                    [*command, *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            self._leftovers.add_group(self._process.pid)
            try:
                self._await_socket()
            except BaseException:
                self._kill()
                raise
        except BaseException:
            self._leftovers.clean()
            raise

    @property
    def socket(self) -> Path:
        """Where its first HBA listens."""
        return self.sockets[0]

    @property
    def monitor(self) -> Path:
        """Where its monitor listens, if it has one."""
        return self._directory / "monitor"

    @property
    def control(self) -> Client:
        """Its monitor, where it was started with one."""
        if self.monitor not in self._awaited:
            raise ServerError("it has no monitor; start it with monitor=True")
        if self._control is None:
            self._control = Client(str(self.monitor))
        return self._control

    @property
    def pid(self) -> int:
        """The server's process id."""
        return self._process.pid

    @property
    def log(self) -> str:
        """What it has written to standard output and error so far."""
        return (self._directory / "log").read_text(errors="replace")

    @property
    def running(self) -> bool:
        """Whether it lives."""
        return self._process.poll() is None

    def terminate(self) -> int:
        """SIGTERM; the exit code. `ServerError` if it has not ended within `STOP_SECONDS`."""
        self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._kill()
            raise ServerError(
                f"{PROGRAM} serve ignored SIGTERM for {STOP_SECONDS:.0f} s\n{tail(self.log)}"
            ) from None

    def __enter__(self) -> HbaProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if self._control:
                self._control.close()
            if self.running:
                self.terminate()
            if error is not None and self.log:
                error.add_note(f"{PROGRAM} serve said\n{tail(self.log)}")
        finally:
            self._leftovers.clean()

    def _await_socket(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not all(map(_listening, self._awaited)):
            if not self.running:
                raise ServerError(
                    f"{PROGRAM} serve exited with {self._process.returncode}\n{tail(self.log)}"
                )
            if time.monotonic() > deadline:
                raise ServerError(
                    f"{PROGRAM} serve did not listen within {START_SECONDS:.0f} s\n{tail(self.log)}"
                )
            time.sleep(_POLL_SECONDS)

    def _kill(self) -> None:
        self._process.kill()
        self._process.wait(STOP_SECONDS)


def program() -> Path:
    """The installed ``vscsi-emu``: beside this interpreter, or on PATH."""
    beside = Path(sys.executable).parent / PROGRAM
    if beside.exists():
        return beside
    if found := shutil.which(PROGRAM):
        return Path(found)
    raise ServerError(f"{PROGRAM} is not installed: pip install vscsi-emu")


def _socket_names(config: str) -> list[str]:
    return [hba["socket"] for hba in tomllib.loads(config)["hba"]]


def _listening(socket: Path) -> bool:
    # Not by connecting: the server would take that for its one front end.
    for line in Path("/proc/net/unix").read_text().splitlines():
        fields = line.split()
        if fields[3] == _LISTENING and fields[-1] == str(socket):
            return True
    return False
