"""The commands of a capture once more, against another LUN."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from vscsi_emu.capture.differences import Differences
from vscsi_emu.control.decode import cdb_length, find
from vscsi_emu.control.statistics import percentile, response_name, status_name
from vscsi_emu.control.trace import TracedCommand
from vscsi_emu.driver.request import Request, Result
from vscsi_emu.driver.scan import retried
from vscsi_emu.driver.virtio_scsi import REQUEST_QUEUE, InFlight, VirtioScsi
from vscsi_emu.virtio.scsi import encode_lun

_HARMLESS: Final = (
    "GET LBA STATUS",
    "INQUIRY",
    "LOG SENSE",
    "MODE SENSE",
    "PRE-FETCH",
    "READ(",
    "READ CAPACITY",
    "REPORT LUNS",
    "REPORT SUPPORTED",
    "REQUEST SENSE",
    "SYNCHRONIZE CACHE",
    "TEST UNIT READY",
    "VERIFY(",
)
"""How the names of commands begin that change nothing."""
_NAP: Final = 0.0002
"""Seconds between two looks for completions."""


def may_change(command: TracedCommand) -> bool:
    """Whether a command may change what a LUN holds, or its state."""
    known = find(bytes.fromhex(command.cdb))
    return known is None or not known.name.startswith(_HARMLESS)


@dataclass(frozen=True, slots=True)
class Replayed:
    """A command and its repetition."""

    recorded: TracedCommand
    result: Result
    """Without what it read."""
    nanoseconds: int
    """From where it was submitted until its completion was seen."""

    @property
    def same(self) -> bool:
        """Same response and status."""
        recorded = self.recorded
        return (recorded.response, recorded.status) == (self.result.response, self.result.status)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Commands of one name. Latencies are in nanoseconds."""

    name: str
    commands: int
    different: dict[str, int]
    """``GOOD → CHECK_CONDITION`` → commands."""
    recorded_p50: int | None
    recorded_p99: int | None
    replayed_p50: int | None
    replayed_p99: int | None


@dataclass
class _Timed:
    recorded: TracedCommand
    item: InFlight[Result]
    start: int


@dataclass
class Replay:
    """Repeats commands through a driver, at (target, LUN)."""

    driver: VirtioScsi
    target: int
    lun: int
    speed: float | None = 1.0
    """Of the recorded pace; None: as fast as `depth` allows."""
    depth: int = 32
    """Most commands at a time."""
    without_data: int = 0
    """Commands whose data-out was not captured whole: zeros stood in for the rest."""
    data: Differences = field(default_factory=Differences)
    """Between what reads gave and give, where it was captured."""
    _done: list[Replayed] = field(default_factory=list)
    _flying: list[_Timed] = field(default_factory=list)

    def run(self, commands: Sequence[TracedCommand]) -> list[Replayed]:
        """All of them, in order of their beginning; results in the order of their end.
        `TimeoutError` for a command that does not end."""
        retried(self.driver, self.target, self.lun, bytes(6), 0)
        first = commands[0].time - commands[0].nanoseconds if commands else 0
        start = time.monotonic_ns()
        for command in commands:
            if self.speed is not None:
                after = command.time - command.nanoseconds - first
                due = start + round(after / self.speed)
                self._wait(lambda due=due: time.monotonic_ns() >= due)  # type: ignore[misc]
            self._wait(lambda: len(self._flying) < self.depth)
            self._submit(command)
        self._wait(lambda: not self._flying)
        return self._done

    def _submit(self, command: TracedCommand) -> None:
        cdb = bytes.fromhex(command.cdb)
        data = bytes.fromhex(command.data) if command.data_out_length else b""
        if command.data_out_length > len(data):
            self.without_data += 1
        request = Request(
            encode_lun(self.target, self.lun),
            cdb[: cdb_length(cdb)],
            self.driver.next_tag(),
            data.ljust(command.data_out_length, b"\0"),
            command.data_in_length,
            command.task_attribute,
        )
        start = time.monotonic_ns()
        item = self.driver.submit_request(request, queue=REQUEST_QUEUE)
        self._flying.append(_Timed(command, item, start))

    def _wait(self, until: Callable[[], bool]) -> None:
        deadline = None
        while not until():
            if self._reap():
                deadline = None
            elif self._flying:
                deadline = deadline or time.monotonic() + self.driver.timeout
                if time.monotonic() > deadline:
                    recorded = self._flying[0].recorded
                    raise TimeoutError(f"no answer to {recorded} within {self.driver.timeout:g} s")
            time.sleep(_NAP)
        self._reap()

    def _reap(self) -> bool:
        self.driver.reap(REQUEST_QUEUE)
        now = time.monotonic_ns()
        ended = [timed for timed in self._flying if timed.item.done]
        for timed in ended:
            self._flying.remove(timed)
            result = timed.item.parse(timed.item.ticket.reply)
            without_data = replace(result, data=b"")
            replayed = Replayed(timed.recorded, without_data, now - timed.start)
            if timed.recorded.good and replayed.same:
                self.data.add(timed.recorded, result.data)
            self._done.append(replayed)
        return bool(ended)


def compare(replayed: Iterable[Replayed]) -> list[Comparison]:
    """By name of the command, most frequent first."""
    by_name: dict[str, list[Replayed]] = {}
    for one in replayed:
        cdb = bytes.fromhex(one.recorded.cdb)
        known = find(cdb)
        by_name.setdefault(known.name if known else f"{cdb[0]:#04x}", []).append(one)
    ordered = sorted(by_name.items(), key=lambda entry: -len(entry[1]))
    return [_comparison(name, all) for name, all in ordered]


def _comparison(name: str, all: Sequence[Replayed]) -> Comparison:
    before = Counter(one.recorded.nanoseconds for one in all)
    after = Counter(one.nanoseconds for one in all)
    different = Counter(
        f"{_outcome(one.recorded.response, one.recorded.status)} → "
        f"{_outcome(one.result.response, one.result.status)}"
        for one in all
        if not one.same
    )
    return Comparison(
        name=name,
        commands=len(all),
        different=dict(different),
        recorded_p50=percentile(before, 0.5),
        recorded_p99=percentile(before, 0.99),
        replayed_p50=percentile(after, 0.5),
        replayed_p99=percentile(after, 0.99),
    )


def _outcome(response: int, status: int) -> str:
    return response_name(response) if response else status_name(status)
