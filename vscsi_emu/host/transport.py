"""How a SCSI device is attached."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from vscsi_emu.host import sysfs

_PATHS: Final = (
    (re.compile(r"/session\d+/"), "iscsi"),
    (re.compile(r"/rport-\d+:\d+-\d+/"), "fc"),
    (re.compile(r"/end_device-\d+:\d+"), "sas"),
    (re.compile(r"/usb\d+/"), "usb"),
    (re.compile(r"/ata\d+/"), "ata"),
    (re.compile(r"/virtio\d+/"), "virtio"),
)
"""What a transport class or a bus leaves in the path of the device."""


def transport(path: Path, scsi_host: Path) -> str:
    """The transport of the device at `path` in sysfs, links resolved; the name of the SCSI host's
    driver where no transport shows."""
    for pattern, name in _PATHS:
        if pattern.search(f"{path}/"):
            return name
    return sysfs.text(scsi_host / "proc_name") or "unknown"
