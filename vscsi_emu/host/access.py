"""What this process lacks to send commands to a node, and who can give it."""

from __future__ import annotations

import errno
import grp
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vscsi_emu.host import sysfs
from vscsi_emu.host.devices import ScsiDevice
from vscsi_emu.host.ioctl import opened
from vscsi_emu.host.roots import THIS_MACHINE, Roots
from vscsi_emu.host.way import permitted

_CAP_SYS_RAWIO: Final = 1 << 17
_ROOT: Final = 0
_GROUP_RW: Final = stat.S_IRGRP | stat.S_IWGRP


@dataclass(frozen=True, slots=True)
class Access:
    """Whether commands can be sent, and which."""

    granted: bool
    """Whether the node can be opened for reading and writing."""
    raw_io: bool
    """CAP_SYS_RAWIO is there: the kernel passes every command, not only those on its list."""
    missing: tuple[str, ...]
    """One sentence for each thing that is not there, with the fix."""


def access(device: ScsiDevice, node: Path) -> Access:
    """What this process may do with `node` of `device`."""
    obstacle = _obstacle(device, node)
    raw_io = has_raw_io(device.roots)
    missing = [] if obstacle is None else [obstacle]
    if not raw_io:
        missing.append(
            "CAP_SYS_RAWIO: without it the kernel refuses UNMAP, PERSISTENT RESERVE, SYNCHRONIZE "
            "CACHE (16), COMPARE AND WRITE and all that is not on its list; give it for example "
            "with AmbientCapabilities=CAP_SYS_RAWIO in the service's unit"
        )
    return Access(obstacle is None, raw_io, tuple(missing))


def has_raw_io(roots: Roots = THIS_MACHINE) -> bool:
    """Whether CAP_SYS_RAWIO is in this process's effective set."""
    status = sysfs.text(roots.proc / "self" / "status") or ""
    found = re.search(r"^CapEff:\s*([0-9a-f]+)", status, re.MULTILINE)
    return found is not None and bool(int(found[1], 16) & _CAP_SYS_RAWIO)


def _obstacle(device: ScsiDevice, node: Path) -> str | None:
    try:
        status = node.stat()
    except FileNotFoundError:
        return f"node {node}: it is not here; a container must be given it (--device {node})"
    except OSError as error:
        return f"node {node}: {error.strerror}"
    if not permitted(node):
        return missing_right(device, node, status)
    try:
        with opened(node):
            return None
    except OSError as error:
        if error.errno == errno.EPERM:
            return f"node {node}: its mode allows it, the control group's device policy does not"
        return f"node {node}: {error.strerror}"


def missing_right(device: ScsiDevice, node: Path, status: os.stat_result) -> str:
    """Which group, or which udev rule, would open `node` to this process."""
    group = _group(status.st_gid)
    shown = f"{node} is {stat.filemode(status.st_mode)[1:]}, group {group}"
    if status.st_mode & _GROUP_RW == _GROUP_RW and status.st_gid != _ROOT:
        return f"group {group}: {shown}; join it with: usermod -aG {group} USER"
    return (
        f"a udev rule: {shown}; put this line into /etc/udev/rules.d/60-vscsi-emu.rules: "
        f'{", ".join(_rule(device, node))}, GROUP="disk", MODE="0660"'
    )


def _rule(device: ScsiDevice, node: Path) -> Iterator[str]:
    """What tells the node, by the device's name where it has one: nodes' names change."""
    subsystem = {device.block: "block", device.sg: "scsi_generic", device.bsg: "bsg"}.get(node)
    if subsystem:
        yield f'SUBSYSTEM=="{subsystem}"'
    if subsystem == "block":
        yield 'ENV{DEVTYPE}=="disk"'
    if subsystem and device.wwid:
        yield f'ATTRS{{wwid}}=="{device.wwid}"'
    else:
        yield f'KERNEL=="{node.name}"'


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
