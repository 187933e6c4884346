"""The registers of one virtqueue, as a driver set them (virtio 1.4, 4.2.3.2 and 4.2.4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MAX_SIZE: Final = 1024
"""QueueSizeMax: entries of the largest split ring served."""
DEFAULT_ALIGN: Final = 4096
"""QueueAlign of a legacy driver that sets none."""

_DESCRIPTOR: Final = 16


@dataclass(frozen=True, slots=True)
class QueueSetup:
    """Entries and guest-physical addresses of a split virtqueue (2.7)."""

    size: int
    desc: int
    driver: int
    device: int


class SetupError(ValueError):
    """A queue cannot start as its registers are."""


@dataclass(slots=True)
class QueueRegisters:
    """`desc`, `driver`, `device`: version 2; `align`, `page_frame`: version 1."""

    size: int = 0
    desc: int = 0
    driver: int = 0
    device: int = 0
    align: int = DEFAULT_ALIGN
    page_frame: int = 0
    used: bool = False
    """QueueReady, or QueuePFN ≠ 0; until the queue has stopped."""
    started: bool = False
    """The backend was told to start it, and has not said since that it stopped."""
    stopping: bool = False
    resetting: bool = False
    """QueueReset."""

    def modern(self) -> QueueSetup:
        """Raises `SetupError`."""
        self._check_size()
        return QueueSetup(self.size, self.desc, self.driver, self.device)

    def legacy(self, page_size: int) -> QueueSetup:
        """All three parts in one block that begins at page `page_frame` (2.7.2, 4.2.4); page size
        in bytes. Raises `SetupError`."""
        self._check_size()
        if not page_size:
            raise SetupError("GuestPageSize was not set")
        desc = self.page_frame * page_size
        driver = desc + _DESCRIPTOR * self.size
        end = driver + 2 * (3 + self.size)
        # Below 2^64: page and alignment are powers of two of 32 bits, as is the page's number.
        device = (end + self.align - 1) & -self.align
        return QueueSetup(self.size, desc, driver, device)

    def _check_size(self) -> None:
        if not is_power_of_two(self.size) or self.size > MAX_SIZE:
            raise SetupError(f"QueueSize {self.size} is not a power of two up to {MAX_SIZE}")


def is_power_of_two(number: int) -> bool:
    return number > 0 and not number & (number - 1)
