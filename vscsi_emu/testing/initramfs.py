"""An initramfs of programs of this machine, with the libraries they need."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
from pathlib import Path

PROGRAM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Archive:
    """A cpio archive in "newc" format (Documentation/driver-api/early-userspace/buffer-format)."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._names: set[str] = set()

    def add(self, name: str, data: bytes, mode: int = stat.S_IFREG | 0o755) -> None:
        """A file (or what `mode` says) at absolute path `name`, its directories first."""
        name = name.lstrip("/")
        if name in self._names:
            return
        parent = os.path.dirname(name)
        if parent and parent not in self._names:
            self.add(parent, b"", stat.S_IFDIR | 0o755)
        self._names.add(name)
        self._parts.append(self._entry(name, data, mode))

    def link(self, name: str, target: str) -> None:
        """A symbolic link at absolute path `name`."""
        self.add(name, target.encode(), stat.S_IFLNK | 0o777)

    def copy(self, source: Path, name: str | None = None) -> None:
        """A file of this machine, at its own path unless `name` is given."""
        self.add(name or str(source), source.read_bytes())

    def add_program(self, program: Path) -> None:
        """A program, as ``/usr/bin/`` and its name, and the shared libraries it is linked with."""
        self.copy(program, f"/usr/bin/{program.name}")
        for library in _libraries(program):
            self.copy(library)

    def to_bytes(self) -> bytes:
        """The whole archive."""
        return b"".join([*self._parts, self._entry("TRAILER!!!", b"", 0)])

    def _entry(self, name: str, data: bytes, mode: int) -> bytes:
        # ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
        fields = (len(self._parts) + 1, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        header = b"070701" + b"".join(b"%08X" % field for field in fields)
        head = header + name.encode() + b"\0"
        return head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)


def find_program(name: str) -> Path | None:
    """Where `name` is, looking in the sbin directories too, which a user's PATH may lack."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:{PROGRAM_PATH}")
    return Path(found) if found else None


def _libraries(program: Path) -> list[Path]:
    listing = subprocess.run(
        ["ldd", str(program)], capture_output=True, text=True, check=False, timeout=30
    ).stdout
    return [Path(path) for path in re.findall(r"(/\S+) \(0x", listing)]
