"""What every kind of guest has in common: a script in, its output and exit code out."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from vscsi_emu.leftovers import Leftovers

from .errors import GuestError, GuestTimeout, tail

_POLL_SECONDS = 0.02
_KILL_SECONDS = 60.0

# Names for what a script works with: the node of an address, whatever order disks were found in.
PRELUDE = """\
export PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C
disk() { for d in /sys/bus/scsi/devices/*:0:$1/block/*; do echo "/dev/${d##*/}"; done; }
sg() { for d in /sys/bus/scsi/devices/*:0:$1/scsi_generic/*; do echo "/dev/${d##*/}"; done; }
"""

# sd probes asynchronously: the devices are there when the module is loaded, their nodes are not.
SETTLE = """\
settled() {
    for d in /sys/bus/scsi/devices/*:*:*:*; do
        [ "$(cat "$d/type" 2>/dev/null)" != 0 ] || [ -e "$d"/block/*/size ] || return 1
    done
}
n=0; until settled || [ $n -ge 100 ]; do sleep 0.1; n=$((n + 1)); done
"""


@dataclass(frozen=True)
class GuestResult:
    """What a script did in the guest."""

    output: str
    """Its standard output and error, as one."""
    exit_code: int
    console: str
    """What the kernel said."""

    def check(self) -> GuestResult:
        """Itself, or `GuestError` with output and console if the script failed."""
        if self.exit_code:
            raise GuestError(
                f"the script in the guest exited with {self.exit_code}; its output ends\n"
                f"{tail(self.output)}\n  and the console\n{tail(self.console)}"
            )
        return self


@dataclass(frozen=True)
class Launch:
    """How to start a guest that was prepared in a directory."""

    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)


class GuestRun:
    """A guest that is running its script. A context manager: leaving it kills the guest."""

    def __init__(
        self, name: str, leftovers: Leftovers, launch: Launch, output: BinaryIO, timeout: float
    ) -> None:
        self._name = name
        self._leftovers = leftovers
        self._timeout = timeout
        self._over = False
        self._deadline = time.monotonic() + timeout
        with (self.directory / "console").open("wb") as console:
            self._process = subprocess.Popen(
                launch.command,
                cwd=self.directory,
                env={**os.environ, **launch.environment},
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                pass_fds=[output.fileno()],
                start_new_session=True,
            )
        leftovers.add_group(self._process.pid)

    @property
    def directory(self) -> Path:
        """Its files, until the context is left, and the working directory of its processes."""
        return self._leftovers.directory

    @property
    def output(self) -> str:
        """What the script has written so far."""
        return self._read("output")

    @property
    def console(self) -> str:
        """What the kernel has said so far."""
        return self._read("console")

    def lines(self) -> Iterator[str]:
        """The script's output line by line, as it comes. Raises as `wait` does."""
        seen = 0
        while True:
            ended = self._ended()
            *complete, rest = self.output[seen:].split("\n")
            for line in complete:
                seen += len(line) + 1
                yield line
            if ended:
                if rest:
                    yield rest
                return
            time.sleep(_POLL_SECONDS)

    def wait(self, timeout: float | None = None) -> GuestResult:
        """The script's result; `GuestTimeout` at the deadline, `GuestError` if it has none.

        `timeout`: seconds from now, in place of those that it was started with.
        """
        if timeout is not None:
            self._timeout = timeout
            self._deadline = time.monotonic() + timeout
        while not self._ended():
            time.sleep(_POLL_SECONDS)
        self.kill()
        status = self._read("status").strip()
        if not status.isdecimal():
            raise GuestError(
                f"the {self._name} guest ended before its script did (exit code "
                f"{self._process.returncode}); its console ends\n{tail(self.console)}"
            )
        return GuestResult(self.output, int(status), self.console)

    def kill(self) -> None:
        """Ends every process of the guest, at once."""
        if self._over:
            return  # the group's number may be another's by now
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(_KILL_SECONDS)
        self._over = True

    def __enter__(self) -> GuestRun:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()
        self._leftovers.clean()

    def _ended(self) -> bool:
        if self._process.poll() is not None:
            return True
        if time.monotonic() > self._deadline:
            self.kill()
            raise GuestTimeout(
                f"the {self._name} guest did not end within {self._timeout:g} s; "
                f"its output ends\n{tail(self.output)}\n  and the console\n{tail(self.console)}"
            )
        return False

    def _read(self, name: str) -> str:
        try:
            return (self.directory / name).read_text(errors="replace")
        except FileNotFoundError:
            return ""


class LinuxGuest(ABC):
    """A Linux kernel, booted afresh for each script.

    The script is a POSIX shell's. It finds its disks with ``disk T:L`` and ``sg T:L``, which print
    the block and the generic SCSI node of logical unit L of target T.
    """

    name: str
    """What messages call it."""

    @abstractmethod
    def require(self) -> None:
        """`GuestUnavailable`, saying what to install, where this machine cannot run it."""

    def run(self, script: str, timeout: float = 120.0) -> GuestResult:
        """Boots, runs `script`, powers off. `timeout` in seconds bounds all of it."""
        with self.start(script, timeout) as running:
            return running.wait()

    def start(self, script: str, timeout: float = 120.0) -> GuestRun:
        """As `run`, without waiting; leave the returned object's context to clean up."""
        self.require()
        leftovers = Leftovers(f"vscsi-emu-{self.name}")
        try:
            with (leftovers.directory / "output").open("wb") as output:
                launch = self._prepare(leftovers.directory, PRELUDE + script, output.fileno())
                return GuestRun(self.name, leftovers, launch, output, timeout)
        except BaseException:
            leftovers.clean()
            raise

    @abstractmethod
    def _prepare(self, directory: Path, script: str, output: int) -> Launch:
        """Writes into `directory` what the guest needs. The guest leaves there ``output``, as it
        comes, and ``status``, the exit code in decimal. `output` is an open descriptor of the
        former, which the guest's process inherits. `require` was called before."""
