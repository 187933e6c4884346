"""Writes to attributes in sysfs: the kernel makes no event of them, but inotify sees them."""

from __future__ import annotations

import asyncio
import ctypes
import os
import struct
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from vscsi_emu.host.errors import HostError

_IN_MODIFY: Final = 0x2
_IN_IGNORED: Final = 0x8000
_EVENT: Final = struct.Struct("iIII")
"""`struct inotify_event` (inotify(7)), without names: no directory is watched."""
_EVENTS: Final = 64


class Attributes:
    """Tells of attributes that somebody writes to. What the kernel itself changes does not show,
    nor what is written through another mount of sysfs. Needs a running event loop."""

    def __init__(self) -> None:
        """Raises `HostError` where inotify cannot be had."""
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd: int = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise HostError(f"inotify cannot be had: {os.strerror(ctypes.get_errno())}")
        self._loop = asyncio.get_running_loop()
        self._written: defaultdict[int, list[Callable[[], None]]] = defaultdict(list)
        """By watch descriptor, of which a file has one only."""
        self._loop.add_reader(self._fd, self._read)

    def close(self) -> None:
        self._loop.remove_reader(self._fd)
        os.close(self._fd)

    def watch(self, paths: Iterable[Path], written: Callable[[], None]) -> Callable[[], None]:
        """Calls `written` after each write to one that is there; returns what ends that."""
        added = []
        for path in paths:
            number = self._libc.inotify_add_watch(self._fd, os.fsencode(path), _IN_MODIFY)
            if number >= 0:
                self._written[number].append(written)
                added.append(number)

        def cancel() -> None:
            for number in added:
                if written in self._written[number]:
                    self._written[number].remove(written)
                if not self._written[number]:
                    del self._written[number]
                    self._libc.inotify_rm_watch(self._fd, number)

        return cancel

    def _read(self) -> None:
        data = os.read(self._fd, _EVENTS * _EVENT.size)
        for number, mask, _, _ in _EVENT.iter_unpack(data):
            if mask & _IN_IGNORED:
                self._written.pop(number, None)
            for written in self._written.get(number, ()):
                written()
