"""What the host lets through to a device: each limit, and where it comes from."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

from vscsi_emu.host import block_limits, sysfs
from vscsi_emu.host.answers import Answers, ask
from vscsi_emu.host.devices import SECTOR, ScsiDevice

_KIB: Final = 1024
_UNSIGNED_SHORT: Final = 0xFFFF
_MASKS: Final = frozenset({"dma_alignment", "virt_boundary_mask"})

# What the kernel takes where it shows no figure.
_CDB_LENGTH: Final = 32
_USB_CDB_LENGTH: Final = 16
_MAX_SECTORS: Final = 2560
_SG_ALL: Final = 128
_MAX_SEGMENT_SIZE: Final = 65536
_DMA_ALIGNMENT: Final = 3
_NO_BOUNDARY: Final = 0
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


def queue_limits(
    device: ScsiDevice, *, commands: bool = True, before: QueueLimits | None = None
) -> QueueLimits:
    """Reads all there is: sysfs, ioctls of the nodes that may be opened, the device's Block Limits
    VPD page. May wait for the host's error recovery.

    With `commands` it sends SCSI commands, during which no other Python thread runs: before
    serving only. Without, it takes the VPD page that the kernel has read; or, of a device whose
    limits were read `before`, the page of then.
    """
    answers = ask(device, commands)
    if before is not None and before.block_limits is not None:
        answers.page, answers.page_source = before.block_limits, "Block Limits VPD page"
    directory = device.block_directory
    queue = directory / "queue" if directory else None
    segments = [
        *_attribute(queue, "max_segments"),
        *_attribute(device.scsi_host, "sg_tablesize"),
        *_figure(answers.sg_segments, f"SG_GET_SG_TABLESIZE {device.sg}"),
    ]
    seg_max = _limit("seg_max", segments, _SG_ALL)
    sectors = _sectors(device, queue, answers, seg_max.value)
    return QueueLimits(
        max_sectors=_limit("max_sectors", sectors, _MAX_SECTORS),
        seg_max=seg_max,
        cmd_per_lun=_limit("cmd_per_lun", _depths(device), 1),
        max_segment_size=_limit(
            "max_segment_size", _attribute(queue, "max_segment_size"), _MAX_SEGMENT_SIZE
        ),
        dma_alignment=_limit("dma_alignment", _attribute(queue, "dma_alignment"), _DMA_ALIGNMENT),
        virt_boundary_mask=_limit(
            "virt_boundary_mask", _attribute(queue, "virt_boundary_mask"), _NO_BOUNDARY
        ),
        cdb_length=_limit("cdb_length", _cdb_lengths(device), _CDB_LENGTH),
        timeout=_limit("timeout", _attribute(device.path, "timeout"), _TIMEOUT),
        block_limits=answers.page,
        block_size=answers.block_size,
    )


def attributes(device: ScsiDevice) -> tuple[Path, ...]:
    """Of the limits, those in sysfs that an administrator may change at any time."""
    directory = device.block_directory
    depth = device.path / "queue_depth"
    return (depth, directory / "queue" / "max_sectors_kb") if directory else (depth,)


def _sectors(
    device: ScsiDevice, queue: Path | None, answers: Answers, segments: int
) -> list[Candidate]:
    page = block_limits.max_transfer(answers.page) if answers.page else 0
    return [
        *_attribute(queue, "max_sectors_kb", _KIB // SECTOR),
        *_attribute(queue, "max_hw_sectors_kb", _KIB // SECTOR),
        # A buffer that is contiguous for a guest need not be for its host.
        Candidate(
            max(segments, 1) * mmap.PAGESIZE // SECTOR,
            f"as many segments of one page ({mmap.PAGESIZE} bytes)",
        ),
        *_figure(
            answers.block_sectors,
            f"BLKSECTGET {device.block}",
            binds=answers.block_sectors != _UNSIGNED_SHORT,  # more does not go into it
        ),
        *_figure(answers.block_bytes, f"SG_GET_RESERVED_SIZE {device.block}", SECTOR),
        *_figure(answers.sg_bytes, f"BLKSECTGET {device.sg}", SECTOR),
        *_figure(
            answers.sg_reserved,
            f"SG_GET_RESERVED_SIZE {device.sg} (a buffer that grows)",
            SECTOR,
            binds=False,
        ),
        *_figure(answers.bsg_bytes, f"SG_GET_RESERVED_SIZE {device.bsg}", SECTOR),
        *_figure(
            page * answers.block_size if page and answers.block_size else None,
            f"MAXIMUM TRANSFER LENGTH, {answers.page_source}",
            SECTOR,
        ),
    ]


def _depths(device: ScsiDevice) -> list[Candidate]:
    depth = _attribute(device.path, "queue_depth")
    return [
        *depth,
        *_attribute(device.scsi_host, "can_queue"),
        # Drivers begin with it and go up to queue_depth from there.
        *_attribute(device.scsi_host, "cmd_per_lun", binds=not depth),
    ]


def _cdb_lengths(device: ScsiDevice) -> list[Candidate]:
    # What the SCSI host's driver takes does not show; of USB it is known.
    usb = [Candidate(_USB_CDB_LENGTH, "USB's command block wrapper")]
    return [
        Candidate(_CDB_LENGTH, "the kernel's struct scsi_cmnd"),
        *(usb if device.transport == "usb" else []),
    ]


def _limit(name: str, candidates: list[Candidate], default: int) -> Limit:
    """The tightest, which is the greatest of masks; `default` where no candidate binds."""
    if not any(candidate.binds for candidate in candidates):
        candidates = [*candidates, Candidate(default, "the kernel's default")]
    tightest = max if name in _MASKS else min
    won = tightest((c for c in candidates if c.binds), key=lambda c: c.value)
    return Limit(name, won.value, won.source, tuple(candidates))


def _attribute(
    directory: Path | None, name: str, unit: int = 1, *, binds: bool = True
) -> list[Candidate]:
    """An attribute in sysfs that counts in `unit`s; nothing where there is none."""
    value = sysfs.number(directory / name) if directory else None
    if directory is None or value is None:
        return []
    return [Candidate(value * unit, f"{directory.name}/{name}", binds)]


def _figure(
    value: int | None, source: str, divisor: int = 1, *, binds: bool = True
) -> list[Candidate]:
    return [] if value is None else [Candidate(value // divisor, source, binds)]
