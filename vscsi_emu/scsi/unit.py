"""The logical unit: its state, and the policy that the data plane obeys."""

from __future__ import annotations

import asyncio
import logging
import time
import weakref
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final

from vscsi_emu import _dataplane
from vscsi_emu.scsi.bad_blocks import BadBlocks
from vscsi_emu.scsi.cdb import Feature, Flag
from vscsi_emu.scsi.identifying import IdentifyingInformation
from vscsi_emu.scsi.identity import Identity
from vscsi_emu.scsi.limits import Limits, QueueLimits, lower
from vscsi_emu.scsi.log_pages import ErrorLog
from vscsi_emu.scsi.mode_pages import ModePages, direct_access_pages
from vscsi_emu.scsi.nexus import Nexus
from vscsi_emu.scsi.overwriting import Failure, Overwriting
from vscsi_emu.scsi.peripheral import Peripheral
from vscsi_emu.scsi.persistent import NexusId
from vscsi_emu.scsi.port_groups import PortGroups
from vscsi_emu.scsi.priorities import Priorities
from vscsi_emu.scsi.provisioning import Provisioning, ThinSpace, Watcher, no_watcher
from vscsi_emu.scsi.readiness import PowerCondition, Readiness
from vscsi_emu.scsi.reservations import Reservations
from vscsi_emu.scsi.self_tests import SelfTests
from vscsi_emu.scsi.sense import Asc, ScsiError, SenseKey, write_failed
from vscsi_emu.scsi.store import StateStore
from vscsi_emu.scsi.table import CommandTable, command_table
from vscsi_emu.scsi.timestamp import Timestamp
from vscsi_emu.scsi.tokens import Tokens

log = logging.getLogger(__name__)

_BUFFER_CAPACITY: Final = 64 << 10
_FAILURE: Final = "medium-failure"
"""Section of the store."""


async def _nothing(*_: object) -> None:
    pass


def _features(limits: Limits, *, thin: bool, removable: bool, cdb_32: bool, saved: bool) -> Feature:
    features = Feature.ACA
    if cdb_32:
        features |= Feature.CDB_32
    if thin:
        features |= Feature.THIN
    if saved:
        features |= Feature.SAVED_STATE
    if limits.max_compare_and_write_blocks:
        features |= Feature.COMPARE_AND_WRITE
    if limits.max_atomic_blocks:
        features |= Feature.ATOMIC_WRITES
    if removable:
        features |= Feature.REMOVABLE
    return features


def _must_settle(before: _dataplane.LunPolicy, after: _dataplane.LunPolicy) -> bool:
    """Whether what is in the cache has to reach the medium."""
    return (before.write_cache and not after.write_cache) or (
        after.write_protected and not before.write_protected
    )


