"""What can go wrong between a CPU's stores and a device's loads, and the other way round."""

from dataclasses import dataclass
from enum import Enum


class FaultKind(Enum):
    STALE_DEVICE_READ = "device reads a stale line"
    """The CPU's store is in a dirty cache line; the device reads memory beneath it."""
    STALE_CPU_READ = "CPU reads a stale line"
    """The device wrote memory beneath a line that the CPU still has in its cache."""
    MISMATCHED_ALIAS = "mismatched aliases"
    """One side goes through the cache and the other past it, to the same address."""
    LOST_STORE = "store lost"
    """A dirty line was written back over what the other side had stored meanwhile."""
    MISSING_BARRIER = "missing barrier"
    """Accesses become visible in another order than the driver wrote them down in."""
    MISSING_SYNC = "missing sync"
    """A buffer changed hands without dma_map or dma_unmap."""
    IOMMU_FAULT = "IOMMU fault"
    """A device address is not mapped, or not for this access."""


@dataclass(frozen=True, slots=True)
class Fault:
    """`address`: the first byte concerned, as the device addresses it."""

    kind: FaultKind
    address: int
    text: str

    def __str__(self) -> str:
        return f"{self.kind.value}: {self.text}"


class CoherencyError(AssertionError):
    """A driver, or a description of its device, that only works on other machines."""

    def __init__(self, faults: list[Fault]) -> None:
        super().__init__("\n".join(str(fault) for fault in faults))
        self.faults = faults


class FaultLog:
    """Faults in order. One that comes again (a polled index, say) is counted, not repeated."""

    def __init__(self) -> None:
        self._counts: dict[Fault, int] = {}

    def report(self, kind: FaultKind, address: int, text: str) -> None:
        fault = Fault(kind, address, text)
        self._counts[fault] = self._counts.get(fault, 0) + 1

    @property
    def faults(self) -> list[Fault]:
        return list(self._counts)

    @property
    def first(self) -> Fault | None:
        return next(iter(self._counts), None)

    def count(self, fault: Fault) -> int:
        return self._counts.get(fault, 0)

    def check(self) -> None:
        """Raises `CoherencyError` if there is any fault."""
        if self._counts:
            raise CoherencyError(self.faults)
