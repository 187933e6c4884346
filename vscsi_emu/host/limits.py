"""What the host lets through to a device: each limit, and where it comes from."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

from vscsi_emu.host import block_limits, sysfs
from vscsi_emu.host.answers import ask
from vscsi_emu.host.devices import SECTOR, ScsiDevice

_KIB: Final = 1024
_UNSIGNED_SHORT: Final = 0xFFFF

# What the kernel takes where it shows no figure.
_CDB_LENGTH: Final = 32
_USB_CDB_LENGTH: Final = 16
_MAX_SECTORS: Final = 2560
_SG_ALL: Final = 128
_MAX_SEGMENT_SIZE: Final = 65536
_DMA_ALIGNMENT: Final = 3
_TIMEOUT: Final = 60


@dataclass(frozen=True, slots=True)
class Candidate:
    """One figure that the host gives for a limit."""

    value: int
    source: str
    binds: bool = True
    """Whether it bounds anything; one that does not is shown only."""


@dataclass(frozen=True, slots=True)
class Limit:
    """A limit: the tightest of the candidates that bind."""

    name: str
    value: int
    source: str
    candidates: tuple[Candidate, ...]

    @classmethod
    def of(
        cls,
        name: str,
        candidates: Iterable[Candidate],
        default: Candidate,
        tightest: Callable[[Iterable[int]], int] = min,
    ) -> Limit:
        """`default` counts where no candidate binds."""
        every = tuple(candidates)
        binding = tuple(c for c in every if c.binds)
        if not binding:
            every = (*every, default)
            binding = (default,)
        value = tightest(c.value for c in binding)
        source = next(c.source for c in binding if c.value == value)
        return cls(name, value, source, every)


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueLimits:
    """What a request to the device may be, and how many there may be."""

    max_sectors: Limit
    """Longest transfer in units of 512 bytes, as in virtio_scsi_config."""
    seg_max: Limit
    """Most segments of a transfer."""
    cmd_per_lun: Limit
    """Most commands in flight."""
    max_segment_size: Limit
    """Longest segment in bytes."""
    dma_alignment: Limit
    """Bits that must be clear in addresses and lengths of segments, else the kernel copies."""
    virt_boundary_mask: Limit
    """All segments but the first begin, all but the last end at a multiple of this plus one."""
    cdb_length: Limit
    """Longest CDB in bytes."""
    timeout: Limit
    """Seconds until the kernel aborts a command that names no time of its own."""
    block_limits: bytes | None
    """The device's own Block Limits VPD page with its header; None where it has none."""
    block_size: int | None
    """Logical block length in bytes; None where there is no medium of blocks."""

    def __iter__(self) -> Iterator[Limit]:
        values = (getattr(self, field.name) for field in fields(self))
        return (value for value in values if isinstance(value, Limit))


def queue_limits(device: ScsiDevice) -> QueueLimits:
    """Reads all there is: sysfs, ioctls of the nodes that may be opened, the device's Block Limits
    VPD page. Sends SCSI commands, during which no other Python thread runs: before serving only.
    """
    answers = ask(device)
    directory = device.block_directory
    queue = directory / "queue" if directory else None
    host = device.scsi_host
    size = answers.block_size

    def attribute(
        path: Path | None, name: str, scale: int = 1, *, binds: bool = True
    ) -> list[Candidate]:
        value = sysfs.number(path / name) if path else None
        if value is None or path is None:
            return []
        return [Candidate(value * scale, f"{path.name}/{name}", binds)]

    segments = [
        *attribute(queue, "max_segments"),
        *attribute(host, "sg_tablesize"),
        *_found(answers.sg_segments, f"SG_GET_SG_TABLESIZE {device.sg}"),
    ]
    pages = min((c.value for c in segments), default=0) * mmap.PAGESIZE // SECTOR
    page_limit = block_limits.max_transfer(answers.page) if answers.page else 0
    depth = attribute(device.path, "queue_depth")
    usb = device.transport == "usb"
    return QueueLimits(
        max_sectors=Limit.of(
            "max_sectors",
            [
                *attribute(queue, "max_sectors_kb", _KIB // SECTOR),
                *attribute(queue, "max_hw_sectors_kb", _KIB // SECTOR),
                # A buffer that is contiguous for a guest need not be for its host.
                *_found(pages or None, f"that many segments of {mmap.PAGESIZE} bytes"),
                *_found(
                    answers.block_sectors,
                    f"BLKSECTGET {device.block}",
                    binds=answers.block_sectors != _UNSIGNED_SHORT,  # it ends there
                ),
                *_found(answers.block_bytes, f"SG_GET_RESERVED_SIZE {device.block}", SECTOR),
                *_found(answers.sg_bytes, f"BLKSECTGET {device.sg}", SECTOR),
                *_found(
                    answers.sg_reserved,
                    f"SG_GET_RESERVED_SIZE {device.sg} (a buffer that grows)",
                    SECTOR,
                    binds=False,
                ),
                *_found(answers.bsg_bytes, f"SG_GET_RESERVED_SIZE {device.bsg}", SECTOR),
                *_found(
                    page_limit * size // SECTOR if page_limit and size else None,
                    f"MAXIMUM TRANSFER LENGTH, {answers.page_source}",
                ),
            ],
            Candidate(_MAX_SECTORS, "the kernel's default"),
        ),
        seg_max=Limit.of("seg_max", segments, Candidate(_SG_ALL, "the kernel's default")),
        cmd_per_lun=Limit.of(
            "cmd_per_lun",
            [
                *depth,
                *attribute(host, "can_queue"),
                # Drivers begin with it and go up to queue_depth from there.
                *attribute(host, "cmd_per_lun", binds=not depth),
            ],
            Candidate(1, "the kernel's default"),
        ),
        max_segment_size=Limit.of(
            "max_segment_size",
            attribute(queue, "max_segment_size"),
            Candidate(_MAX_SEGMENT_SIZE, "the kernel's default"),
        ),
        dma_alignment=Limit.of(
            "dma_alignment",
            attribute(queue, "dma_alignment"),
            Candidate(_DMA_ALIGNMENT, "the kernel's default"),
            max,
        ),
        virt_boundary_mask=Limit.of(
            "virt_boundary_mask",
            attribute(queue, "virt_boundary_mask"),
            Candidate(0, "the kernel's default"),
            max,
        ),
        cdb_length=Limit.of(
            "cdb_length",
            [
                Candidate(_CDB_LENGTH, "the kernel's struct scsi_cmnd"),
                *([Candidate(_USB_CDB_LENGTH, "USB command block wrapper")] if usb else []),
            ],
            Candidate(_CDB_LENGTH, "the kernel's struct scsi_cmnd"),
        ),
        timeout=Limit.of(
            "timeout",
            attribute(device.path, "timeout"),
            Candidate(_TIMEOUT, "the kernel's default"),
        ),
        block_limits=answers.page,
        block_size=size,
    )


def _found(value: int | None, source: str, unit: int = 1, *, binds: bool = True) -> list[Candidate]:
    return [] if value is None else [Candidate(value // unit, source, binds)]
