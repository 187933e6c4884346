"""What is on the disks before each question: known blocks at both ends, zeros between."""

from __future__ import annotations

from typing import Final

BLOCK: Final = 512
BLOCKS: Final = (64 << 20) // BLOCK
HEAD: Final = range(16)
TAIL: Final = range(BLOCKS - 8, BLOCKS)
"""LBAs that are written anew after a question that may have changed them."""


def contents(lba: int, blocks: int) -> bytes:
    """These blocks; zeros behind the end."""
    return b"".join(_block(number) for number in range(lba, lba + blocks))


def _block(lba: int) -> bytes:
    if lba not in HEAD and lba not in TAIL:
        return bytes(BLOCK)
    return lba.to_bytes(4) * (BLOCK // 4) if lba else b"\xc3" * BLOCK
