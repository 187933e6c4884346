"""Listens on a Unix socket and serves one front end after another."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import stat
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from vscsi_emu.transport.vhost_user.session import Session

if TYPE_CHECKING:
    from vscsi_emu.hba import Hba

log = logging.getLogger(__name__)

_BACKLOG: Final = 128
"""Front ends that may wait for the one that is served."""
_MAX_PATH: Final = 107


class ListenError(Exception):
    """A socket that cannot be served; one line that names it and the fix."""


def listen(path: str, *, mode: int | None = None) -> socket.socket:
    """A listening socket at `path`; a stale one there is replaced. `mode`: its permissions, as the
    umask says by default. Raises `ListenError`."""
    if len(os.fsencode(path)) > _MAX_PATH:
        raise ListenError(f"{path}: longer than the {_MAX_PATH} bytes of a Unix socket's path")
    try:
        return _bind(path, mode)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise ListenError(f"{path}: {_explain(error, path)}") from None
    _remove_stale(path)
    try:
        return _bind(path, mode)
    except OSError as error:
        raise ListenError(f"{path}: {_explain(error, path)}") from None


def _bind(path: str, mode: int | None) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if mode is not None:
            # Before it has a name, so that nobody else is ever let in.
            os.fchmod(listener.fileno(), mode)
        listener.bind(path)
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def _remove_stale(path: str) -> None:
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        raise ListenError(f"{path}: exists and is not a socket; name another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # a full backlog means a live server too
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except OSError as error:
            if error.errno != errno.EAGAIN:
                raise ListenError(f"{path}: {error.strerror}") from None
    raise ListenError(f"{path}: a live server listens there; stop it, or name another path")


def remove_socket(path: str, inode: int | None) -> None:
    """Removes the socket at `path`, if it is still the one with this inode number."""
    with suppress(OSError):
        if os.stat(path).st_ino == inode:
            os.unlink(path)


def _explain(error: OSError, path: str) -> str:
    parent = os.path.dirname(os.path.abspath(path))
    match error.errno:
        case errno.ENOENT:
            return f"no directory {parent}; make it first"
        case errno.ENOTDIR:
            return f"{parent} is not a directory"
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return f"no permission to make a socket in {parent}; name another directory"
        case _:
            return os.strerror(error.errno or 0)


def adopt(fd: int) -> socket.socket:
    """The socket that the caller of the program left open as `fd`. Raises `ListenError`."""
    try:
        adopted = socket.socket(fileno=fd)
    except OSError as error:
        raise ListenError(f"--fd {fd}: not an open socket ({error.strerror})") from None
    if adopted.family != socket.AF_UNIX or adopted.type != socket.SOCK_STREAM:
        adopted.detach()
        raise ListenError(f"--fd {fd}: not a Unix stream socket")
    return adopted


class VhostUserServer:
    """Serves an HBA on a socket that listens, or is connected already (`--fd`)."""

    def __init__(
        self,
        hba: Hba,
        sock: socket.socket,
        *,
        path: str | None = None,
        in_band: bool = False,
        access_platform: bool = False,
    ) -> None:
        """`path`, if given, is removed when the server closes. `in_band`, `access_platform`: see
        `Session`."""
        sock.setblocking(False)
        self._hba = hba
        self._socket = sock
        self._in_band = in_band
        self._access_platform = access_platform
        self._path = path
        self._inode = os.stat(path).st_ino if path else None
        self._name = path or f"fd {sock.fileno()}"

    async def serve(self) -> None:
        """Until cancelled, or, on a socket that came connected, until its front end leaves."""
        try:
            if not self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                await self._session(self._socket.dup()).run()
                return
            loop = asyncio.get_running_loop()
            while True:
                # The next front end waits in the backlog until this one has left.
                connection, _ = await loop.sock_accept(self._socket)
                await self._session(connection).run()
        finally:
            self.close()

    def _session(self, connection: socket.socket) -> Session:
        return Session(
            connection,
            self._hba,
            name=self._name,
            in_band=self._in_band,
            access_platform=self._access_platform,
        )

    def close(self) -> None:
        """Stops listening and removes the socket, if it is still ours."""
        self._socket.close()
        if self._path:
            remove_socket(self._path, self._inode)
            self._path = None
