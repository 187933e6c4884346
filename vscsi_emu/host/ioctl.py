"""What a device node answers without a SCSI command (linux/fs.h, scsi/sg.h)."""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

BLKSECTGET: Final = 0x1267
"""Longest request. Blocks: an unsigned short of sectors; sg: an int of bytes."""
SG_GET_RESERVED_SIZE: Final = 0x2272
"""sg: bytes of the descriptor's own buffer. Blocks, bsg: bytes of the longest request."""
SG_GET_SG_TABLESIZE: Final = 0x227F
"""sg only: the most segments of a request."""


@contextmanager
def opened(node: Path) -> Iterator[int]:
    """A descriptor to ask with. Does not wait for a medium or for who has it exclusively."""
    fd = os.open(node, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def number(fd: int, request: int, size: int = 4) -> int | None:
    """What `request` writes, `size` bytes of it; None where the driver does not know it."""
    try:
        answer = fcntl.ioctl(fd, request, bytes(4))
    except OSError:
        return None
    return int.from_bytes(answer[:size], sys.byteorder)
