"""The device: where virtio meets SCSI.

An `Hba` is one initiator port with a map from (target, LUN) to logical units, the features and the
configuration space that its driver sees, a control queue, an event queue and request queues. How
the driver reaches it is the business of a transport, which starts and stops queues here.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import (
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Final, Protocol

from vscsi_emu import _dataplane
from vscsi_emu.control_queue import answer
from vscsi_emu.events import EventSender
from vscsi_emu.journal import Kind
from vscsi_emu.scsi.dispatch import handle
from vscsi_emu.scsi.lun import decode_lun
from vscsi_emu.scsi.passing import MULTIMEDIA
from vscsi_emu.scsi.sense import Asc, DataOutTooShort
from vscsi_emu.scsi.status import Status
from vscsi_emu.scsi.target import Target
from vscsi_emu.scsi.task_set import check_condition
from vscsi_emu.tmf_record import tmf_record
from vscsi_emu.virtio.config import ByteOrder, ScsiConfig
from vscsi_emu.virtio.features import Feature
from vscsi_emu.virtio.scsi import (
    MAX_LUN,
    MAX_TARGET,
    SINGLE_LEVEL,
    WELL_KNOWN,
    Event,
    EventType,
    ResetReason,
    Response,
    encode_lun,
    show_address,
)

if TYPE_CHECKING:
    from vscsi_emu._dataplane import Command, Control, GuestMemory, Notifier, Port, Queue
    from vscsi_emu.hostile import Hostility
    from vscsi_emu.runtime import Runtime
    from vscsi_emu.scsi.nexus import Nexus
    from vscsi_emu.scsi.unit import LogicalUnit

log = logging.getLogger(__name__)

Address = tuple[int, int]
"""(target, LUN)."""

CONTROL_QUEUE: Final = 0
EVENT_QUEUE: Final = 1
FIRST_REQUEST_QUEUE: Final = 2

DEVICE_FEATURES: Final = (
    Feature.VERSION_1
    | Feature.INDIRECT_DESC
    | Feature.EVENT_IDX
    | Feature.ANY_LAYOUT
    | Feature.SCSI_HOTPLUG
    | Feature.SCSI_CHANGE
)
"""INOUT is not offered: no command of a disk moves data both ways."""

_PARAMETERS_CHANGED: Final = 0x2A
"""ASC of what a PARAM_CHANGE event reports (5.6.6.3)."""
_SECTOR: Final = 512
DEFAULTS: Final = ScsiConfig()
MAX_SECTORS: Final = 0xFFFF
"""`max_sectors` where no unit has a limit, in 512 bytes."""


MAX_NUMBER: Final = 254
"""So that relative target port identifiers stay within 16 bits."""


_SILENCE: Final = 0.5
"""Seconds without a command after which a driver that was told of a removal is done with a unit."""

_UNREMARKABLE: Final = frozenset({Asc.REPORTED_LUNS_DATA_HAS_CHANGED, Asc.I_T_NEXUS_LOSS_OCCURRED})
"""Established for each unit of a target at once; what causes them is noted already."""


class LunBusyError(Exception):
    """A unit that its driver still uses at the deadline of its removal."""

    def __init__(self, address: Address, deadline: float) -> None:
        super().__init__(f"{show_address(address)} is still in use after {deadline:g} s")
        self.address = address


class FeatureError(ValueError):
    """Feature bits that this device cannot accept."""


class Link(Protocol):
    """The transport's side of a connection."""

    def config_changed(self) -> None:
        """The configuration space changed."""

    def queue_broken(self, queue: Queue, text: str) -> None:
        """The ring of `queue` broke an invariant, and was stopped."""


class Iommu(Protocol):
    """What stands between the driver's addresses and guest memory (VIRTIO_F_ACCESS_PLATFORM).

    It fills the IOTLB by `GuestMemory.iotlb_update` and takes back by `iotlb_invalidate`, followed
    by `Runtime.quiesce_range`. `access`: 1 read, 2 write.
    """

    def miss(self, queue: Queue, iova: int, access: int) -> None:
        """`queue` waits for a translation of `iova`, or for its `fail` if there is none."""

    def denied(self, queue: Queue, iova: int, access: int) -> None:
        """`queue` asked for what the mapping of `iova` does not allow; it breaks next."""


