"""What a device's nodes say of its limits."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from vscsi_emu.host import block_limits, command, ioctl, sysfs
from vscsi_emu.host.devices import ScsiDevice


@dataclass(slots=True)
class Answers:
    """None: no answer, or nobody to ask."""

    block_sectors: int | None = None
    """BLKSECTGET of the block node: units of 512 bytes."""
    block_bytes: int | None = None
    """SG_GET_RESERVED_SIZE of the block node."""
    sg_bytes: int | None = None
    """BLKSECTGET of the sg node."""
    sg_segments: int | None = None
    sg_reserved: int | None = None
    bsg_bytes: int | None = None
    """SG_GET_RESERVED_SIZE of the bsg node."""
    page: bytes | None = None
    """Block Limits VPD page with its header."""
    page_source: str = ""
    block_size: int | None = None


def ask(device: ScsiDevice, commands: bool) -> Answers:
    """Asks the nodes that may be opened and, with `commands`, through one of them the device."""
    answers = Answers(block_size=device.block_size)
    with ExitStack() as stack:

        def opened(node: Path | None) -> int | None:
            with suppress(OSError):
                return stack.enter_context(ioctl.opened(node)) if node else None
            return None

        block, sg, bsg = opened(device.block), opened(device.sg), opened(device.bsg)
        if block is not None:
            answers.block_sectors = ioctl.number(block, ioctl.BLKSECTGET, size=2)
            answers.block_bytes = ioctl.number(block, ioctl.SG_GET_RESERVED_SIZE)
        if sg is not None:
            answers.sg_bytes = ioctl.number(sg, ioctl.BLKSECTGET)
            answers.sg_segments = ioctl.number(sg, ioctl.SG_GET_SG_TABLESIZE)
            answers.sg_reserved = ioctl.number(sg, ioctl.SG_GET_RESERVED_SIZE)
        if bsg is not None:
            answers.bsg_bytes = ioctl.number(bsg, ioctl.SG_GET_RESERVED_SIZE)
        if device.has_blocks:
            _ask_target(device, answers, (block if sg is None else sg) if commands else None)
    return answers


def _ask_target(device: ScsiDevice, answers: Answers, fd: int | None) -> None:
    if fd is not None:
        with suppress(command.NotInstalled):
            answers.page = command.vpd_page(fd, block_limits.PAGE)
            answers.page_source = "Block Limits VPD page"
            if answers.block_size is None:
                answers.block_size = command.block_size(fd)
            return
    # The kernel has read it when it found the device.
    answers.page = sysfs.data(device.path / "vpd_pgb0")
    answers.page_source = "vpd_pgb0 in sysfs"
