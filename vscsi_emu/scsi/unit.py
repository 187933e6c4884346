"""The logical unit: its state, and the policy that the data plane obeys."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from vscsi_emu import _dataplane
from vscsi_emu.scsi.cdb import Feature, Flag
from vscsi_emu.scsi.identity import Identity
from vscsi_emu.scsi.limits import Limits
from vscsi_emu.scsi.mode_pages import ModePages, direct_access_pages
from vscsi_emu.scsi.nexus import Nexus
from vscsi_emu.scsi.overwriting import Failure, Overwriting
from vscsi_emu.scsi.persistent import NexusId
from vscsi_emu.scsi.readiness import PowerCondition, Readiness
from vscsi_emu.scsi.reservations import Reservations
from vscsi_emu.scsi.sense import Asc, ScsiError, SenseKey
from vscsi_emu.scsi.store import StateStore
from vscsi_emu.scsi.table import CommandTable, command_table


async def _nothing(*_: object) -> None:
    pass


def _features(limits: Limits, *, thin: bool, removable: bool) -> Feature:
    features = Feature.THIN if thin else Feature.NONE
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
    - `rotation_rate`: rpm, 1 for a solid state medium, 0 for unknown (SBC-5 6.6.3).
    - `discard`: thin provisioning is offered where the engine really frees space. `lbprz`: it
      says that unmapped blocks read as zeros, which they do in any case (SBC-5 6.6.6).
    - `flush()` makes what was written durable; an `OSError` from it becomes MEDIUM ERROR.
      `quiesce(lu)` returns when the commands that run in the data plane now are done.
    - `store` keeps what must outlive the process; without it, nothing does.
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
        write_cache: bool = True,
        limits: Limits | None = None,
        flush: Callable[[], Awaitable[None]] = _nothing,
        quiesce: Callable[[_dataplane.Lu], Awaitable[None]] = _nothing,
        store: StateStore | None = None,
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
        self.features: Final = _features(
            self.limits, thin=discard and engine.can_discard, removable=removable
        )
        self.commands: Final[CommandTable] = command_table(self.features)
        self.mode_pages: Final = ModePages(direct_access_pages(write_cache=write_cache))
        self.readiness: Final = Readiness()
        self.failure: Failure | None = None
        self.paused = False
        self._overwriting: Overwriting | None = None
        self.nexuses: Final[list[Nexus]] = []
        self.reservations: Final = Reservations(self, store)
        self._copies: set[asyncio.Future[None]] = set()
        """Copies from or to here that run now."""
        self._flush = flush
        self._quiesce = quiesce
        self._blocks = engine.size // block_size
        self.data_plane: Final = _dataplane.Lu(
            engine, self._policy(), self.commands.routes, self.commands.usage_maps
        )

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
        )

    def _publish(self) -> None:
        """After every change of state: the policy, then the gates."""
        self.data_plane.policy = self._policy()
        self.update_gates()

    def update_gates(self) -> None:
        for nexus in self.nexuses:
            nexus.update_gate()

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
    def descriptor_sense(self) -> bool:
        return self.mode_pages.descriptor_sense

    @property
    def unready(self) -> ScsiError | None:
        """Why media commands are not processed now."""
        if self._overwriting is not None:
            return self._overwriting.error
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
        if Flag.NEEDS_MEDIUM in flags and not self.readiness.loaded:
            return ScsiError(SenseKey.NOT_READY, Asc.MEDIUM_NOT_PRESENT)
        return self.unready if Flag.NEEDS_READY in flags else None

    # ── Nexuses ────────────────────────────────────────────────────────────────────────────────

    def connect(self, name: NexusId) -> Nexus:
        """A new nexus, with POWER ON OCCURRED pending."""
        nexus = Nexus(self, name)
        self.nexuses.append(nexus)
        return nexus

    def disconnect(self, nexus: Nexus) -> None:
        self.nexuses.remove(nexus)
        self.reservations.lost(nexus)

    def establish(self, code: Asc, *, but: Nexus | None = None) -> None:
        """A unit attention condition for every nexus, or for all but one."""
        for nexus in self.nexuses:
            if nexus is not but:
                nexus.establish(code)

    # ── Changes of state ───────────────────────────────────────────────────────────────────────

    def reset(self) -> None:
        """Logical unit reset (SAM-6 6.3.3), once its commands are aborted."""
        self.mode_pages.reset()
        self.readiness.reset()
        for nexus in self.nexuses:
            nexus.prevents_removal = False
        self.reservations.reset()
        self._publish()
        self.establish(Asc.BUS_DEVICE_RESET_FUNCTION_OCCURRED)

    def resize(self, blocks: int) -> None:
        """A new capacity, in logical blocks, within what the engine holds."""
        most = self.data_plane.engine.size // self.block_size
        if not 1 <= blocks <= most:
            raise ValueError(f"{blocks} blocks: the storage holds 1 to {most}")
        if blocks != self._blocks:
            self._blocks = blocks
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

    def select_mode_pages(self, pages: list[bytes], *, by: Nexus) -> Awaitable[None] | None:
        """Makes checked pages current, for all nexuses at once.

        What is returned, if anything, must be awaited before the command ends: with WCE cleared
        or SWP set, what is in the cache still has to reach the medium (SPC-6 7.5.10, SBC-5 6.5.6).
        """
        before = self.data_plane.policy
        if not self.mode_pages.update(pages):
            return None
        self._publish()
        self.establish(Asc.MODE_PARAMETERS_CHANGED, but=by)
        return self.settle() if _must_settle(before, self.data_plane.policy) else None

    def enter(self, condition: PowerCondition) -> None:
        """A power condition; while stopped, media commands end with NOT READY."""
        self.readiness.power = condition
        self._publish()

    def wake(self) -> None:
        """Out of idle and standby, as a command needs the medium."""
        if self.readiness.wake():
            self._publish()

    def eject(self) -> None:
        """Media commands end with MEDIUM NOT PRESENT. `ScsiError` where removal is prevented."""
        self._check_removal()
        self.readiness.loaded = False
        self._publish()

    def load(self, *, by: Nexus) -> None:
        """The medium is back, and ready. `ScsiError` where its removal is prevented."""
        self._check_removal()
        self.readiness.power = PowerCondition.ACTIVE
        if not self.readiness.loaded:
            self.readiness.loaded = True
            self.establish(Asc.MEDIUM_MAY_HAVE_CHANGED, but=by)
        self._publish()

    def _check_removal(self) -> None:
        if any(nexus.prevents_removal for nexus in self.nexuses):
            raise ScsiError(SenseKey.ILLEGAL_REQUEST, Asc.MEDIUM_REMOVAL_PREVENTED)

    def overwrite(self, overwriting: Overwriting) -> Awaitable[bytes]:
        """Begins at once to refuse commands; what is returned does the rest, and must be awaited.

        `ScsiError` if it fails; media commands are then refused until it succeeds, or
        `forget_failure`. Resets do not end it (SBC-5 4.11.2).
        """
        self._overwriting = overwriting
        self._publish()
        return self._overwrite(overwriting)

    async def _overwrite(self, overwriting: Overwriting) -> bytes:
        try:
            await self._quiesce(self.data_plane)
            self.failure = overwriting.failure
            await overwriting.run()
            self.failure = None
        except OSError as error:
            raise overwriting.failure.error from error
        finally:
            self._overwriting = None
            self._publish()
        return b""

    def end(self) -> None:
        """The unit is gone for good: an overwriting under way ends soon, and fails."""
        if self._overwriting is not None:
            self._overwriting.work.cancel()

    def forget_failure(self) -> None:
        """The medium may be used again, whatever it holds."""
        self.failure = None
        self._publish()

    async def settle(self) -> None:
        """Waits for running commands, then makes what they wrote durable."""
        await self.quiesce()
        await self.flush()

    async def quiesce(self) -> None:
        """Waits for what reads or writes the medium now, for whatever nexus."""
        await self._quiesce(self.data_plane)
        if self._copies:
            await asyncio.wait(self._copies)

    async def copy_from(
        self, source: LogicalUnit, source_offset: int, offset: int, length: int
    ) -> None:
        """Copies bytes of `source` to here; durable as a write is. `ScsiError` MEDIUM ERROR."""
        work = asyncio.ensure_future(
            asyncio.to_thread(
                self.data_plane.engine.copy,
                source.data_plane.engine,
                source_offset,
                offset,
                length,
                not self.mode_pages.write_cache,
            )
        )
        for unit in {self, source}:
            unit._copies.add(work)
            work.add_done_callback(unit._copies.discard)
        try:
            # A thread cannot be cancelled: whoever quiesces still waits for it.
            await asyncio.shield(work)
        except OSError as error:
            raise ScsiError(SenseKey.MEDIUM_ERROR, Asc.WRITE_ERROR) from error

    async def flush(self) -> None:
        """Makes what was written durable; `ScsiError` MEDIUM ERROR where that fails."""
        try:
            await self._flush()
        except OSError as error:
            raise ScsiError(SenseKey.MEDIUM_ERROR, Asc.WRITE_ERROR) from error
