"""``file:PATH``: an image file, raw, or a block device of the host."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import ClassVar, Final

from vscsi_emu import _dataplane
from vscsi_emu.backends.base import Backend, BackendError
from vscsi_emu.backends.uri import LunSpec, SpecError, parse_switch

BLKSSZGET: Final = 0x1268
"""ioctl of linux/fs.h: a block device's logical block size."""
_FLOCK: Final = struct.Struct("hhqqi4x")


class FileBackend(Backend):
    """A regular file or a block device, locked against a second server."""

    KEYS: ClassVar[Mapping[str, str]] = {
        "direct": "on|off: O_DIRECT; on by default for block devices"
    }

    def __init__(self, spec: LunSpec, name: str) -> None:
        self.path = os.path.realpath(spec.location)
        super().__init__(spec, self.path)
        self._fd = _open(spec, self.path)
        try:
            is_device = stat.S_ISBLK(os.fstat(self._fd).st_mode)
            self._is_image = not is_device
            _lock(self._fd, spec)
            if is_device:
                self._check_device_block_size()
            size = os.lseek(self._fd, 0, os.SEEK_END)
            self.check_size(size, "resize it, for example: truncate -s 1G " + spec.location)
            direct_fd = self._open_direct(is_device)
            try:
                self.engine = _dataplane.Engine.file(
                    self._fd,
                    size,
                    direct_fd=direct_fd,
                    discard=spec.discard,
                    read_only=spec.read_only,
                )
            finally:
                if direct_fd >= 0:
                    os.close(direct_fd)
        except OSError as error:
            os.close(self._fd)
            raise BackendError(f"{spec}: {error.strerror}") from None
        except BaseException:
            os.close(self._fd)
            raise

    @property
    def state_path(self) -> str | None:
        """Beside an image that may be written; there is no such place beside a device node."""
        if self.spec.state is None and self._is_image and not self.spec.read_only:
            return self.path + ".state"
        return self.spec.state

    @property
    def writable(self) -> bool:
        return not self.spec.read_only

    @property
    def fixed(self) -> str | None:
        return None if self.writable else "it was opened read-only"

    def set_size(self, size: int) -> None:
        """A block device was resized by its owner, if at all."""
        if self._is_image:
            try:
                os.ftruncate(self._fd, size)
            except OSError as error:
                raise BackendError(f"{self.spec}: {error.strerror}") from None
        elif size > (there := os.lseek(self._fd, 0, os.SEEK_END)):
            raise BackendError(f"{self.spec} has {there} bytes; resize the device first")

    def flush(self) -> None:
        if not self.spec.read_only:
            os.fsync(self._fd)

    def close(self) -> None:
        # The engine has a duplicate; the lock must not wait for it.
        with suppress(OSError):
            _set_lock(self._fd, fcntl.F_UNLCK)
        os.close(self._fd)

    def _check_device_block_size(self) -> None:
        """The device's own block size is the default, and the smallest that can be served."""
        own = int.from_bytes(fcntl.ioctl(self._fd, BLKSSZGET, bytes(4)), "little")
        if self.spec.block_size is None:
            self.block_size = own
        elif self.block_size < own:
            raise SpecError(f"{self.spec} has blocks of {own} bytes; use block-size={own}")

    def _open_direct(self, is_device: bool) -> int:
        """A second descriptor with O_DIRECT, or -1 where none is wanted."""
        asked = self.spec.extra.get("direct")
        try:
            wanted = is_device if asked is None else parse_switch(asked)
        except SpecError as error:
            raise SpecError(f"direct: {error}") from None
        if not wanted:
            return -1
        mode = os.O_RDONLY if self.spec.read_only else os.O_RDWR
        try:
            # Through /proc, so that it is the same file whatever the path names by now.
            return os.open(f"/proc/self/fd/{self._fd}", mode | os.O_DIRECT | os.O_CLOEXEC)
        except OSError as error:
            raise BackendError(
                f"{self.spec}: no O_DIRECT here ({error.strerror}); use direct=off"
            ) from None


def _open(spec: LunSpec, path: str) -> int:
    flags = os.O_CLOEXEC | (os.O_RDONLY if spec.read_only else os.O_RDWR)
    try:
        mode = os.stat(path).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            raise BackendError(f"{spec} is {_kind(mode)}, not an image file or a block device")
        if stat.S_ISBLK(mode) and not spec.read_only:
            flags |= os.O_EXCL  # refuses what the host has mounted
        return os.open(path, flags)
    except OSError as error:
        raise BackendError(f"{spec}: {_explain(error, spec, path)}") from None


def _explain(error: OSError, spec: LunSpec, path: str) -> str:
    match error.errno:
        case errno.ENOENT:
            return f"no such file; make one, for example: truncate -s 1G {spec.location}"
        case errno.EACCES | errno.EPERM | errno.EROFS if os.access(path, os.R_OK):
            return f"may not be written ({error.strerror}); add ,ro to serve it read-only"
        case errno.EBUSY:
            return "the host has it mounted or otherwise in use; release it, or add ,ro"
        case _:
            return os.strerror(error.errno or 0)


def _kind(mode: int) -> str:
    names = {
        stat.S_IFDIR: "a directory",
        stat.S_IFCHR: "a character device",
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
    }
    return names.get(stat.S_IFMT(mode), "something else")


def _lock(fd: int, spec: LunSpec) -> None:
    """An open file description lock on the whole file, which QEMU's image locks respect too."""
    kind = fcntl.F_RDLCK if spec.read_only else fcntl.F_WRLCK
    try:
        _set_lock(fd, kind)
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            # A file system without locks: serve, as every other program there does.
            return
        raise BackendError(
            f"{spec} is in use by {_holder(fd)}; stop that first, or give both only ,ro"
        ) from None


def _set_lock(fd: int, kind: int) -> None:
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, 0, 0, 0))


def _holder(fd: int) -> str:
    """Who else has the file open: the kernel names no owner of such a lock, but /proc does."""
    ours = os.fstat(fd)
    for process in Path("/proc").glob("[0-9]*"):
        if int(process.name) == os.getpid():
            continue
        with suppress(OSError):
            for link in (process / "fd").iterdir():
                theirs = link.stat()
                if (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino):
                    return f"{(process / 'comm').read_text().strip()} (pid {process.name})"
    return "another logical unit of this server"
