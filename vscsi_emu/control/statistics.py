"""What commands cost, as the data plane counts it, merged for people and programs."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from vscsi_emu import _dataplane
from vscsi_emu.scsi.status import Status
from vscsi_emu.virtio.scsi import Response, show_address

if TYPE_CHECKING:
    from vscsi_emu.service import Service

CLASSES: Final = ("read", "write", "other")
"""Of commands, in the order of the data plane."""
_GATES: Final = {
    _dataplane.CLASS_READ: "read",
    _dataplane.CLASS_WRITE: "write",
    _dataplane.CLASS_MEDIA: "media",
}

Latencies = Mapping[int, int]
"""Longest latency of a bucket in nanoseconds → commands (`_dataplane.Statistics`)."""


def percentile(latencies: Latencies, part: float) -> int | None:
    """Nanoseconds that `part` (0 to 1) of the commands took at most, to the end of their bucket;
    None without commands."""
    total = sum(latencies.values())
    reached = 0
    for bound, count in sorted(latencies.items()):
        reached += count
        if reached >= part * total:
            return bound
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassStatistics:
    """Commands of one class that ended. Latencies are in nanoseconds, each to the end of its
    bucket, which is at most 1/16 too much; null without commands."""

    ops: int
    bytes: int
    p50: int | None
    p99: int | None
    p999: int | None
    latencies: list[list[int]] | None
    """[longest latency, commands] of each bucket, if asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LunStatistics:
    """A unit at one address, since it is there."""

    hba: str
    lun: str
    """TARGET:LUN."""
    id: str
    in_flight: int
    """Without those that a worker ends before it takes the next one."""
    read: ClassStatistics
    write: ClassStatistics
    other: ClassStatistics
    """Not of the medium's blocks, or of no data."""
    statuses: dict[str, int]
    """SAM status other than GOOD → commands."""
    responses: dict[str, int]
    """VIRTIO_SCSI_S_* other than OK, without the prefix → commands."""
    closed: list[str]
    """Classes of media commands that go to Python now: the gate is closed for them."""
    pending: int
    """Commands that wait for Python's decision."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueStatistics:
    """Commands to an HBA that came from one virtqueue: to its units, since these are there, and to
    none."""

    hba: str
    queue: int
    """Index of the virtqueue; request queues begin at 2."""
    in_flight: int
    read: ClassStatistics
    write: ClassStatistics
    other: ClassStatistics
    statuses: dict[str, int]
    """As of a LUN."""
    responses: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class StrayStatistics:
    """Commands to an HBA that were for none of its units: to addresses where there is none, to the
    well-known unit REPORT LUNS, or malformed."""

    hba: str
    in_flight: int
    other: ClassStatistics
    statuses: dict[str, int]
    """As of a LUN."""
    responses: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceStatistics:
    """All that is counted."""

    time: float
    """Of the count, in seconds; of CLOCK_MONOTONIC."""
    luns: list[LunStatistics]
    queues: list[QueueStatistics]
    strays: list[StrayStatistics]
    """Of each HBA."""


class _Sum:
    """Shards of the data plane, added up."""

    def __init__(self) -> None:
        self.in_flight = 0
        self._bytes = [0, 0, 0]
        self._latencies: tuple[Counter[int], ...] = (Counter(), Counter(), Counter())
        self.statuses: Counter[int] = Counter()
        self.responses: Counter[int] = Counter()

    def add(self, shard: _dataplane.Statistics) -> None:
        self.in_flight += shard.in_flight
        for at, (moved, latencies) in enumerate(zip(shard.bytes, shard.latencies, strict=True)):
            self._bytes[at] += moved
            self._latencies[at].update(dict(latencies))
        self.statuses.update(dict(shard.statuses))
        self.responses.update(dict(shard.responses))

    def shown(self, histograms: bool) -> dict[str, Any]:
        """As fields of a LUN's or a queue's statistics."""
        return {
            "in_flight": self.in_flight,
            **self._classes(histograms),
            "statuses": {status_name(code): n for code, n in sorted(self.statuses.items())},
            "responses": {response_name(code): n for code, n in sorted(self.responses.items())},
        }

    def _classes(self, histograms: bool) -> dict[str, ClassStatistics]:
        return {
            name: class_statistics(latencies, moved, histograms=histograms)
            for name, moved, latencies in zip(CLASSES, self._bytes, self._latencies, strict=True)
        }


def class_statistics(latencies: Latencies, moved: int, *, histograms: bool) -> ClassStatistics:
    """Of commands with these latencies, which moved so many bytes."""
    return ClassStatistics(
        ops=sum(latencies.values()),
        bytes=moved,
        p50=percentile(latencies, 0.5),
        p99=percentile(latencies, 0.99),
        p999=percentile(latencies, 0.999),
        latencies=[[*bucket] for bucket in sorted(latencies.items())] if histograms else None,
    )


class Source(NamedTuple):
    """Where a LUN is counted."""

    hba: str
    lun: str
    id: str
    nexus: _dataplane.Nexus


class Sources(NamedTuple):
    """All that is counted."""

    luns: list[Source]
    ports: list[tuple[str, _dataplane.Port]]
    """Name and port of each HBA."""


def sources(service: Service) -> Sources:
    """All LUNs that there are, and all HBAs. On the service's event loop."""
    found = []
    for hba in service.hbas:
        for address, unit in hba.luns.items():
            nexus = hba.nexus(address)
            assert nexus is not None
            id = service.disk_of(unit).id
            found.append(Source(hba.name, show_address(address), id, nexus.data_plane))
    return Sources(found, [(hba.name, hba.port) for hba in service.hbas])


def collect(counted: Sources, *, histograms: bool = False) -> ServiceStatistics:
    """What they count now. On any thread: there may be a thousand."""
    by_queue: dict[tuple[str, int], _Sum] = {}

    def total_of(hba: str, shards: Mapping[int, _dataplane.Statistics]) -> _Sum:
        total = _Sum()
        for index, shard in shards.items():
            total.add(shard)
            by_queue.setdefault((hba, index), _Sum()).add(shard)
        return total

    luns = [
        _lun(source, total_of(source.hba, source.nexus.statistics), histograms)
        for source in counted.luns
    ]
    strays = [
        _stray(hba, total_of(hba, port.statistics), histograms) for hba, port in counted.ports
    ]
    queues = [
        QueueStatistics(hba=hba, queue=index, **total.shown(histograms))
        for (hba, index), total in sorted(by_queue.items())
    ]
    return ServiceStatistics(time=time.monotonic(), luns=luns, queues=queues, strays=strays)


def _lun(source: Source, total: _Sum, histograms: bool) -> LunStatistics:
    closed = source.nexus.closed
    return LunStatistics(
        hba=source.hba,
        lun=source.lun,
        id=source.id,
        **total.shown(histograms),
        closed=[name for gate, name in _GATES.items() if closed & gate],
        pending=source.nexus.pending,
    )


def _stray(hba: str, total: _Sum, histograms: bool) -> StrayStatistics:
    shown = total.shown(histograms)
    return StrayStatistics(
        hba=hba, **{name: shown[name] for name in shown if name not in ("read", "write")}
    )


def status_name(code: int) -> str:
    """SAM-6's, with underscores."""
    return Status(code).name if code in list(Status) else f"{code:#04x}"


def response_name(code: int) -> str:
    """virtio's ``VIRTIO_SCSI_S_*``, without the prefix."""
    return Response(code).name if code in list(Response) else f"{code:#04x}"
