"""A User-Mode Linux guest that does one thing after the other, as the test asks."""

from __future__ import annotations

import re
import time
from pathlib import Path

from vscsi_emu.testing import GuestRun, UmlGuest

from .report import Section

BOOT_SECONDS = 120.0
COMMAND_SECONDS = 60.0
_POLL_SECONDS = 0.01

# /srv is the run's directory on the host, and a file is there under its name only once complete.
# `read` on a pipe that nobody writes to is a sleep without a process.
_AGENT = r"""
export dev=$(disk 0:0) sg=$(sg 0:0)
mkfifo quiet
exec bash -c '
    exec 3<>quiet
    echo "<<< booted"
    for ((n = 0; ; n++)); do
        until [ -e /srv/command.$n ]; do read -r -t 0.02 -u 3; done
        (. /srv/command.$n) 2>&1
        printf "\n>>> %s %s\n" $n $?
    done
'
"""


class Shell:
    """A guest on `sockets` that is booting; `ready` waits for it, `close` ends it.

    `prepare` is a script to run first. Commands find the disk 0:0 as ``$dev`` and ``$sg``.
    """

    def __init__(self, *sockets: Path, prepare: str = "", timeout: float = 600.0) -> None:
        self._running: GuestRun = UmlGuest(sockets).start(prepare + _AGENT, timeout)
        self._asked = 0
        self._seen = 0

    def ready(self) -> None:
        self._until(re.compile(r"<<< booted\n"), BOOT_SECONDS)

    def ask(self, command: str) -> None:
        """Has `command` run, without waiting for it; the next `answer` is its own."""
        draft = self._running.directory / "draft"
        draft.write_text(command + "\n")
        draft.rename(draft.with_name(f"command.{self._asked}"))
        self._asked += 1

    def answer(self, seconds: float = COMMAND_SECONDS) -> Section:
        """What the oldest command that was asked did; `AssertionError` if it takes longer."""
        found = self._until(re.compile(r"((?s:.*?))\n>>> \d+ (\d+)\n"), seconds)
        return Section(found[1], int(found[2]))

    def run(self, command: str, seconds: float = COMMAND_SECONDS) -> Section:
        self.ask(command)
        return self.answer(seconds)

    def close(self) -> None:
        """Ends the guest at once, as a power failure does."""
        self._running.__exit__(None, None, None)

    def _until(self, pattern: re.Pattern[str], seconds: float) -> re.Match[str]:
        deadline = time.monotonic() + seconds
        while not (found := pattern.search(self._running.output, self._seen)):
            assert time.monotonic() < deadline, (
                f"no answer in {seconds:g} s; {self._running.output[self._seen :]}\n"
                f"{self._running.console}"
            )
            time.sleep(_POLL_SECONDS)
        self._seen = found.end()
        return found
