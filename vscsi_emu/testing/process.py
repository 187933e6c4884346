"""How processes end when the one that started them is killed and cannot clean up."""

from __future__ import annotations

import subprocess
from contextlib import suppress

_WATCHER_SECONDS = 10.0

# A line says that all is well; the end of the pipe, that its other side is dead.
_WATCH = 'read -r line || kill -s KILL -- "-$0"'


class DeadMansSwitch:
    """Kills process group `group` when this process dies before it calls `disarm`.

    A group, not a process: User-Mode Linux has helpers that outlive its kernel. A watcher with a
    pipe, not PR_SET_PDEATHSIG: that reaches one process, and goes by the starting thread.
    """

    def __init__(self, group: int) -> None:
        self._watcher = subprocess.Popen(
            ["sh", "-c", _WATCH, str(group)], stdin=subprocess.PIPE, start_new_session=True
        )

    def disarm(self) -> None:
        """The group has ended, or may go on."""
        with suppress(BrokenPipeError):
            self._watcher.communicate(b"\n", _WATCHER_SECONDS)
