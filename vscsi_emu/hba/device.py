"""An HBA: what its driver negotiates, reads, is told of and has answered.

An `Hba` is one initiator port with a map from (target, LUN) to logical units, the features and the
configuration space that its driver sees, a control queue, an event queue and request queues. How
the driver reaches it is the business of a transport, which starts and stops queues here.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import (
    Awaitable,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Final, Unpack

from vscsi_emu import _dataplane
from vscsi_emu.hba.config_space import DEFAULTS, ConfigSpace, lowered
from vscsi_emu.hba.control_queue import answer
from vscsi_emu.hba.events import EventSender
from vscsi_emu.hba.lun_map import Address, LunMap
from vscsi_emu.hba.queues import FIRST_REQUEST_QUEUE, Queues
from vscsi_emu.hba.removal import Removal, remove
from vscsi_emu.hba.tmf_record import tmf_record
from vscsi_emu.journal import Kind
from vscsi_emu.scsi.dispatch import handle
from vscsi_emu.scsi.passing import MULTIMEDIA
from vscsi_emu.scsi.sense import Asc, DataOutTooShort
from vscsi_emu.scsi.status import Status
from vscsi_emu.scsi.task_set import check_condition
from vscsi_emu.virtio.features import Feature
from vscsi_emu.virtio.scsi import (
    Event,
    EventType,
    ResetReason,
    Response,
    encode_lun,
    show_address,
)

if TYPE_CHECKING:
    from vscsi_emu._dataplane import Command, Control, GuestMemory, Port, Queue
    from vscsi_emu.hba.outside import Iommu, Link, Refusal
    from vscsi_emu.hba.queues import RingSetup
    from vscsi_emu.hostile import Hostility
    from vscsi_emu.runtime import Runtime
    from vscsi_emu.scsi.nexus import Nexus
    from vscsi_emu.scsi.target import Target
    from vscsi_emu.scsi.unit import LogicalUnit
    from vscsi_emu.virtio.config import ByteOrder, ScsiConfig

log = logging.getLogger(__name__)

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

MAX_NUMBER: Final = 254
"""So that relative target port identifiers stay within 16 bits."""

_UNREMARKABLE: Final = frozenset({Asc.REPORTED_LUNS_DATA_HAS_CHANGED, Asc.I_T_NEXUS_LOSS_OCCURRED})
"""Established for each unit of a target at once; what causes them is noted already."""


class FeatureError(ValueError):
    """Feature bits that this device cannot accept."""


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
        self.refuse_tmf: Refusal | None = None
        """Says how a task management function ends instead of being performed."""
        self.removals: list[Removal] = []
        """Those under way."""
        self._space = ConfigSpace(
            self.port, queues, max_sectors=max_sectors, seg_max=seg_max, cmd_per_lun=cmd_per_lun
        )
        self._events = EventSender(runtime)
        self._queues = Queues(runtime, self.port, self, self._events, requests=queues)
        self._map = LunMap(
            self.port,
            self._watch,
            initiator=initiator,
            number=number,
            port_group=self.port_group,
        )
        self._link: Link | None = None
        self._iommu: Iommu | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._resetting: Nexus | None = None
        runtime.add_port(self.port, self)
        self._map.attach(luns)
        self._update_limits()

    async def close(self) -> None:
        """After the transport has stopped its queues."""
        self._map.close()
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
        return self._space.now

    @property
    def queue_count(self) -> int:
        """All virtqueues: control, event, requests."""
        return FIRST_REQUEST_QUEUE + self.config.num_queues

    def read_config(self, offset: int, length: int) -> bytes:
        """Bytes of the configuration space; fewer where `length` reaches past its end. From any
        thread."""
        return self._space.read(offset, length, self.byte_order)

    def write_config(self, offset: int, data: bytes) -> None:
        """A driver's write, from any thread. Raises `ValueError` for a read-only field or an
        unusable size."""
        self._space.write(offset, data, self.byte_order)

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
        self.note(Kind.SESSION_CONNECTED, "a driver may come")

    async def disconnect(self, link: Link) -> None:
        """The driver is gone, its queues are stopped: an I_T nexus loss for every target."""
        assert self._link is link
        await self.reset()
        self._link = self._iommu = None
        self.note(Kind.SESSION_DISCONNECTED, "its driver is gone")

    async def reset(self) -> None:
        """Virtio reset, after the transport has stopped the queues (2.4, 5.6.4.2)."""
        self.features = Feature(0)
        self._space.reset()
        self._events.clear()
        self._map.nexus_loss()

    # ── Queues ─────────────────────────────────────────────────────────────────────────────────

    def start_queue(self, index: int, memory: GuestMemory, **ring: Unpack[RingSetup]) -> Queue:
        """Starts virtqueue `index` with the features negotiated now."""
        hostility = self.hostility
        queue = self._queues.start(
            index,
            memory,
            self.features,
            self.byte_order,
            hostility.ring(index) if hostility else None,
            **ring,
        )
        if hostility:
            self._spawn(hostility.storm(queue, lambda: self.runtime.has_queue(queue)))
        return queue

    async def stop_queue(self, queue: Queue, *, abort: Response | None = None) -> int:
        """Drains the queue; its next available index. `abort`: how commands end that wait for a
        decision. The queue is gone then."""
        return await self._queues.end(queue, lambda token: queue.stop(token, abort=abort))

    async def discard_queue(self, queue: Queue) -> None:
        """As `stop_queue`, for a driver that is gone: nothing more is written to its ring."""
        await self._queues.end(queue, queue.discard)

    # ── What workers report (runtime.PortOwner) ────────────────────────────────────────────────

    def on_command(self, command: Command) -> None:
        found = self._map.find(command.lun)
        if found is None:
            command.fail(Response.BAD_TARGET)
            return
        target, lun = found
        if self.removals:
            self._saw_command(target.find(lun))
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
        for candidate in self._map.nexuses():
            if candidate.data_plane == nexus:
                self._spawn(_run(check_condition(candidate, until)))

    def on_miss(self, queue: Queue, iova: int, access: int) -> None:
        if self._iommu:
            self._iommu.miss(queue, iova, access)

    def on_denied(self, queue: Queue, iova: int, access: int) -> None:
        if self._iommu:
            self._iommu.denied(queue, iova, access)

    def on_broken(self, queue: Queue, text: str) -> None:
        self.note(Kind.ERROR, f"queue {queue.index} is broken: {text}")
        if self._link:
            self._link.queue_broken(queue, text)

    # ── Logical units ──────────────────────────────────────────────────────────────────────────

    @property
    def luns(self) -> dict[Address, LogicalUnit]:
        """The map from addresses to logical units, in order."""
        return self._map.luns

    def nexus(self, address: Address) -> Nexus | None:
        return self._map.nexus(address)

    def reachable(self, number: int) -> Target | None:
        """The target of this number, if its link is up."""
        return self._map.reachable(number)

    def add_lun(self, address: Address, unit: LogicalUnit) -> None:
        """Hot-plugs a logical unit. `ValueError` for an address out of range, or in use."""
        self.add_luns({address: unit})

    def add_luns(self, units: Mapping[Address, LogicalUnit]) -> None:
        """As `add_lun`, all of them or none."""
        self._map.check_free(units)
        there = list(self._map.nexuses())
        self._map.attach(units)
        if self._update_limits():
            # Drivers that read the configuration space once hear of it by each unit.
            for nexus in there:
                nexus.establish(Asc.PARAMETERS_CHANGED)
        self.tell(units, ResetReason.RESCAN)
        for address in units:
            self.note(Kind.LUN_ADDED, "is there", address)

    def limits_changed(self, unit: LogicalUnit) -> None:
        """Of a unit that it may have: the configuration space follows, and the driver is told by
        PARAMETERS CHANGED, of other units too where the configuration space says less now."""
        less = self._update_limits()
        for nexus in self._map.nexuses():
            if less or nexus.unit is unit:
                nexus.establish(Asc.PARAMETERS_CHANGED)

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
        """
        return await remove([Removal(self, addresses)], deadline=deadline, force=force)

    def is_leaving(self, nexus: Nexus) -> bool:
        return any(nexus in removal for removal in self.removals)

    def _saw_command(self, nexus: Nexus | None) -> None:
        for removal in self.removals:
            if nexus is not None and nexus in removal:
                removal.saw_command(nexus)

    def detach(self, addresses: Iterable[Address]) -> None:
        """The units at these are not in the map any more; a `Removal` does the rest."""
        self._map.detach(addresses)
        self._update_limits()

    async def fail_commands(self, nexus: Nexus) -> None:
        """What is under way through a nexus ends with FAILURE."""
        await self.runtime.abort(Response.FAILURE, port=self.port, nexus=nexus.data_plane)

    def set_link(self, number: int, *, up: bool) -> None:
        """Whether a target can be reached. Down, what is under way there ends with
        TRANSPORT_FAILURE, and what comes with BAD_TARGET; up again, an I_T nexus loss is
        reported."""
        if up:
            self.tell(self._map.restore(number), ResetReason.RESCAN)
            return
        for nexus in self._map.cut(number):
            self._spawn(self._cut(nexus))

    def lose_units(self, number: int) -> None:
        """The driver is told that the units of a target whose link is down are gone, as a fabric
        tells after a while; when the link is up again, that they are back."""
        self.tell(self._map.lose(number), ResetReason.REMOVED)

    async def _cut(self, nexus: Nexus) -> None:
        await self.runtime.abort(Response.TRANSPORT_FAILURE, port=self.port, nexus=nexus.data_plane)

    @contextmanager
    def resetting(self, nexus: Nexus) -> Iterator[None]:
        """This HBA's driver resets the unit itself: it needs no event to know."""
        self._resetting = nexus
        try:
            yield
        finally:
            self._resetting = None

    def _watch(self, nexus: Nexus, address: Address) -> None:
        nexus.on_attention = partial(self._on_attention, nexus, address)
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

    def _update_limits(self) -> bool:
        """Says the limits of all units in the configuration space; whether a driver that is there
        knows higher ones."""
        before = self.config
        self._space.limit(nexus.unit.queue_limits for nexus in self._map.nexuses())
        if self._link is None or self.config == before:
            return False
        self._link.config_changed()
        return lowered(before, self.config)

    # ── Events ─────────────────────────────────────────────────────────────────────────────────

    def tell(self, addresses: Iterable[Address], reason: ResetReason) -> None:
        """A hot-plug event for each, to a driver that wants them."""
        if Feature.SCSI_HOTPLUG in self.features:
            for address in addresses:
                self._events.send(Event(EventType.TRANSPORT_RESET, encode_lun(*address), reason))

    def _on_attention(self, nexus: Nexus, address: Address, code: Asc) -> None:
        """A unit attention condition that the driver may be told of at once."""
        if code not in _UNREMARKABLE:
            self.note(Kind.ATTENTION, code.name, address)
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

    def note(self, kind: Kind, text: str, address: Address | None = None) -> None:
        lun = show_address(address) if address else None
        self.runtime.journal.note(kind, text, hba=self.name, lun=lun)

    def _note_tmf(self, request: bytes, reply: bytes, seconds: float) -> None:
        if tmf := tmf_record(self.name, self.byte_order, request, reply, seconds):
            self.runtime.journal.note_tmf(tmf)


async def _run(work: Awaitable[None]) -> None:
    await work