class Refusal(Protocol):
    """See `Hba.refuse_tmf`."""

    async def __call__(self, hba: Hba, nexus: Nexus, function: int, tag: int | None) -> int | None:
        """`function`, for the command with `tag` if it is for one; None: it is to be performed."""


class Hba:
    """A virtio-scsi device (virtio id 8)."""

    def __init__(
        self,
        runtime: Runtime,
        *,
        initiator: str,
        queues: int,
        luns: Mapping[Address, LogicalUnit],
        number: int = 0,
        max_sectors: int | None = None,
        seg_max: int = DEFAULTS.seg_max,
        cmd_per_lun: int = DEFAULTS.cmd_per_lun,
        port_group: int | None = None,
        name: str | None = None,
    ) -> None:
        """`initiator`: NAA name of the initiator port, 16 hex digits. `queues`: request queues.
        `max_sectors`, `seg_max`, `cmd_per_lun`: what the configuration space says, or less where
        a unit takes less.
        `number`: 0 to 254, another for each HBA that shares units with this one; from it follow
        the relative port identifiers of its targets. `port_group`: their target port group, one of
        the HBA's own by default. `name`: what people call it, "hba" and its number by default."""
        if not 0 <= number <= MAX_NUMBER:
            raise ValueError(f"HBA number {number} is not within 0 to {MAX_NUMBER}")
        if queues < 1:
            raise ValueError(f"{queues} request queues: at least one is needed")
        self.runtime = runtime
        self.initiator = initiator
        self.number = number
        self.port_group = number + 1 if port_group is None else port_group
        self.name = name or f"hba{number}"
        self.port: Port = _dataplane.Port()
        self.features = Feature(0)
        """The negotiated ones."""
        self.byte_order: ByteOrder = "<"
        """Of virtio structures; a transport sets it for a legacy big-endian guest."""
        self.hostility: Hostility | None = None
        """What queues that start from now on, and answers to their driver, do wrong."""
        self.targets: dict[int, Target] = {}
        self._first_worker = runtime.reserve(queues)
        self._max_sectors, self._seg_max, self._cmd_per_lun = max_sectors, seg_max, cmd_per_lun
        self._config = ScsiConfig(num_queues=queues, max_target=MAX_TARGET, max_lun=MAX_LUN)
        self._config_lock = Lock()
        """Held to replace it: the driver's stores may come from a guest CPU's thread."""
        self._events = EventSender(runtime)
        self._link: Link | None = None
        self._iommu: Iommu | None = None
        self._drains: dict[Queue, asyncio.Task[int]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._resetting: Nexus | None = None
        self.refuse_tmf: Refusal | None = None
        """Says how a task management function ends instead of being performed."""
        self._down: dict[int, bool] = {}
        """Targets whose links are down, and whether the driver was told that their units are
        gone."""
        self._leaving: dict[Nexus, float] = {}
        """Units being unplugged: when the last command came."""
        runtime.add_port(self.port, self)
        for number in {number for number, _ in luns}:
            units = {lun: unit for (target, lun), unit in luns.items() if target == number}
            self._add_target(number, units)
        self._publish_luns()

    async def close(self) -> None:
        """After the transport has stopped its queues."""
        for target in self.targets.values():
            target.close()
        self.targets.clear()
        self.port.set_luns({})
        self.runtime.remove_port(self.port)

    # ── Features and configuration space ───────────────────────────────────────────────────────

    @property
    def device_features(self) -> Feature:
        return DEVICE_FEATURES | (Feature.ACCESS_PLATFORM if self._iommu else Feature(0))

    @property
    def features_valid(self) -> bool:
        """Whether FEATURES_OK may be set. Each offered bit stands by itself, so any subset may."""
        return self.features in self.device_features

    def set_features(self, features: int) -> None:
        """What the driver accepts. Raises `FeatureError` for bits that were not offered."""
        # As a plain number: the complement of a flag has no undefined bits.
        if unoffered := features & ~int(self.device_features):
            raise FeatureError(f"feature bits {unoffered:#x} were not offered")
        self.features = Feature(features)

    @property
    def shown_features(self) -> int:
        """What a driver is told of `device_features`; from a hostile device that may be wrong."""
        features = int(self.device_features)
        return self.hostility.features(features) if self.hostility else features

    def show_config(self, offset: int, length: int) -> bytes:
        """What a driver is told of `read_config`."""
        data = self.read_config(offset, length)
        return self.hostility.config(data) if self.hostility else data

    @property
    def config(self) -> ScsiConfig:
        return self._config

    @property
    def queue_count(self) -> int:
        """All virtqueues: control, event, requests."""
        return FIRST_REQUEST_QUEUE + self._config.num_queues

    def read_config(self, offset: int, length: int) -> bytes:
        """Bytes of the configuration space; fewer where `length` reaches past its end. From any
        thread."""
        return self._config.pack(self.byte_order)[offset : offset + length]

    def write_config(self, offset: int, data: bytes) -> None:
        """A driver's write, from any thread. Raises `ValueError` for a read-only field or an
        unusable size."""
        with self._config_lock:
            self._set_config(self._config.written(offset, data, self.byte_order))

    def _set_config(self, config: ScsiConfig) -> None:
        self._config = config
        self.port.cdb_size = config.cdb_size
        self.port.sense_size = config.sense_size

    # ── Connection and reset ───────────────────────────────────────────────────────────────────

    @property
    def connected(self) -> bool:
        """Whether a transport's driver is there."""
        return self._link is not None

    def connect(self, link: Link, iommu: Iommu | None = None) -> None:
        """A transport's driver is there: one at a time. Behind an `iommu` ACCESS_PLATFORM is
        offered."""
        assert self._link is None, "an HBA has one driver at a time"
        self._link, self._iommu = link, iommu
        self._note(Kind.SESSION_CONNECTED, "a driver may come")

    async def disconnect(self, link: Link) -> None:
        """The driver is gone, its queues are stopped: an I_T nexus loss for every target."""
        assert self._link is link
        await self.reset()
        self._link = self._iommu = None
        self._note(Kind.SESSION_DISCONNECTED, "its driver is gone")

    async def reset(self) -> None:
        """Virtio reset, after the transport has stopped the queues (2.4, 5.6.4.2)."""
        self.features = Feature(0)
        with self._config_lock:
            self._set_config(self._config.after_reset())
        self._events.clear()
        self.runtime.forget(self.port)
        for target in self.targets.values():
            target.nexus_loss()

    # ── Queues ─────────────────────────────────────────────────────────────────────────────────

    def start_queue(
        self,
        index: int,
        memory: GuestMemory,
        *,
        size: int,
        desc: int,
        driver: int,
        device: int,
        next_avail: int,
        next_used: int | None = None,
        enabled: bool,
        notifier: Notifier,
        kick_fd: int,
        poll: bool,
    ) -> Queue:
        """Starts virtqueue `index` with the features negotiated now; see `_dataplane.Queue`."""
        kind = {
            CONTROL_QUEUE: _dataplane.KIND_CONTROL,
            EVENT_QUEUE: _dataplane.KIND_EVENT,
        }.get(index, _dataplane.KIND_REQUEST)
        workers = self.runtime.workers
        # Control and event queue share the first request queue's worker: they are quiet.
        slot = max(index - FIRST_REQUEST_QUEUE, 0)
        queue = _dataplane.Queue(
            workers[(self._first_worker + slot) % len(workers)],
            self.port,
            memory,
            index=index,
            kind=kind,
            size=size,
            desc=desc,
            driver=driver,
            device=device,
            features=self.features,
            next_avail=next_avail,
            next_used=next_used,
            enabled=enabled,
            notifier=notifier,
            kick_fd=kick_fd,
            poll=poll,
            big_endian=self.byte_order == ">",
            hostility=self.hostility.ring(index) if self.hostility else None,
        )
        self.runtime.add_queue(queue, self)
        if self.hostility:
            self._spawn(self.hostility.storm(queue, lambda: self.runtime.has_queue(queue)))
        if index == EVENT_QUEUE:
            self._events.start(queue, self.byte_order)
        return queue

    async def stop_queue(self, queue: Queue, *, abort: Response | None = None) -> int:
        """Drains the queue; its next available index. `abort`: how commands end that wait for a
        decision. The queue is gone then."""
        return await self._end_queue(queue, lambda token: queue.stop(token, abort=abort))

    async def discard_queue(self, queue: Queue) -> None:
        """As `stop_queue`, for a driver that is gone: nothing more is written to its ring."""
        await self._end_queue(queue, queue.discard)

    async def _end_queue(self, queue: Queue, end: Callable[[int], None]) -> int:
        drain = self._drains.get(queue)
        if drain is None:
            drain = asyncio.create_task(self._drain(queue, end))
            self._drains[queue] = drain
        # Whoever waits may be cancelled; the drain goes on, and the next one waits for it.
        return await asyncio.shield(drain)

    async def _drain(self, queue: Queue, end: Callable[[int], None]) -> int:
        try:
            if queue.index == EVENT_QUEUE:
                await self._events.stop()
            return await self.runtime.call(end)
        finally:
            self.runtime.remove_queue(queue)
            del self._drains[queue]

    # ── What workers report (runtime.PortOwner) ────────────────────────────────────────────────

    def on_command(self, command: Command) -> None:
        address = self._decode(command.lun)
        if address is None:
            command.fail(Response.BAD_TARGET)
            return
        target, lun = address
        if self._leaving and (nexus := target.find(lun)) in self._leaving:
            self._leaving[nexus] = asyncio.get_running_loop().time()
        try:
            later = handle(command, target, lun)
        except DataOutTooShort:
            command.fail(Response.OVERRUN)
            return
        if later is not None:
            self._spawn(self._finish_later(command, later))

    @staticmethod
    async def _finish_later(command: Command, later: Coroutine[None, None, None]) -> None:
        try:
            await later
        except DataOutTooShort:
            command.fail(Response.OVERRUN)

    def _decode(self, field: bytes) -> tuple[Target, int | None] | None:
        """The target that a request's lun field names, with its LUN if that can be decoded."""
        if field[0] == WELL_KNOWN:
            # C1 01 names no target (5.6.6.1); the first one answers.
            target = self.targets[min(self.targets)] if self.targets else None
            level = field
        else:
            target = self.targets.get(field[1]) if field[0] == SINGLE_LEVEL else None
            level = field[2:] + bytes(2)
        return (target, decode_lun(level)) if target else None

    def on_control(self, control: Control) -> None:
        self._spawn(self._answer_control(control))

    async def _answer_control(self, control: Control) -> None:
        start = time.monotonic()
        reply = await answer(self, control.request, control.reply_capacity)
        control.finish(reply)
        self._note_tmf(control.request, reply, time.monotonic() - start)

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            # The dropped handle has answered FAILURE.
            log.error("internal error in a request", exc_info=error)

    def on_event_buffers(self, queue: Queue) -> None:
        self._events.buffers_arrived()

    def on_fault(self, nexus: _dataplane.Nexus, until: int) -> None:
        for candidate in self._nexuses():
            if candidate.data_plane == nexus:
                self._spawn(_run(check_condition(candidate, until)))

    def on_miss(self, queue: Queue, iova: int, access: int) -> None:
        if self._iommu:
            self._iommu.miss(queue, iova, access)

    def on_denied(self, queue: Queue, iova: int, access: int) -> None:
        if self._iommu:
            self._iommu.denied(queue, iova, access)

    def on_broken(self, queue: Queue, text: str) -> None:
        self._note(Kind.ERROR, f"queue {queue.index} is broken: {text}")
        if self._link:
            self._link.queue_broken(queue, text)

    # ── Logical units ──────────────────────────────────────────────────────────────────────────

    def nexus(self, address: Address) -> Nexus | None:
        target, lun = address
        return self.targets[target].find(lun) if target in self.targets else None

    @property
    def luns(self) -> dict[Address, LogicalUnit]:
        """The map from addresses to logical units, in order."""
        return {
            (number, lun): target.nexuses[lun].unit
            for number, target in sorted(self.targets.items())
            for lun in target.luns
        }

    def add_lun(self, address: Address, unit: LogicalUnit) -> None:
        """Hot-plugs a logical unit. `ValueError` for an address out of range, or in use."""
        self.add_luns({address: unit})

    def add_luns(self, units: Mapping[Address, LogicalUnit]) -> None:
        """As `add_lun`, all of them or none."""
        for address in units:
            encode_lun(*address)  # checks both numbers
            if self.nexus(address) is not None:
                raise ValueError(f"{show_address(address)} is taken")
        there, before = list(self._nexuses()), self._config
        for number, luns in _by_target(units).items():
            self._attach(number, {lun: units[number, lun] for lun in luns})
        self._publish_luns()
        if self._link and _lowered(before, self._config):
            # Drivers that read the configuration space once hear of it by each unit.
            for nexus in there:
                nexus.establish(Asc.PARAMETERS_CHANGED)
        self._send_hotplugs(units, ResetReason.RESCAN)
        for address in units:
            self._note(Kind.LUN_ADDED, "is there", address)

    async def remove_lun(
        self, address: Address, *, deadline: float = 0.0, force: bool = True
    ) -> LogicalUnit:
        """Unplugs a logical unit; its commands are complete on return. `KeyError` if none."""
        [unit] = await self.remove_luns([address], deadline=deadline, force=force)
        return unit

    async def remove_luns(
        self, addresses: Sequence[Address], *, deadline: float = 0.0, force: bool = True
    ) -> list[LogicalUnit]:
        """Unplugs logical units. `KeyError` for an address without one, before anything is done.

        With a `deadline`, in seconds, the driver hears of it first and is served until it has
        been silent for a while, so that it can write back what it has. At the deadline what is
        left ends with FAILURE; without `force` everything stays, the driver is told to look
        again, and `LunBusyError` says which unit was busy.

        Targets stay, even without any LUN: commands to those that they have not end with LOGICAL
        UNIT NOT SUPPORTED.
        """
        nexuses = {address: self._present(address) for address in addresses}
        self._leaving.update(dict.fromkeys(nexuses.values(), asyncio.get_running_loop().time()))
        tell_first = deadline > 0 and self._link is not None
        try:
            if tell_first:
                self._send_hotplugs(addresses, ResetReason.REMOVED)
                busy = await self._silence(nexuses, deadline)
                if busy is not None and not force:
                    self._send_hotplugs(addresses, ResetReason.RESCAN)
                    raise LunBusyError(busy, deadline)
            self._detach(nexuses)
            await asyncio.gather(
                *(
                    self.runtime.abort(Response.FAILURE, port=self.port, nexus=nexus.data_plane)
                    for nexus in nexuses.values()
                )
            )
        finally:
            for nexus in nexuses.values():
                del self._leaving[nexus]
                nexus.observe(False)
        if not tell_first:
            self._send_hotplugs(addresses, ResetReason.REMOVED)
        for address in addresses:
            self._note(Kind.LUN_REMOVED, "is gone", address)
        return [nexus.unit for nexus in nexuses.values()]

    def _present(self, address: Address) -> Nexus:
        nexus = self.nexus(address)
        if nexus is None or nexus in self._leaving:
            raise KeyError(address)
        return nexus

    async def _silence(self, nexuses: Mapping[Address, Nexus], deadline: float) -> Address | None:
        """Waits until no command came for some time and none runs; a unit that is not silent at
        the deadline. A driver that goes away is silent."""
        loop = asyncio.get_running_loop()
        end = loop.time() + deadline
        for nexus in nexuses.values():
            nexus.observe(True)
        waiting = dict(nexuses)
        while waiting and self._link:
            if loop.time() >= end:
                return next(iter(waiting))
            await asyncio.sleep(min(_SILENCE / 10, deadline))
            since = loop.time() - min(_SILENCE, deadline)
            for address, nexus in list(waiting.items()):
                if self._leaving[nexus] <= since and not await self.runtime.query(
                    port=self.port, nexus=nexus.data_plane
                ):
                    del waiting[address]
        return None

    def _detach(self, nexuses: Mapping[Address, Nexus]) -> None:
        for number, luns in _by_target(nexuses).items():
            target = self.targets[number]
            for lun in luns:
                nexuses[number, lun].on_attention = None
            target.detach(luns)
        self._publish_luns()

    @contextmanager
    def resetting(self, nexus: Nexus) -> Iterator[None]:
        """This HBA's driver resets the unit itself: it needs no event to know."""
        self._resetting = nexus
        try:
            yield
        finally:
            self._resetting = None

    def _attach(self, number: int, units: Mapping[int, LogicalUnit]) -> None:
        if target := self.targets.get(number):
            target.attach(units)
            self._watch(target, number, units)
        else:
            self._add_target(number, units)

    def _add_target(self, number: int, units: Mapping[int, LogicalUnit]) -> None:
        target = Target(
            units,
            naa=self._target_name(number),
            initiator=bytes.fromhex(self.initiator),
            relative_port=self.number * (MAX_TARGET + 1) + number + 1,
            port_group=self.port_group,
        )
        target.reachable = self._nexuses
        self.targets[number] = target
        self._watch(target, number, units)

    def set_link(self, number: int, *, up: bool) -> None:
        """Whether a target can be reached. Down, what is under way there ends with
        TRANSPORT_FAILURE, and what comes with BAD_TARGET; up again, an I_T nexus loss is
        reported."""
        if (number not in self._down) == up or number not in self.targets:
            return
        target = self.targets[number]
        if up:
            lost = self._down.pop(number)
            target.nexus_loss()
            self._publish_luns()
            if lost:
                self._send_hotplugs(_addresses(number, target), ResetReason.RESCAN)
        else:
            self._down[number] = False
            self._publish_luns()
            for nexus in target.nexuses.values():
                self._spawn(self._cut(nexus))

    def lose_units(self, number: int) -> None:
        """The driver is told that the units of a target whose link is down are gone, as a fabric
        tells after a while; when the link is up again, that they are back."""
        if self._down.get(number) is False:
            self._down[number] = True
            self._send_hotplugs(_addresses(number, self.targets[number]), ResetReason.REMOVED)

    async def _cut(self, nexus: Nexus) -> None:
        await self.runtime.abort(Response.TRANSPORT_FAILURE, port=self.port, nexus=nexus.data_plane)

    def reachable(self, number: int) -> Target | None:
        """The target of this number, if its link is up."""
        return None if number in self._down else self.targets.get(number)

    def _nexuses(self) -> Iterator[Nexus]:
        for target in self.targets.values():
            yield from target.nexuses.values()

    def _watch(self, target: Target, number: int, luns: Iterable[int]) -> None:
        for lun in luns:
            nexus = target.nexuses[lun]
            nexus.on_attention = partial(self._on_attention, nexus, (number, lun))
            nexus.abort = partial(self._abort, nexus.data_plane)

    def _abort(
        self, nexus: _dataplane.Nexus, *, status: Status | None = None, until: int | None = None
    ) -> Awaitable[int]:
        return self.runtime.abort(
            Response.ABORTED if status is None else Response.OK,
            status=status or 0,
            port=self.port,
            nexus=nexus,
            until=until,
        )

    def _target_name(self, number: int) -> bytes:
        """A locally assigned NAA name (SPC-6) of a target port, stable over restarts."""
        digest = hashlib.sha256(f"target {self.initiator} {number}".encode()).digest()
        return bytes([0x30 | digest[0] & 0xF]) + digest[1:8]

    def _publish_luns(self) -> None:
        """The LUN map to the workers, and the limits of all units to the driver."""
        self.port.set_luns(
            {
                (number, lun): nexus.data_plane
                for number, target in self.targets.items()
                if number not in self._down
                for lun, nexus in target.nexuses.items()
            },
            targets=[number for number in self.targets if number not in self._down],
        )
        limits = [nexus.unit.queue_limits for nexus in self._nexuses()]
        sectors = [limit.max_bytes // _SECTOR for limit in limits if limit.max_bytes]
        if self._max_sectors is not None:
            sectors.append(self._max_sectors)
        segments = [limit.max_segments for limit in limits if limit.max_segments]
        commands = [limit.commands for limit in limits if limit.commands]
        with self._config_lock:
            old = self._config
            self._config = replace(
                old,
                max_sectors=min(sectors, default=MAX_SECTORS),
                seg_max=min([self._seg_max, *segments]),
                cmd_per_lun=min([self._cmd_per_lun, *commands]),
            )
        if self._config != old and self._link:
            self._link.config_changed()

    # ── Events ─────────────────────────────────────────────────────────────────────────────────

    def _send_hotplugs(self, addresses: Iterable[Address], reason: ResetReason) -> None:
        if Feature.SCSI_HOTPLUG in self.features:
            for address in addresses:
                self._events.send(Event(EventType.TRANSPORT_RESET, encode_lun(*address), reason))

    def _on_attention(self, nexus: Nexus, address: Address, code: Asc) -> None:
        """A unit attention condition that the driver may be told of at once."""
        if code not in _UNREMARKABLE:
            self._note(Kind.ATTENTION, code.name, address)
        asc, ascq = code >> 8, code & 0xFF
        field = encode_lun(*address)
        if asc == _PARAMETERS_CHANGED and self._hears_of_changes(nexus):
            self._events.send(Event(EventType.PARAM_CHANGE, field, asc | ascq << 8))
        elif code == Asc.BUS_DEVICE_RESET_FUNCTION_OCCURRED and nexus is not self._resetting:
            self._events.send(Event(EventType.TRANSPORT_RESET, field, ResetReason.HARD))

    def _hears_of_changes(self, nexus: Nexus) -> bool:
        # Multimedia devices are asked by GET EVENT STATUS NOTIFICATION instead (5.6.6.3.2).
        multimedia = nexus.unit.device_type == MULTIMEDIA
        return Feature.SCSI_CHANGE in self.features and not multimedia

    # ── The journal ────────────────────────────────────────────────────────────────────────────

    def _note(self, kind: Kind, text: str, address: Address | None = None) -> None:
        lun = show_address(address) if address else None
        self.runtime.journal.note(kind, text, hba=self.name, lun=lun)

    def _note_tmf(self, request: bytes, reply: bytes, seconds: float) -> None:
        if tmf := tmf_record(self.name, self.byte_order, request, reply, seconds):
            self.runtime.journal.note_tmf(tmf)


def _addresses(number: int, target: Target) -> list[Address]:
    return [(number, lun) for lun in target.luns]


def _by_target(addresses: Iterable[Address]) -> dict[int, list[int]]:
    luns: dict[int, list[int]] = {}
    for target, lun in addresses:
        luns.setdefault(target, []).append(lun)
    return luns


def _lowered(before: ScsiConfig, after: ScsiConfig) -> bool:
    return (
        after.max_sectors < before.max_sectors
        or after.seg_max < before.seg_max
        or after.cmd_per_lun < before.cmd_per_lun
    )


async def _run(work: Awaitable[None]) -> None:
    await work
