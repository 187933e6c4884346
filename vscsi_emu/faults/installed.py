"""Faults of a service: rules for its data plane, task management that fails, links that go down."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from vscsi_emu import _dataplane
from vscsi_emu.config import PASSTHROUGH
from vscsi_emu.faults.vocabulary import Fault, FaultError, Medium, function_of, opcodes_of, rules_of
from vscsi_emu.virtio.scsi import Response

if TYPE_CHECKING:
    from vscsi_emu._dataplane import FaultRule
    from vscsi_emu.disk import Disk
    from vscsi_emu.faults.scsi_debug import Line
    from vscsi_emu.hba import Hba
    from vscsi_emu.runtime import Runtime
    from vscsi_emu.scsi.nexus import Nexus


class TmfRule:
    """Task management that fails, counted as `_dataplane.FaultRule` counts commands."""

    def __init__(self, fault: Fault) -> None:
        self._fault = fault
        self._random = random.Random(fault.seed)
        self._from = time.monotonic() + fault.start
        self._function = function_of(fault)
        self.opcodes: Final = bytes({code >> 16 or code for code in opcodes_of(fault)})
        """Operation codes of the commands that it is for; none: whatever."""
        self.met = 0
        self.hits = 0

    def take(self, function: int) -> int | None:
        """How this call of `function` ends instead of being performed; None: it is."""
        fault, now = self._fault, time.monotonic()
        over = fault.duration is not None and now >= self._from + fault.duration
        if now < self._from or over or self._function not in (None, function):
            return None
        after = self.met - (fault.nth - 1)
        self.met += 1
        spent = fault.times is not None and self.hits >= fault.times
        drawn = self._random.random() < fault.probability
        if after < 0 or after % fault.every or spent or not drawn:
            return None
        self.hits += 1
        return Response.FAILURE if fault.response is None else fault.response


@dataclass(eq=False, slots=True)
class Installed:
    """A fault of a unit. Its numbers are sums over its rules."""

    id: int
    disk: Disk
    fault: Fault
    rules: Sequence[FaultRule | TmfRule]
    port: Hba | None
    down: list[tuple[Hba, int]] = field(default_factory=list)
    """HBAs and their targets whose links it has down."""
    timers: list[asyncio.TimerHandle] = field(default_factory=list)
    line: tuple[int, int] | None = None
    """Key of the `scsi_debug.Line` that it comes from."""

    @property
    def met(self) -> int:
        """Commands or functions that fit, whether or not their number did."""
        return max((rule.met for rule in self.rules), default=0)

    @property
    def hits(self) -> int:
        """Those that it took."""
        return sum(rule.hits for rule in self.rules)


def medium_of(disk: Disk) -> Medium:
    """What faults of a disk work on."""
    unit = disk.unit
    return Medium(unit.block_size, unit.blocks, disk.config.spec.scheme == PASSTHROUGH)


class FaultSet:
    """The faults of all units of a service. On its event loop only."""

    def __init__(self, runtime: Runtime, hbas: Sequence[Hba]) -> None:
        self._runtime = runtime
        self._hbas = hbas
        self._ids = itertools.count(1)
        self._all: Final[dict[int, Installed]] = {}

    def __iter__(self) -> Iterator[Installed]:
        """In the order they were added."""
        return iter(self._all.values())

    def get(self, id: int) -> Installed | None:
        return self._all.get(id)

    def add(self, disk: Disk, fault: Fault, port: Hba | None = None) -> Installed:
        """`port`: the HBA of `Fault.nexus`. `FaultError` for what this disk cannot do."""
        which = port.port if port else None
        wanted = rules_of(fault, medium_of(disk))
        rules: list[FaultRule | TmfRule] = [
            _dataplane.FaultRule(port=which, **rule) for rule in wanted
        ]
        if fault.kind == "tmf-failure":
            rules = [TmfRule(fault)]
        added = Installed(next(self._ids), disk, fault, rules, port)
        self._all[added.id] = added
        if fault.kind == "link-down":
            self._schedule(added)
        self._publish(disk)
        return added

    @staticmethod
    def check(disk: Disk, fault: Fault) -> None:
        """`FaultError` for what this disk cannot do."""
        rules_of(fault, medium_of(disk))

    def follow(self, disk: Disk, line: Line) -> list[Installed]:
        """What a line for scsi_debug's `error` file says of faults that such lines made; the one
        that it adds. `FaultError`."""
        old = [one for one in self if one.disk is disk and one.line == line.key]
        if line.ends and not old:
            raise FaultError("error", "there is no such rule to remove")
        for one in old:
            self.remove(one)
        if line.fault is None:
            return []
        added = self.add(disk, line.fault)
        added.line = line.key
        return [added]

    def remove(self, fault: Installed) -> None:
        """Commands that it makes hang go on, links are up again."""
        del self._all[fault.id]
        for timer in fault.timers:
            timer.cancel()
        self._publish(fault.disk)
        self.release(fault)
        self._up(fault)

    def release(self, fault: Installed) -> None:
        """What hangs goes on; what comes still hangs."""
        for rule in fault.rules:
            if isinstance(rule, _dataplane.FaultRule):
                self._runtime.release(fault.disk.unit.data_plane, rule)

    def renewed(self, disk: Disk) -> None:
        """A disk has another unit."""
        self._publish(disk)

    def forget(self, disk: Disk) -> None:
        """A disk is gone."""
        for fault in [fault for fault in self._all.values() if fault.disk is disk]:
            self.remove(fault)

    async def refuse_tmf(
        self, hba: Hba, nexus: Nexus, function: int, tag: int | None
    ) -> int | None:
        """See `Hba.refuse_tmf`."""
        for fault in list(self._all.values()):
            if fault.disk.unit is not nexus.unit or fault.port not in (None, hba):
                continue
            for rule in fault.rules:
                if not isinstance(rule, TmfRule):
                    continue
                if rule.opcodes and not await self._is_one_of(rule.opcodes, hba, nexus, tag):
                    continue
                if (response := rule.take(function)) is not None:
                    return response
        return None

    async def _is_one_of(self, opcodes: bytes, hba: Hba, nexus: Nexus, tag: int | None) -> bool:
        if tag is None:
            return False
        found = await self._runtime.query(
            port=hba.port, nexus=nexus.data_plane, tag=tag, opcodes=opcodes
        )
        return found > 0

    def _publish(self, disk: Disk) -> None:
        rules = [
            rule
            for fault in self._all.values()
            if fault.disk is disk
            for rule in fault.rules
            if isinstance(rule, _dataplane.FaultRule)
        ]
        disk.unit.data_plane.set_faults(rules)

    # ── Links ──────────────────────────────────────────────────────────────────────────────────

    def _schedule(self, fault: Installed) -> None:
        loop, wanted = asyncio.get_running_loop(), fault.fault
        if wanted.start:
            fault.timers.append(loop.call_later(wanted.start, self._down, fault))
        else:
            self._down(fault)
        if wanted.dev_loss is not None:
            lost = wanted.start + wanted.dev_loss
            fault.timers.append(loop.call_later(lost, self._lose, fault))
        if wanted.duration is not None:
            end = wanted.start + wanted.duration
            fault.timers.append(loop.call_later(end, self._up, fault))

    def _down(self, fault: Installed) -> None:
        for hba in self._hbas if fault.port is None else [fault.port]:
            for target in {at[0] for at, unit in hba.luns.items() if unit is fault.disk.unit}:
                hba.set_link(target, up=False)
                fault.down.append((hba, target))

    @staticmethod
    def _lose(fault: Installed) -> None:
        for hba, target in fault.down:
            hba.lose_units(target)

    def _up(self, fault: Installed) -> None:
        down, fault.down = fault.down, []
        for hba, target in down:
            if not any((hba, target) in other.down for other in self._all.values()):
                hba.set_link(target, up=True)
