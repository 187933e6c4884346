"""Who on this machine uses a device."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from vscsi_emu.host import sysfs
from vscsi_emu.host.devices import ScsiDevice
from vscsi_emu.host.roots import Roots


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """What stands on a device: on the whole, on its partitions, or on what holds these."""

    mounts: tuple[str, ...] = ()
    """Mount points."""
    swaps: tuple[str, ...] = ()
    """Nodes that the kernel swaps to."""
    holders: tuple[str, ...] = ()
    """Device mapper, RAID …, by their kernel names."""
    exclusive: bool | None = False
    """Whether somebody has its block node open exclusively; None: that may not be asked."""
    processes: tuple[str, ...] = ()
    """Those that have a node of it open, as far as this process may see them."""

    @property
    def taken(self) -> bool:
        """Whether writing to it behind its user's back would do harm."""
        return bool(self.mounts or self.swaps or self.holders or self.exclusive)

    def __str__(self) -> str:
        parts = [
            *(f"mounted on {mount}" for mount in self.mounts),
            *(f"swap on {swap}" for swap in self.swaps),
            *(f"held by {holder}" for holder in self.holders),
            *(["opened exclusively"] if self.exclusive else []),
            *(f"open in {process}" for process in self.processes),
        ]
        return ", ".join(parts)


def use(device: ScsiDevice) -> Use:
    """Looks who uses `device`. Opens its block node for a moment, exclusively, to see if that
    works: a mount at that very moment would find it busy."""
    roots = device.roots
    disk = device.block_directory
    standing = dict(_standing_on(disk, roots)) if disk else {}
    nodes = {os.path.realpath(roots.dev / name) for name in standing}
    below = {disk.name, *_partitions(disk)} if disk else set()
    return Use(
        mounts=tuple(dict.fromkeys(_mounts(set(standing.values()), nodes, roots))),
        swaps=tuple(swap for swap in _swaps(roots) if os.path.realpath(swap) in nodes),
        holders=tuple(sorted(standing.keys() - below)),
        exclusive=_exclusive(device.block),
        processes=tuple(_processes({str(node) for node in device.nodes} | nodes, roots)),
    )


def _standing_on(device: Path, roots: Roots) -> Iterator[tuple[str, str]]:
    """Kernel name and major:minor of a block device, its partitions, and all that holds them."""
    yield device.name, sysfs.text(device / "dev") or ""
    for partition in _partitions(device):
        yield from _standing_on(device / partition, roots)
    for holder in sysfs.names(device / "holders"):
        yield from _standing_on(roots.sysfs / "class" / "block" / holder, roots)


def _partitions(disk: Path) -> list[str]:
    return [name for name in sysfs.names(disk) if (disk / name / "partition").exists()]


def _mounts(numbers: set[str], nodes: set[str], roots: Roots) -> Iterator[str]:
    """Mount points (proc_pid_mountinfo(5)) here and where process 1 lives, if that is elsewhere."""
    for process in ("self", "1"):
        for line in (sysfs.text(roots.proc / process / "mountinfo") or "").splitlines():
            fields, _, rest = line.partition(" - ")
            number, mount = fields.split(" ")[2], fields.split(" ")[4]
            source = _unescaped(rest.split(" ")[1])
            # A file system over several devices has a number of its own, but names one of them.
            if number in numbers or (source[:1] == "/" and os.path.realpath(source) in nodes):
                yield _unescaped(mount)


def _unescaped(text: str) -> str:
    """White space and backslashes stand there as octal numbers."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)


def _swaps(roots: Roots) -> Iterator[str]:
    for line in (sysfs.text(roots.proc / "swaps") or "").splitlines()[1:]:
        yield _unescaped(line.split()[0])


def _exclusive(block: Path | None) -> bool | None:
    if block is None:
        return False
    try:
        flags = os.O_RDONLY | os.O_EXCL | os.O_NONBLOCK | os.O_CLOEXEC
        os.close(os.open(block, flags))
    except OSError as error:
        return True if error.errno == errno.EBUSY else None
    return False


def _processes(nodes: set[str], roots: Roots) -> Iterator[str]:
    for process in _others(roots):
        with suppress(OSError):
            links = (os.readlink(link) for link in (process / "fd").iterdir())
            if any(link in nodes for link in links):
                name = sysfs.text(process / "comm") or "a process"
                yield f"{name} (pid {process.name})"


def _others(roots: Roots) -> Iterable[Path]:
    found = (int(path.name) for path in roots.proc.glob("[0-9]*"))
    return (roots.proc / str(pid) for pid in sorted(found) if pid != os.getpid())
