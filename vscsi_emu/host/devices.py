"""The SCSI devices of this machine."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from vscsi_emu.host import sysfs
from vscsi_emu.host.roots import THIS_MACHINE, Roots
from vscsi_emu.host.transport import transport

SECTOR: Final = 512
"""Bytes that sysfs counts a block device's size in, whatever its logical blocks."""

_ADDRESS: Final = re.compile(r"(\d+):(\d+):(\d+):(\d+)", re.ASCII)
_PAGE_HEADER: Final = 4

_TYPES: Final = {
    0x00: "disk",
    0x01: "tape",
    0x03: "processor",
    0x04: "worm",
    0x05: "cd/dvd",
    0x07: "optical",
    0x08: "changer",
    0x0C: "raid",
    0x0D: "enclosure",
    0x0E: "rbc disk",
    0x11: "osd",
    0x14: "zbc disk",
    0x1E: "well known",
    0x1F: "unknown",
}
"""PERIPHERAL DEVICE TYPE (SPC-6, standard INQUIRY data)."""
_LEAVING: Final = frozenset({"cancel", "deleted"})
_WITH_BLOCKS: Final = frozenset({0x00, 0x04, 0x05, 0x07, 0x0E, 0x14})


class Address(NamedTuple):
    """Where Linux found a logical unit."""

    host: int
    channel: int
    target: int
    lun: int

    def __str__(self) -> str:
        return ":".join(map(str, self))

    @classmethod
    def parse(cls, text: str) -> Address | None:
        """From H:C:T:L; None for anything else."""
        found = _ADDRESS.fullmatch(text)
        return cls(*map(int, found.groups())) if found else None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScsiDevice:
    """A logical unit as the kernel knew it when it was looked up."""

    address: Address
    path: Path
    """Its directory in sysfs, links resolved."""
    instance: int
    """Another one for the same unit once it has been removed and is found again."""
    type: int
    """PERIPHERAL DEVICE TYPE."""
    vendor: str
    model: str
    revision: str
    serial: str | None
    """Unit serial number (VPD page 80h)."""
    wwid: str | None
    """The designator that the kernel holds for the best: ``naa.…``, ``eui.…``, ``t10.…``."""
    transport: str
    state: str
    """``running``, ``offline``, ``blocked`` …"""
    sg: Path | None
    """Node of the sg driver, if that is bound. Nodes are named as the kernel names them, whether
    or not they exist."""
    bsg: Path | None
    block: Path | None
    """Node of the whole disk or disc."""
    other_nodes: tuple[Path, ...]
    """Of further drivers: tapes, changers."""
    size: int | None
    """In bytes; None without a block node."""
    block_size: int | None
    """Logical block length in bytes; None without a block node."""
    roots: Roots

    @property
    def type_name(self) -> str:
        return _TYPES.get(self.type, f"type {self.type:#04x}")

    @property
    def stays(self) -> bool:
        """Whether the host is not about to remove it."""
        return self.state not in _LEAVING

    @property
    def has_blocks(self) -> bool:
        """Whether its type is one of logical blocks, addressed at random."""
        return self.type in _WITH_BLOCKS

    @property
    def wwn(self) -> str | None:
        """The NAA name, as udev writes it: ``0x`` and 16 or 32 hexadecimal digits."""
        kind, _, digits = (self.wwid or "").partition(".")
        return f"0x{digits}" if kind == "naa" else None

    @property
    def nodes(self) -> tuple[Path, ...]:
        """All nodes that lead to it."""
        main = (self.sg, self.block, self.bsg)
        return (*(node for node in main if node is not None), *self.other_nodes)

    @property
    def block_directory(self) -> Path | None:
        """Of the whole disk in sysfs; it holds ``queue/``."""
        return next(iter(_children(self.path / "block")), None)

    @property
    def scsi_host(self) -> Path:
        """Directory of its SCSI host in sysfs."""
        return self.roots.sysfs / "class" / "scsi_host" / f"host{self.address.host}"

    def __str__(self) -> str:
        return str(self.nodes[0]) if self.nodes else str(self.address)


def devices(roots: Roots = THIS_MACHINE) -> list[ScsiDevice]:
    """Every logical unit, in the order of addresses."""
    bus = roots.sysfs / "bus" / "scsi" / "devices"
    addresses = sorted(found for name in sysfs.names(bus) if (found := Address.parse(name)))
    return [device for address in addresses if (device := at(address, roots))]


def at(address: Address, roots: Roots = THIS_MACHINE) -> ScsiDevice | None:
    """The logical unit at `address`; None when there is none, or no longer."""
    path = (roots.sysfs / "bus" / "scsi" / "devices" / str(address)).resolve()
    kind, instance = sysfs.number(path / "type"), sysfs.inode(path)
    if kind is None or instance is None:
        return None
    block = next(iter(_children(path / "block")), None)
    block_size = sysfs.number(block / "queue" / "logical_block_size") if block else None
    if block_size is None:
        block = None  # its queue comes last, and goes first
    sectors = sysfs.number(block / "size") if block else None
    host = roots.sysfs / "class" / "scsi_host" / f"host{address.host}"
    others = (
        node
        for name in ("scsi_tape", "scsi_changer")
        for child in _children(path / name)
        if (node := sysfs.node(child, roots.dev))
    )
    device = ScsiDevice(
        address=address,
        path=path,
        instance=instance,
        type=kind,
        vendor=sysfs.text(path / "vendor") or "",
        model=sysfs.text(path / "model") or "",
        revision=sysfs.text(path / "rev") or "",
        serial=_serial(path),
        wwid=sysfs.text(path / "wwid") or None,
        transport=transport(path, host),
        state=sysfs.text(path / "state") or "unknown",
        sg=_node(path / "scsi_generic", roots),
        bsg=_node(path / "bsg", roots),
        block=sysfs.node(block, roots.dev) if block else None,
        other_nodes=tuple(others),
        size=None if sectors is None else sectors * SECTOR,
        block_size=block_size,
        roots=roots,
    )
    # Attributes go before their directory does: without this one others may have been missing.
    return device if sysfs.number(path / "type") == kind else None


def _children(directory: Path) -> Iterator[Path]:
    return (directory / name for name in sysfs.names(directory))


def _node(directory: Path, roots: Roots) -> Path | None:
    found = (sysfs.node(child, roots.dev) for child in _children(directory))
    return next((node for node in found if node is not None), None)


def _serial(path: Path) -> str | None:
    page = sysfs.data(path / "vpd_pg80")
    if page is None or len(page) < _PAGE_HEADER:
        return None
    length = int.from_bytes(page[2:_PAGE_HEADER], "big")
    return page[_PAGE_HEADER : _PAGE_HEADER + length].decode("ascii", "replace").strip() or None
