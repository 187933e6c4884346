"""A machine in a directory: sysfs, device nodes and procfs as files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from vscsi_emu.host.roots import Roots

QUEUE = {
    "logical_block_size": 512,
    "max_sectors_kb": 1280,
    "max_hw_sectors_kb": 32767,
    "max_segments": 2048,
    "max_segment_size": 65536,
    "dma_alignment": 3,
    "virt_boundary_mask": 0,
}


class Machine:
    """Starts without SCSI. Attributes are what the kernel's would read."""

    def __init__(self, directory: Path) -> None:
        self.roots = Roots(directory / "sys", directory / "dev", directory / "proc")
        for root in (self.roots.sysfs, self.roots.dev, self.roots.proc):
            root.mkdir(parents=True)

    def device(
        self,
        address: str,
        *,
        type: int = 0,
        sg: str | None = "sg0",
        block: str | None = "sda",
        number: str = "8:0",
        sectors: int = 2048,
        naa: str | None = "5000c500a1b2c3d4",
        serial: str | None = "SN 1",
        parent: str = "pci0000:00",
        driver: str = "mpt3sas",
        host: dict[str, int] | None = None,
        queue: dict[str, Any] | None = None,
        **attributes: Any,
    ) -> Path:
        """A logical unit, its SCSI host and its nodes; `attributes` are its own in sysfs."""
        host_name = f"host{address.split(':')[0]}"
        path = self.roots.sysfs / "devices" / parent / host_name / address
        given = {"type": type, "vendor": "ACME", "model": "Disk 1", "rev": "0001"}
        self.write(path, **given | {"state": "running", "timeout": 30, "queue_depth": 32})
        self.write(path, **attributes)
        if naa:
            self.write(path, wwid=f"naa.{naa}")
        if serial:
            (path / "vpd_pg80").write_bytes(bytes([0, 0x80, 0, len(serial)]) + serial.encode())
        self.node(path / "bsg" / address, f"bsg/{address}", "250:0")
        if sg:
            self.node(path / "scsi_generic" / sg, sg, f"21:{sg[2:]}")
        if block:
            self.node(path / "block" / block, block, number, size=sectors)
            self.write(path / "block" / block / "queue", **QUEUE | (queue or {}))
        scsi_host = self.roots.sysfs / "class" / "scsi_host" / host_name
        limits = {"sg_tablesize": 2048, "can_queue": 256, "cmd_per_lun": 7} | (host or {})
        self.write(scsi_host, proc_name=driver, **limits)
        bus = self.roots.sysfs / "bus" / "scsi" / "devices"
        bus.mkdir(parents=True, exist_ok=True)
        (bus / address).symlink_to(path)
        return path

    def partition(self, disk: Path, name: str, number: str) -> Path:
        """A partition of the disk whose directory in sysfs is `disk`."""
        self.node(disk / name, name, number, partition=1)
        return disk / name

    def holder(self, below: Path, name: str, number: str) -> Path:
        """Something like device mapper on the block device in `below`."""
        path = self.roots.sysfs / "class" / "block" / name
        self.node(path, name, number)
        (below / "holders" / name).mkdir(parents=True)
        return path

    def node(self, path: Path, name: str, number: str, **attributes: Any) -> None:
        """A class device and its node."""
        self.write(path, uevent=f"DEVNAME={name}", dev=number, **attributes)
        node = self.roots.dev / name
        node.parent.mkdir(parents=True, exist_ok=True)
        node.touch()

    def process(self, pid: int, name: str, *opened: Path) -> None:
        """A process that has these files open."""
        self.write(self.roots.proc / str(pid), comm=name)
        descriptors = self.roots.proc / str(pid) / "fd"
        descriptors.mkdir()
        for number, target in enumerate(opened):
            os.symlink(target, descriptors / str(number))

    @staticmethod
    def write(directory: Path, **attributes: Any) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        for name, value in attributes.items():
            (directory / name).write_text(f"{value}\n")
