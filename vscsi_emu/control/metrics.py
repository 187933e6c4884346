"""Prometheus: statistics in its text format, over HTTP."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from vscsi_emu.control.statistics import (
    CLASSES,
    ClassStatistics,
    LunStatistics,
    QueueStatistics,
    ServiceStatistics,
    StrayStatistics,
    collect,
    sources,
)
from vscsi_emu.service import StartError

if TYPE_CHECKING:
    from vscsi_emu.service import Service

log = logging.getLogger(__name__)

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
PATH: Final = "/metrics"
MAX_CONNECTIONS: Final = 16
MAX_REQUEST: Final = 1 << 14
SECONDS: Final = 10.0
"""That a client may take to ask, and again to read."""

LE: Final = (*(step * 10**power for power in range(4, 10) for step in (1, 2, 5)), 10**10)
"""Bounds of latency buckets in nanoseconds: 10 µs to 10 s."""


def parse_address(text: str) -> tuple[str, int]:
    """(host, port) of HOST:PORT, [IPV6]:PORT, or PORT on this machine only. `ValueError`."""
    host, _, port = text.rpartition(":")
    if not port.isdigit() or not 0 <= int(port) <= 65535:
        raise ValueError(f"{text!r} is no HOST:PORT, as in 127.0.0.1:9100")
    return host.strip("[]") or "127.0.0.1", int(port)


class Metrics:
    """Answers GET /metrics while entered."""

    def __init__(self, service: Service, _stop: asyncio.Event, *, address: str) -> None:
        """`StartError` when entered."""
        self._service = service
        self._address = address
        self._connections: set[asyncio.Task[None]] = set()
        self.port = 0
        """The one listened on, once entered."""

    async def __aenter__(self) -> Self:
        try:
            host, port = parse_address(self._address)
            self._server = await asyncio.start_server(
                self._connected, host, port, limit=MAX_REQUEST
            )
        except (ValueError, OSError) as error:
            raise StartError(f"--metrics {self._address}: {error}") from None
        self.port = self._server.sockets[0].getsockname()[1]
        log.info("metrics at http://%s:%d%s", f"[{host}]" if ":" in host else host, self.port, PATH)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await self._server.wait_closed()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._connections) >= MAX_CONNECTIONS:
            writer.transport.abort()
            return
        self._connections.add(task)
        try:
            async with asyncio.timeout(SECONDS):
                request = await reader.readuntil(b"\r\n\r\n")
            answer = await self._answer(request.split(b"\r\n", 1)[0].split(b" "))
            writer.write(answer)
            async with asyncio.timeout(SECONDS):
                await writer.drain()
            writer.close()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            writer.transport.abort()
        finally:
            self._connections.discard(task)

    async def _answer(self, request: list[bytes]) -> bytes:
        if len(request) != 3 or not request[2].startswith(b"HTTP/1."):
            return _reply("400 Bad Request", "this is no HTTP/1.1\n")
        if request[0] not in (b"GET", b"HEAD"):
            return _reply("405 Method Not Allowed", "GET it\n")
        if request[1].partition(b"?")[0] != PATH.encode():
            return _reply("404 Not Found", f"metrics are at {PATH}\n")
        counted = sources(self._service)
        text = await asyncio.to_thread(lambda: render(collect(counted, histograms=True)))
        return _reply("200 OK", text, head=request[0] == b"HEAD")


def _reply(status: str, text: str, *, head: bool = False) -> bytes:
    body = text.encode()
    lines = [
        f"HTTP/1.1 {status}",
        f"Content-Type: {CONTENT_TYPE}",
        f"Content-Length: {len(body)}",
        "Connection: close",
    ]
    return "\r\n".join([*lines, "", ""]).encode() + (b"" if head else body)


# ── The text ───────────────────────────────────────────────────────────────────────────────────


def render(statistics: ServiceStatistics) -> str:
    """All of it, in the text format 0.0.4. Latency histograms are of `LE`; their sums count each
    command with the upper bound of its own, finer bucket, at most 1/16 too much."""
    luns, queues, strays = statistics.luns, statistics.queues, statistics.strays
    return "".join(
        [
            *_family("vscsi_commands_total", "counter", "Commands that ended.", _ops(luns)),
            *_family("vscsi_bytes_total", "counter", "Data moved.", _bytes(luns)),
            *_family(
                "vscsi_latency_seconds",
                "histogram",
                "From a command's queue until its driver is shown its end.",
                _histograms(luns),
            ),
            *_family(
                "vscsi_errors_total",
                "counter",
                "Commands by SAM status or virtio response, but for GOOD and OK.",
                _errors(luns),
            ),
            *_family("vscsi_in_flight", "gauge", "Commands under way.", _in_flight(luns)),
            *_family(
                "vscsi_gate_closed",
                "gauge",
                "1 where media commands of a class go through Python now.",
                _gates(luns),
            ),
            *_family("vscsi_queue_commands_total", "counter", "Commands that ended.", _ops(queues)),
            *_family("vscsi_queue_bytes_total", "counter", "Data moved.", _bytes(queues)),
            *_family(
                "vscsi_queue_errors_total",
                "counter",
                "Commands by SAM status or virtio response, but for GOOD and OK.",
                _errors(queues),
            ),
            *_family("vscsi_queue_in_flight", "gauge", "Commands under way.", _in_flight(queues)),
            *_family(
                "vscsi_stray_commands_total",
                "counter",
                "Commands for no LUN that ended.",
                (("", _labels(stray), stray.other.ops) for stray in strays),
            ),
            *_family(
                "vscsi_stray_errors_total",
                "counter",
                "Commands for no LUN by SAM status or virtio response, but for GOOD and OK.",
                _errors(strays),
            ),
        ]
    )


Sample = tuple[str, dict[str, str], float]
"""Suffix of the name, labels, value."""
Counted = LunStatistics | QueueStatistics | StrayStatistics


def _family(name: str, kind: str, help: str, samples: Iterable[Sample]) -> Iterator[str]:
    yield f"# HELP {name} {help}\n# TYPE {name} {kind}\n"
    for suffix, labels, value in samples:
        shown = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
        yield f"{name}{suffix}{{{shown}}} {value:.12g}\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _labels(counted: Counted) -> dict[str, str]:
    match counted:
        case LunStatistics():
            return {"hba": counted.hba, "lun": counted.lun, "id": counted.id}
        case QueueStatistics():
            return {"hba": counted.hba, "queue": str(counted.queue)}
        case StrayStatistics():
            return {"hba": counted.hba}


def _classes(all: Iterable[Counted]) -> Iterator[tuple[dict[str, str], ClassStatistics]]:
    for counted in all:
        for name in CLASSES:
            yield {**_labels(counted), "class": name}, getattr(counted, name)


def _ops(all: Iterable[Counted]) -> Iterator[Sample]:
    return (("", labels, of.ops) for labels, of in _classes(all))


def _bytes(all: Iterable[Counted]) -> Iterator[Sample]:
    return (("", labels, of.bytes) for labels, of in _classes(all))


def _in_flight(all: Iterable[Counted]) -> Iterator[Sample]:
    return (("", _labels(counted), counted.in_flight) for counted in all)


def _histograms(luns: Iterable[LunStatistics]) -> Iterator[Sample]:
    for labels, of in _classes(luns):
        buckets = of.latencies or []
        for le in LE:
            below = sum(count for bound, count in buckets if bound <= le)
            yield "_bucket", {**labels, "le": f"{le / 1e9:g}"}, below
        yield "_bucket", {**labels, "le": "+Inf"}, of.ops
        yield "_sum", labels, sum(bound * count for bound, count in buckets) / 1e9
        yield "_count", labels, of.ops


def _errors(all: Iterable[Counted]) -> Iterator[Sample]:
    for counted in all:
        for kind, counts in (("status", counted.statuses), ("response", counted.responses)):
            for name, count in counts.items():
                yield "", {**_labels(counted), "kind": kind, "code": name}, count


def _gates(luns: Iterable[LunStatistics]) -> Iterator[Sample]:
    for lun in luns:
        for name in ("read", "write", "media"):
            yield "", {**_labels(lun), "class": name}, float(name in lun.closed)
