"""What happened between two answers of ``stats.query``, as rates."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from vscsi_emu.control.statistics import (
    CLASSES,
    ClassStatistics,
    LunStatistics,
    QueueStatistics,
    ServiceStatistics,
    percentile,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Of a LUN or a queue, in an interval. Latencies are of all its commands, in nanoseconds."""

    hba: str
    name: str
    """TARGET:LUN, or the index of the queue."""
    id: str | None
    """Of the unit, where it is one."""
    read_iops: float
    write_iops: float
    other_iops: float
    read_bytes: float
    """A second."""
    write_bytes: float
    p50: int | None
    p99: int | None
    p999: int | None
    in_flight: int
    errors: int
    """Commands that did not end with response OK and status GOOD; of a queue they are not told
    apart."""
    closed: list[str]
    """Gates that are closed (`LunStatistics.closed`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """Of all LUNs and queues."""

    seconds: float
    luns: list[Rates]
    queues: list[Rates]


def between(before: ServiceStatistics | None, after: ServiceStatistics) -> Interval:
    """Both with histograms. Without `before`: since each LUN is there, with totals for rates."""
    seconds = 1.0 if before is None else max(after.time - before.time, 1e-9)
    luns = {(lun.hba, lun.lun, lun.id): lun for lun in before.luns} if before else {}
    queues = {(queue.hba, queue.queue): queue for queue in before.queues} if before else {}
    return Interval(
        seconds=seconds,
        luns=[_rates(luns.get((lun.hba, lun.lun, lun.id)), lun, seconds) for lun in after.luns],
        queues=[
            _rates(queues.get((queue.hba, queue.queue)), queue, seconds) for queue in after.queues
        ],
    )


def _rates(
    before: LunStatistics | QueueStatistics | None,
    after: LunStatistics | QueueStatistics,
    seconds: float,
) -> Rates:
    iops: dict[str, float] = {}
    moved: dict[str, float] = {}
    latencies: Counter[int] = Counter()
    for name in CLASSES:
        new: ClassStatistics = getattr(after, name)
        old: ClassStatistics | None = getattr(before, name) if before else None
        if old and old.ops > new.ops:
            old = None  # a unit that came anew at this address
        iops[name] = (new.ops - (old.ops if old else 0)) / seconds
        moved[name] = (new.bytes - (old.bytes if old else 0)) / seconds
        latencies.update(_histogram(new))
        latencies.subtract(_histogram(old) if old else {})
    latencies = +latencies
    lun = after if isinstance(after, LunStatistics) else None
    return Rates(
        hba=after.hba,
        name=after.lun if isinstance(after, LunStatistics) else str(after.queue),
        id=lun.id if lun else None,
        read_iops=iops["read"],
        write_iops=iops["write"],
        other_iops=iops["other"],
        read_bytes=moved["read"],
        write_bytes=moved["write"],
        p50=percentile(latencies, 0.5),
        p99=percentile(latencies, 0.99),
        p999=percentile(latencies, 0.999),
        in_flight=after.in_flight,
        errors=_errors(lun) - _errors(before if isinstance(before, LunStatistics) else None),
        closed=lun.closed if lun else [],
    )


def _histogram(statistics: ClassStatistics) -> dict[int, int]:
    return {bucket[0]: bucket[1] for bucket in statistics.latencies or ()}


def _errors(lun: LunStatistics | None) -> int:
    return sum([*lun.statuses.values(), *lun.responses.values()]) if lun else 0
