"""The descriptor of SET_VRING_ERR: signalled when a ring breaks, never waited on."""

from __future__ import annotations

import logging
import os
import select
import stat
import threading

log = logging.getLogger(__name__)

_EVENTFD = "anon_inode:[eventfd]"
_ONE = (1).to_bytes(8, "little")


class ErrFd:
    """An eventfd or a pipe of a front end, which may be full, and may block."""

    def __init__(self, fd: int) -> None:
        """Takes over `fd`, unless it raises `ValueError`: neither an eventfd nor a pipe."""
        path = f"/proc/self/fd/{fd}"
        link = os.readlink(path)
        self._is_eventfd = link == _EVENTFD
        if self._is_eventfd:
            self._fd = fd
        elif stat.S_ISFIFO(os.fstat(fd).st_mode):
            try:
                # Opened anew, O_NONBLOCK is ours alone.
                self._fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            except OSError as error:
                raise ValueError(f"err descriptor: {error.strerror}") from None
            os.close(fd)
        else:
            raise ValueError(f"err descriptor: {link} is neither an eventfd nor a pipe")

    def signal(self) -> None:
        """A full one has told of an error already."""
        ready = select.poll()
        ready.register(self._fd, select.POLLOUT)
        if not ready.poll(0):
            return
        if self._is_eventfd:
            # A front end could fill a blocking eventfd in between: that must not stop the loop.
            threading.Thread(target=_write, args=[os.dup(self._fd)], daemon=True).start()
        else:
            _write(os.dup(self._fd))

    def close(self) -> None:
        os.close(self._fd)


def _write(fd: int) -> None:
    try:
        os.write(fd, _ONE)
    except OSError as error:
        log.warning("err descriptor: %s", error.strerror)
    finally:
        os.close(fd)
