"""A directory and processes that must go, even when this process is killed and cannot clean up."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

_WATCHER_SECONDS = 10.0
_LONGEST_PARENT = 64
"""Bytes: sockets are made in the directory, whose paths have at most 107 (unix(7))."""

# A line says what to clean up, or that all is well; the end of the pipe, that its other side is
# dead. Nobody else may reap the dead, so waiting for them is bounded.
_WATCH = """
while read -r verb what; do
    case $verb in
        directory) directory=$what ;;
        group) groups="$groups $what" ;;
        done) exit ;;
    esac
done
for group in $groups; do
    kill -s KILL -- "-$group"
    n=0
    while kill -s 0 -- "-$group" && [ $n -lt 50 ]; do sleep 0.1; n=$((n + 1)); done
done
rm -rf -- "$directory"
"""


class Leftovers:
    """`directory` is a new, private one. It and the process groups of `add_group` go with
    `clean`, or when this process dies before.

    Groups, not processes: User-Mode Linux has helpers that outlive its kernel. A watcher with a
    pipe, not PR_SET_PDEATHSIG: that reaches one process, and goes by the starting thread.
    """

    def __init__(self, name: str) -> None:
        """`name` is how the directory's begins."""
        self._watcher = subprocess.Popen(
            ["sh", "-c", _WATCH],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )
        self.directory = _parent() / f"{name}-{secrets.token_hex(6)}"
        try:
            # Told of it first, so that there is never one that nobody would remove.
            self._tell(f"directory {self.directory}")
            self.directory.mkdir(mode=0o700)
        except BaseException:
            self._end_watch()
            raise

    def add_group(self, group: int) -> None:
        """A process group, by its leader's id. Whoever adds it ends it before `clean`."""
        self._tell(f"group {group}")

    def clean(self) -> None:
        """Removes the directory, with all that is in it. May be called again."""
        shutil.rmtree(self.directory, ignore_errors=True)
        self._end_watch()

    def _tell(self, line: str) -> None:
        assert self._watcher.stdin is not None
        self._watcher.stdin.write(os.fsencode(line) + b"\n")
        self._watcher.stdin.flush()

    def _end_watch(self) -> None:
        if self._watcher.returncode is None:
            with suppress(BrokenPipeError):
                self._watcher.communicate(b"done\n", _WATCHER_SECONDS)


def _parent() -> Path:
    """Where temporary files go, or ``/tmp`` if that is too long for sockets."""
    wanted = Path(tempfile.gettempdir()).absolute()
    return wanted if len(os.fsencode(wanted)) <= _LONGEST_PARENT else Path("/tmp")
