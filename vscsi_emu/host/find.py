"""From a device's name to the device."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from vscsi_emu.host import sysfs
from vscsi_emu.host.devices import Address, ScsiDevice, at, devices
from vscsi_emu.host.errors import HostError
from vscsi_emu.host.roots import THIS_MACHINE, Roots

_WWN: Final = re.compile(r"(?:wwn-)?0x([0-9a-f]{16}|[0-9a-f]{32})", re.IGNORECASE)
_BY_ID: Final = "by-id/"


def find(name: str, roots: Roots = THIS_MACHINE) -> ScsiDevice:
    """The device called `name`: a node (``/dev/sgN``, ``/dev/sdX``, ``/dev/bsg/H:C:T:L``, a link
    to one), ``H:C:T:L``, ``wwn-0x…`` or ``by-id/…``.

    Raises `HostError`.
    """
    if address := Address.parse(name):
        device = at(address, roots)
        if device is None:
            raise _none(name, roots)
        return device
    if found := _WWN.fullmatch(name):
        return _by_wwn(name, found[1].lower(), roots)
    if name.startswith(_BY_ID):
        return _by_id(name, roots)
    return _by_node(Path(name), name, roots)


def _by_wwn(name: str, digits: str, roots: Roots) -> ScsiDevice:
    return _only(name, (d for d in devices(roots) if d.wwn == f"0x{digits}"), roots)


def _by_id(name: str, roots: Roots) -> ScsiDevice:
    """Through the links that udev made, or by what it would have called the device."""
    identifier = name.removeprefix(_BY_ID)
    links = [path for path in roots.dev.glob("*/by-id/*") if path.name == identifier]
    if links:
        return _by_node(links[0], name, roots)
    return _only(name, (d for d in devices(roots) if identifier in _udev_names(d)), roots)


def _udev_names(device: ScsiDevice) -> set[str]:
    """Links in /dev/disk/by-id that hang on nothing but VPD page 83h."""
    kind, _, digits = (device.wwid or "").partition(".")
    match kind:
        case "naa":
            return {f"wwn-0x{digits}", f"scsi-3{digits}"}
        case "eui":
            return {f"scsi-2{digits}"}
        case _:
            return set()


def _by_node(path: Path, name: str, roots: Roots) -> ScsiDevice:
    resolved = Path(os.path.realpath(path))
    every = devices(roots)
    for device in every:
        if resolved in device.nodes:
            return device
    try:
        status = resolved.stat()
    except FileNotFoundError:
        raise _none(name, roots) from None
    except OSError as error:
        raise HostError(f"{name}: {error.strerror}") from None
    if not (stat.S_ISBLK(status.st_mode) or stat.S_ISCHR(status.st_mode)):
        raise HostError(f"{name} is no device node; name one that `vscsi-emu devices` lists")
    return _by_number(name, status, roots)


def _by_number(name: str, status: os.stat_result, roots: Roots) -> ScsiDevice:
    """By major and minor number: nodes may be called anything."""
    kind = "block" if stat.S_ISBLK(status.st_mode) else "char"
    number = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    link = roots.sysfs / "dev" / kind / number
    owner = sysfs.resolved(link) or link
    for parent in owner.parents:
        address = Address.parse(parent.name)
        if address and (device := at(address, roots)) and device.path == parent:
            if (owner / "partition").exists():
                raise HostError(
                    f"{name} is a partition; SCSI commands reach the whole disk: name {device}"
                )
            return device
    holders = sysfs.names(owner / "slaves")
    below = f", it lies on {', '.join(holders)}" if holders else ""
    raise HostError(f"{name} is no SCSI device{below}; see `vscsi-emu devices`")


def _only(name: str, found: Iterable[ScsiDevice], roots: Roots) -> ScsiDevice:
    paths = list(found)
    if not paths:
        raise _none(name, roots)
    if len(paths) > 1:
        names = ", ".join(f"{device} ({device.address})" for device in paths)
        raise HostError(f"{name} is reached on {len(paths)} paths: {names}; name one of these")
    return paths[0]


def _none(name: str, roots: Roots) -> HostError:
    if not devices(roots):
        return HostError(f"{name}: this machine has no SCSI devices")
    return HostError(f"{name}: no such SCSI device; see `vscsi-emu devices`")