class LogicalUnit:
    """A direct access block device (SBC-5), shared by all its nexuses.

    - `block_size`: bytes of a logical block; `physical_block_exponent`: a physical block has two
      to the power of it logical ones.
    - `rotation_rate`: rpm, 1 for a solid state medium, 0 for unknown (SBC-4 6.6.2).
    - `discard`: thin provisioning is offered where the engine really frees space. `lbprz`: it
      says that unmapped blocks read as zeros, which they do in any case (SBC-4 6.6.7).
    - `cdb_32`: has the 32-byte commands, which SBC-4 5.19 reserves for type 2 protection.
    - `thin`: the space that bounds it, which `engine` takes its own from; `watcher` tells of it.
    - `queue_depth`: the most commands in the task set, then TASK SET FULL; 0: no limit but rings'.
    - `flush()` makes what was written durable; an `OSError` from it becomes MEDIUM ERROR.
      `quiesce(lu)` returns when the commands that run in the data plane now are done.
    - `tokens`: of the copy manager that the unit belongs to; by default it has its own.
    - `store` keeps what must outlive the process; without it, nothing does.
    - `commands`: what it supports; by default what SBC-5 says of a unit with these features.
    - `peripheral`: its device type, where those `commands` are of another one.
    """

    def __init__(
        self,
        engine: _dataplane.Engine,
        identity: Identity,
        *,
        block_size: int = 512,
        physical_block_exponent: int = 0,
        read_only: bool = False,
        removable: bool = False,
        rotation_rate: int = 1,
        discard: bool = True,
        lbprz: bool = False,
        cdb_32: bool = False,
        write_cache: bool = True,
        limits: Limits | None = None,
        queue_depth: int = 0,
        flush: Callable[[], Awaitable[None]] = _nothing,
        quiesce: Callable[[_dataplane.Lu], Awaitable[None]] = _nothing,
        store: StateStore | None = None,
        commands: CommandTable | None = None,
        tokens: Tokens | None = None,
        thin: ThinSpace | None = None,
        watcher: Watcher = no_watcher,
        peripheral: Peripheral = Peripheral.DIRECT_ACCESS,
    ) -> None:
        if rotation_rate not in (0, 1) and not 0x401 <= rotation_rate <= 0xFFFE:
            raise ValueError(f"rotation rate {rotation_rate} is not 0, 1 or 1025 to 65534")
        if not 0 <= physical_block_exponent <= 15:
            raise ValueError(f"physical block exponent {physical_block_exponent} is not 0 to 15")
        self.identity: Final = identity
        self.block_size: Final = block_size
        self.physical_block_exponent: Final = physical_block_exponent
        self.read_only = read_only
        self.rotation_rate: Final = rotation_rate
        self.lbprz: Final = lbprz
        self.limits: Final = limits or Limits.default(block_size)
        self._cap = QueueLimits()
        self.features: Final = _features(
            self.limits,
            thin=discard and engine.can_discard,
            removable=removable,
            cdb_32=cdb_32,
            saved=store is not None,
        )
        self.commands: Final[CommandTable] = commands or command_table(self.features)
        self.peripheral: Final = peripheral
        self.readiness: Final = Readiness()
        self._store = store
        saved = store.load(_FAILURE) if store is not None else None
        self.failure: Failure | None = Failure.from_json(saved) if saved is not None else None
        self.paused = False
        self._overwriting: Overwriting | None = None
        self._made = time.monotonic()
        self.nexuses: Final[list[Nexus]] = []
        # No circles: a unit that was removed lets go of its storage at once.
        unit: LogicalUnit = weakref.proxy(self)
        self.port_groups: Final = PortGroups(unit)
        self.reservations: Final = Reservations(unit, store)
        self.identifying: Final = IdentifyingInformation(unit, store)
        self.errors: Final = ErrorLog(unit)
        self.self_tests: Final = SelfTests(unit)
        self.timestamp: Final = Timestamp()
        self.buffer: Final = bytearray(_BUFFER_CAPACITY)
        """Of READ BUFFER and WRITE BUFFER, for whatever initiators test with it."""
        self.priorities: Final = Priorities()
        self._copies: set[asyncio.Future[None]] = set()
        """Copies from or to here that run now."""
        self.tokens: Final = tokens or Tokens()
        self._flush = flush
        self._quiesce = quiesce
        self._blocks = engine.size // block_size
        self.provisioning: Final = Provisioning(unit, thin, watcher)
        self.mode_pages: Final = ModePages(
            direct_access_pages(
                write_cache=write_cache, provisioning=self.provisioning.mode_page()
            ),
            store,
        )
        self.data_plane: Final = _dataplane.Lu(
            engine,
            self._policy(),
            self.commands.routes,
            self.commands.usage_maps,
            self.commands.variable_length,
            queue_depth=queue_depth,
        )
        self.bad_blocks: Final = BadBlocks(unit, store)
        self.provisioning.update()

    # ── What the fast way needs ────────────────────────────────────────────────────────────────

    def _policy(self) -> _dataplane.LunPolicy:
        return _dataplane.LunPolicy(
            block_size=self.block_size,
            blocks=self._blocks,
            write_protected=self.write_protected,
            write_cache=self.mode_pages.write_cache,
            descriptor_sense=self.descriptor_sense,
            max_transfer_blocks=self.limits.max_transfer_blocks,
            max_write_same_blocks=self.limits.max_write_same_blocks,
            max_unmap_blocks=self.limits.max_unmap_blocks,
            max_unmap_descriptors=self.limits.max_unmap_descriptors,
            unmap=self.thin,
            max_compare_and_write_blocks=self.limits.max_compare_and_write_blocks,
            max_atomic_blocks=self.limits.max_atomic_blocks,
            atomic_granularity_blocks=self.limits.atomic_granularity_blocks,
            qerr=self.mode_pages.qerr,
            restricted_reordering=self.mode_pages.restricted_reordering,
        )

    def _publish(self) -> None:
        """After every change of state: the policy, then the gates."""
        self.data_plane.policy = self._policy()
        self.update_gates()

    def update_gates(self) -> None:
        for nexus in self.nexuses:
            nexus.update_gate()

    # ── Limits that initiators are told ────────────────────────────────────────────────────────

    @property
    def own_limits(self) -> QueueLimits:
        """What it takes."""
        return QueueLimits(max_bytes=self.limits.max_transfer_blocks * self.block_size)

    @property
    def queue_limits(self) -> QueueLimits:
        """What an HBA says of its limits on this unit's behalf."""
        return self.own_limits.lowered(self._cap)

    @property
    def block_limits(self) -> Limits:
        """What its Block Limits VPD page says."""
        cap = self._cap.max_bytes // self.block_size
        return replace(
            self.limits,
            max_transfer_blocks=lower(self.limits.max_transfer_blocks, cap),
            optimal_transfer_blocks=min(self.limits.optimal_transfer_blocks, cap)
            if cap
            else self.limits.optimal_transfer_blocks,
        )

    def lower(self, cap: QueueLimits) -> None:
        """Tells initiators these limits where they are lower than its own; INQUIRY DATA HAS CHANGED
        for every nexus where that changes a page. What it takes is as before: commands that were
        made for the old limits are on their way, and initiators cannot make them anew."""
        before = self.block_limits
        self._cap = cap
        if self.block_limits != before:
            self.establish(Asc.INQUIRY_DATA_HAS_CHANGED)

    # ── State ──────────────────────────────────────────────────────────────────────────────────

    @property
    def blocks(self) -> int:
        """Capacity in logical blocks."""
        return self._blocks

    @property
    def thin(self) -> bool:
        """LBPME: logical block provisioning management is enabled."""
        return Feature.THIN in self.features

    @property
    def write_protected(self) -> bool:
        """By configuration, or by SWP."""
        return self.read_only or self.mode_pages.write_protected

    @property
    def removable(self) -> bool:
        """RMB: the medium can be ejected."""
        return Feature.REMOVABLE in self.features

    @property
    def powered_on(self) -> float:
        """Seconds."""
        return time.monotonic() - self._made

    @property
    def descriptor_sense(self) -> bool:
        return self.mode_pages.descriptor_sense

    @property
    def unready(self) -> ScsiError | None:
        """Why media commands are not processed now."""
        if self._overwriting is not None:
            return self._overwriting.error
        if (testing := self.self_tests.in_foreground) is not None:
            return testing
        if self.failure is not None:
            return self.failure.error
        reason = self.readiness.not_ready
        return ScsiError(SenseKey.NOT_READY, reason) if reason is not None else None

    @property
    def overwriting(self) -> bool:
        """Whether SANITIZE or FORMAT UNIT is under way."""
        return self._overwriting is not None

    @property
    def fast(self) -> bool:
        """Whether media commands need no look at the unit's state."""
        return not self.paused and self.unready is None and self.readiness.fast

    def refusal(self, flags: Flag) -> ScsiError | None:
        """Why a command with these flags is not processed now."""
        if self._overwriting is not None:
            processed = flags & (Flag.SKIPS_ATTENTION | Flag.DURING_OVERWRITE)
            return None if processed else self._overwriting.error
        if (testing := self.self_tests.in_foreground) is not None:
            return None if Flag.SKIPS_ATTENTION in flags else testing
        if Flag.NEEDS_MEDIUM in flags and not self.readiness.loaded:
            return ScsiError(SenseKey.NOT_READY, Asc.MEDIUM_NOT_PRESENT)
        return self.unready if Flag.NEEDS_READY in flags else None

    # ── Nexuses ────────────────────────────────────────────────────────────────────────────────

    def connect(self, name: NexusId, port_group: int) -> Nexus:
        """A new nexus, with POWER ON OCCURRED pending."""
        multiport, nexus = self.multiport, Nexus(self, name, port_group)
        self.nexuses.append(nexus)
        self._ports_changed(multiport)
        return nexus

    def disconnect(self, nexus: Nexus) -> None:
        multiport = self.multiport
        self.nexuses.remove(nexus)
        self._ports_changed(multiport)
        nexus.lost()

    @property
    def multiport(self) -> bool:
        """MULTIP: several target ports lead here."""
        return len({nexus.id.relative_port for nexus in self.nexuses}) > 1

    def _ports_changed(self, multiport: bool) -> None:
        if multiport is self.multiport:
            return
        for nexus in self.nexuses:
            # After power on an initiator asks anyway.
            if Asc.POWER_ON_OCCURRED not in nexus.pending:
                nexus.establish(Asc.INQUIRY_DATA_HAS_CHANGED)

    def establish(self, code: Asc, *, but: Nexus | None = None) -> None:
        """A unit attention condition for every nexus, or for all but one."""
        for nexus in self.nexuses:
            if nexus is not but:
                nexus.establish(code)

    device_type: int = Peripheral.DIRECT_ACCESS
    """PERIPHERAL DEVICE TYPE."""
    abort_seconds: float | None = None
    """How long task management waits for commands that it aborted; None: they end soon."""

    async def interrupt(self) -> None:
        """Has the storage let go of the commands that it works on, before a reset. `OSError`."""

    def establish_threshold(self, descriptor: int) -> None:
        """The threshold at this byte of the Logical Block Provisioning mode page is passed."""
        for nexus in self.nexuses:
            nexus.establish(Asc.THIN_PROVISIONING_SOFT_THRESHOLD_REACHED, descriptor)

    # ── Changes of state ───────────────────────────────────────────────────────────────────────

    def reset(self) -> None:
        """Logical unit reset (SAM-6), once its commands are aborted."""
        self._begin_anew()
        self.reservations.reset()
        self._publish()
        self.establish(Asc.BUS_DEVICE_RESET_FUNCTION_OCCURRED)

    def power_on(self) -> None:
        """After a power cycle, once its commands are gone: what is not saved is as at first."""
        self._begin_anew()
        self.tokens.cancel(self)  # the data they stand for may be lost
        self.reservations.power_on()
        self._publish()
        self.establish(Asc.POWER_ON_OCCURRED)

    def _begin_anew(self) -> None:
        self.self_tests.abort()
        self.mode_pages.reset()
        self.readiness.reset()
        for nexus in self.nexuses:
            nexus.prevents_removal = False
            nexus.abort_copies()  # SPC-4 5.17.5
            nexus.forget_copies()
            nexus.data_plane.clear_aca()
        self.priorities.clear()
        self.provisioning.update()

    def resize(self, blocks: int) -> None:
        """A new capacity, in logical blocks, within what the engine holds."""
        most = self.data_plane.engine.size // self.block_size
        if not 1 <= blocks <= most:
            raise ValueError(f"{blocks} blocks: the storage holds 1 to {most}")
        if blocks != self._blocks:
            self._blocks = blocks
            self.tokens.cancel(self)
            self._publish()
            self.establish(Asc.CAPACITY_DATA_HAS_CHANGED)

    def pause(self, on: bool) -> None:
        """Whether media commands come to Python, where whoever paused the unit keeps them."""
        self.paused = on
        self.update_gates()

    async def configure(
        self, *, read_only: bool | None = None, write_cache: bool | None = None
    ) -> None:
        """Changes what the unit was made with; every nexus reports MODE PARAMETERS CHANGED. When it
        returns, what a cache that is off now held is durable (`ScsiError` where that fails)."""
        before = self.data_plane.policy
        if read_only is not None:
            self.read_only = read_only
        if write_cache is not None:
            self.mode_pages.set_write_cache(write_cache)
        self._publish()
        after = self.data_plane.policy
        if after != before:
            self.establish(Asc.MODE_PARAMETERS_CHANGED)
        if _must_settle(before, after):
            await self.settle()

    def select_mode_pages(
        self, pages: list[bytes], *, by: Nexus, save: bool = False
    ) -> Awaitable[None] | None:
        """Makes checked pages current, for all nexuses at once; `save` saves all pages first.

        What is returned, if anything, must be awaited before the command ends: with WCE cleared
        or SWP set, what is in the cache still has to reach the medium (SBC-4 6.5.6).
        """
        return self._save_mode_pages(pages, by) if save else self._set_mode_pages(pages, by)

    async def _save_mode_pages(self, pages: list[bytes], by: Nexus) -> None:
        await self.mode_pages.save(pages)
        if (waiting := self._set_mode_pages(pages, by)) is not None:
            await waiting

    def _set_mode_pages(self, pages: list[bytes], by: Nexus) -> Awaitable[None] | None:
        before = self.data_plane.policy
        if not self.mode_pages.update(pages):
            return None
        self._publish()
        self.provisioning.update()
        self.establish(Asc.MODE_PARAMETERS_CHANGED, but=by)
        return self.settle(by=by) if _must_settle(before, self.data_plane.policy) else None

    def enter(self, condition: PowerCondition) -> None:
        """A power condition; while stopped, media commands end with NOT READY."""
        self.readiness.enter(condition)
        self._publish()

    def wake(self) -> None:
        """Out of idle and standby, as a command needs the medium."""
        if self.readiness.wake():
            self._publish()

    def eject(self) -> None:
        """Media commands end with MEDIUM NOT PRESENT. `ScsiError` where removal is prevented."""
        self._check_removal()
        self.tokens.cancel(self)
        self.readiness.eject()
        self._publish()

    def load(self, *, by: Nexus) -> None:
        """The medium is back, and ready. `ScsiError` where its removal is prevented."""
        self._check_removal()
        self.readiness.enter(PowerCondition.ACTIVE)
        if self.readiness.load():
            self.establish(Asc.MEDIUM_MAY_HAVE_CHANGED, but=by)
        self._publish()

    def _check_removal(self) -> None:
        if any(nexus.prevents_removal for nexus in self.nexuses):
            raise ScsiError(SenseKey.ILLEGAL_REQUEST, Asc.MEDIUM_REMOVAL_PREVENTED)

    def overwrite(self, overwriting: Overwriting) -> Awaitable[bytes]:
        """Begins at once to refuse commands; what is returned does the rest, and must be awaited.

        `ScsiError` if it fails; media commands are then refused until it succeeds, or
        `forget_failure`. Resets do not end it (SBC-4 4.11).
        """
        self.self_tests.abort()
        self._overwriting = overwriting
        self._publish()
        return self._overwrite(overwriting)

    async def _overwrite(self, overwriting: Overwriting) -> bytes:
        try:
            await self._quiesce(self.data_plane)
            await self.bad_blocks.forget(0, self._blocks)
            # A process that ends before the medium is filled has failed to fill it.
            await self._set_failure(overwriting.failure)
            overwriting.began()
            await overwriting.run()
            await self._set_failure(None)
        except OSError as error:
            raise overwriting.failure.error from error
        finally:
            self._overwriting = None
            self._publish()
        return b""

    def end(self) -> None:
        """The unit is gone for good: an overwriting or self-test under way ends soon, and fails."""
        self.tokens.forget(self)
        self.self_tests.abort()
        self.provisioning.end()
        if self._overwriting is not None:
            self._overwriting.work.cancel()

    async def forget_failure(self) -> None:
        """The medium may be used again, whatever it holds."""
        await self._set_failure(None)
        self._publish()

    async def _set_failure(self, failure: Failure | None) -> None:
        """Saved first. `ScsiError` HARDWARE ERROR where that fails: nothing has changed."""
        if self._store is not None:
            try:
                await self._store.save(_FAILURE, failure and failure.to_json())
            except OSError as error:
                log.error("%s: its state cannot be saved: %s", self.identity.serial, error)
                raise ScsiError(SenseKey.HARDWARE_ERROR, Asc.INTERNAL_TARGET_FAILURE) from error
        self.failure = failure

    async def settle(self, *, by: Nexus | None = None) -> None:
        """Waits for running commands, then makes what they wrote durable, as `flush`."""
        await self.quiesce()
        await self.flush(by=by)

    async def quiesce(self) -> None:
        """Waits for what reads or writes the medium now, for whatever nexus."""
        await self._quiesce(self.data_plane)
        if self._copies:
            await asyncio.wait(self._copies)

    async def copy(
        self, work: _dataplane.Copy, source: LogicalUnit | None = None, *, by: Nexus
    ) -> None:
        """Runs a copy to here, from `source` or zeros, for a nexus of this unit. `ScsiError`;
        `SourceChangedError`."""
        for _, offset, length in work.runs:
            await self.bad_blocks.forget(offset // self.block_size, length // self.block_size)
        by.data_plane.wrote()
        running = asyncio.ensure_future(asyncio.to_thread(work.run))
        running.add_done_callback(lambda _: by.data_plane.wrote())
        for unit in {self, source or self}:
            unit._copies.add(running)
            running.add_done_callback(unit._copies.discard)
        try:
            # A thread cannot be cancelled: whoever quiesces still waits for it.
            await asyncio.shield(running)
        except asyncio.CancelledError:
            work.cancel()
            raise
        except OSError as error:
            raise write_failed(error) from error

    async def flush(self, *, by: Nexus | None = None) -> None:
        """Makes what was written durable; `ScsiError` where that fails. All nexuses that lose
        something then report a deferred error, but `by`, whose command ends with this one."""
        flush = self.data_plane.flush_begins()
        try:
            await self._flush()
        except OSError as error:
            self.data_plane.flush_ended(flush, good=False, by=by.data_plane if by else None)
            raise write_failed(error) from error
        self.data_plane.flush_ended(flush, good=True)
