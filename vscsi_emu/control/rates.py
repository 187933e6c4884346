"""What happened between two answers of ``stats.query``, as rates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from vscsi_emu.control.statistics import (
    CLASSES,
    ClassStatistics,
    LunStatistics,
    QueueStatistics,
    ServiceStatistics,
    StrayStatistics,
    class_statistics,
    percentile,
)

_NOTHING: Final = class_statistics({}, 0, histograms=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Of a LUN or a queue, in an interval. Latencies are of all its commands, in nanoseconds."""

    hba: str
    name: str
    """TARGET:LUN, or the index of the queue; "none" for commands that were for no LUN."""
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
    """Commands that did not end with response OK and status GOOD."""
    closed: list[str]
    """Gates that are closed (`LunStatistics.closed`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """Of all LUNs and queues, and for each HBA of what was for no LUN."""

    seconds: float
    luns: list[Rates]
    queues: list[Rates]
    strays: list[Rates]


def between(before: ServiceStatistics | None, after: ServiceStatistics) -> Interval:
    """Both with histograms. Without `before`: since each LUN is there, with totals for rates."""
    seconds = 1.0 if before is None else max(after.time - before.time, 1e-9)
    old = {_key(counted): counted for counted in _all(before)} if before else {}

    def rates(counted: Sequence[Counted]) -> list[Rates]:
        return [_rates(old.get(_key(now)), now, seconds) for now in counted]

    return Interval(
        seconds=seconds,
        luns=rates(after.luns),
        queues=rates(after.queues),
        strays=rates(after.strays),
    )


Counted = LunStatistics | QueueStatistics | StrayStatistics


def _all(statistics: ServiceStatistics) -> list[Counted]:
    return [*statistics.luns, *statistics.queues, *statistics.strays]


def _key(counted: Counted) -> tuple[str, str, str | None]:
    match counted:
        case LunStatistics():
            return counted.hba, counted.lun, counted.id
        case QueueStatistics():
            return counted.hba, str(counted.queue), None
        case StrayStatistics():
            return counted.hba, "none", None


def _rates(before: Counted | None, after: Counted, seconds: float) -> Rates:
    iops: dict[str, float] = {}
    moved: dict[str, float] = {}
    latencies: Counter[int] = Counter()
    for name in CLASSES:
        new: ClassStatistics = getattr(after, name, _NOTHING)
        old: ClassStatistics | None = getattr(before, name, None)
        if old and old.ops > new.ops:
            old = None  # a unit that came anew at this address
        iops[name] = (new.ops - (old.ops if old else 0)) / seconds
        moved[name] = (new.bytes - (old.bytes if old else 0)) / seconds
        latencies.update(_histogram(new))
        latencies.subtract(_histogram(old) if old else {})
    latencies = +latencies
    errors = _errors(after) - (_errors(before) if before else 0)
    hba, name, id = _key(after)
    return Rates(
        hba=hba,
        name=name,
        id=id,
        read_iops=iops["read"],
        write_iops=iops["write"],
        other_iops=iops["other"],
        read_bytes=moved["read"],
        write_bytes=moved["write"],
        p50=percentile(latencies, 0.5),
        p99=percentile(latencies, 0.99),
        p999=percentile(latencies, 0.999),
        in_flight=after.in_flight,
        errors=errors if errors >= 0 else _errors(after),
        closed=after.closed if isinstance(after, LunStatistics) else [],
    )


def _histogram(statistics: ClassStatistics) -> dict[int, int]:
    return {bucket[0]: bucket[1] for bucket in statistics.latencies or ()}


def _errors(counted: Counted) -> int:
    return sum([*counted.statuses.values(), *counted.responses.values()])
