"""What a logical unit bounds: Block Limits VPD page and data plane alike (SBC-4 6.6.4)."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final, Self

_MAX_TRANSFER: Final = 32 << 20
_DISCARD_UNIT: Final = 4096
_EXCLUSIVE: Final = 1 << 20
"""Bytes of one command that has its logical unit to itself."""
_ATOMIC_UNIT: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """In logical blocks unless the name says otherwise. 0 is "not reported" and "no limit"; for
    COMPARE AND WRITE and for atomic writes it is "not supported"."""

    max_transfer_blocks: int = 0
    optimal_transfer_blocks: int = 0
    optimal_granularity_blocks: int = 0
    max_write_same_blocks: int = 0
    max_unmap_blocks: int = 0
    max_unmap_descriptors: int = 0
    unmap_granularity_blocks: int = 0
    unmap_alignment: int = 0
    max_compare_and_write_blocks: int = 0
    max_atomic_blocks: int = 0
    atomic_granularity_blocks: int = 0
    """Of an atomic write's length and of its first LBA."""

    def __post_init__(self) -> None:
        for field in fields(self):
            top = _WIDTHS.get(field.name, 0xFFFF_FFFF)
            value = getattr(self, field.name)
            if not 0 <= value <= top:
                raise ValueError(f"{field.name} {value} is not within 0 to {top}")

    @classmethod
    def default(cls, block_size: int) -> Self:
        """32 MiB a transfer; what one UNMAP or WRITE SAME may do stays a short piece of work."""
        return cls(
            max_transfer_blocks=_MAX_TRANSFER // block_size,
            max_write_same_blocks=1 << 15,
            max_unmap_blocks=1 << 20,
            max_unmap_descriptors=256,
            unmap_granularity_blocks=max(1, _DISCARD_UNIT // block_size),
            max_compare_and_write_blocks=min(0xFF, _EXCLUSIVE // block_size),
            max_atomic_blocks=_EXCLUSIVE // block_size,
            atomic_granularity_blocks=max(1, _ATOMIC_UNIT // block_size),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueLimits:
    """What an HBA's configuration space says for all its units. 0 is "no limit"."""

    max_bytes: int = 0
    """Of a command's data."""
    max_segments: int = 0
    commands: int = 0
    """In flight."""

    def lowered(self, cap: QueueLimits) -> QueueLimits:
        """The lower of each."""
        return QueueLimits(
            max_bytes=lower(self.max_bytes, cap.max_bytes),
            max_segments=lower(self.max_segments, cap.max_segments),
            commands=lower(self.commands, cap.commands),
        )


def lower(limit: int, other: int) -> int:
    """Of two limits, either of which may be 0 for none."""
    return min(limit, other) if limit and other else limit or other


_WIDTHS: Final = {
    "optimal_granularity_blocks": 0xFFFF,
    "unmap_alignment": 0x7FFF_FFFF,
    "max_write_same_blocks": 0xFFFF_FFFF_FFFF_FFFF,
    "max_compare_and_write_blocks": 0xFF,
}
"""The greatest value of the fields that have not 4 bytes."""
