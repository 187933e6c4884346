"""A logical unit with the storage behind it, as a service opened it: what can be changed later."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from vscsi_emu.backends import BackendError, SpecError
from vscsi_emu.backends.uri import MAX_RATE
from vscsi_emu.caps import CapError, check_unit, of_unit
from vscsi_emu.journal import Kind
from vscsi_emu.scsi.sense import ScsiError
from vscsi_emu.virtio.scsi import Response

if TYPE_CHECKING:
    from vscsi_emu._dataplane import VolatileCache
    from vscsi_emu.backends import Backend
    from vscsi_emu.config import LunConfig
    from vscsi_emu.runtime import Runtime
    from vscsi_emu.scsi.unit import LogicalUnit

log = logging.getLogger(__name__)


class OperationError(Exception):
    """What was asked cannot be done now. `parameter` names the argument that is at fault."""

    def __init__(self, text: str, parameter: str | None = None) -> None:
        super().__init__(text)
        self.parameter = parameter


class Losses(NamedTuple):
    """What became of writes that were not flushed when the power failed."""

    survived: int
    torn: int
    """Survived in part."""
    lost: int


class Disk:
    """One `LunConfig`, served. Its methods run on the service's event loop, one at a time."""

    def __init__(
        self, config: LunConfig, backend: Backend, unit: LogicalUnit, runtime: Runtime
    ) -> None:
        self.config = config
        """As it is now: `resize` and `configure` change it."""
        self.backend = backend
        self.unit = unit
        self._runtime = runtime
        self._lock = asyncio.Lock()
        self._closed = False
        self._apply()

    @property
    def id(self) -> str:
        """What people call it."""
        return self.config.id

    @property
    def size(self) -> int:
        """Capacity in bytes."""
        return self.unit.blocks * self.unit.block_size

    async def resize(self, size: int) -> None:
        """A new capacity in bytes: CAPACITY DATA HAS CHANGED for every nexus. What is beyond the
        end is lost. `OperationError`."""
        async with self._change():
            try:
                self.backend.check_size(size, f"name a multiple of {self.backend.block_size}")
            except SpecError as error:
                raise OperationError(str(error), "size") from None
            if (why := self.backend.fixed) is not None:
                spec = self.config.spec
                raise OperationError(f"{self.id} ({spec}) cannot be resized: {why}", "lun")
            if self.unit.overwriting:
                raise OperationError(f"{self.id}: SANITIZE or FORMAT UNIT is under way")
            if size == self.size:
                return
            async with self._held():
                await self._resize(size)
            spec = replace(self.config.spec, location=self.backend.located(size))
            self.config = replace(self.config, spec=spec)
            self._note(Kind.LUN_RESIZED, f"has {size} bytes")

    async def _resize(self, size: int) -> None:
        """Never larger than what holds the bytes. Nothing else uses them meanwhile."""
        engine, blocks = self.unit.data_plane.engine, size // self.unit.block_size
        try:
            if size > engine.size:
                await asyncio.to_thread(self.backend.set_size, size)
                await asyncio.to_thread(engine.resize, size)
                self.unit.resize(blocks)
            else:
                self.unit.resize(blocks)
                await asyncio.to_thread(engine.resize, size)
                await asyncio.to_thread(self.backend.set_size, size)
        except BackendError as error:
            raise OperationError(str(error), "lun") from None
        except OSError as error:
            raise OperationError(f"{self.id}: {error.strerror or error}", "size") from None

    async def configure(
        self, *, read_only: bool | None = None, write_cache: bool | None = None
    ) -> None:
        """Write protection, and WCE of the Caching mode page; MODE PARAMETERS CHANGED for every
        nexus. `OperationError`."""
        async with self._change():
            if read_only is False and not self.backend.writable:
                raise OperationError(
                    f"{self.id} was opened read-only; remove it, then add it without ro",
                    "read_only",
                )
            spec = self.config.spec
            if read_only is not None:
                spec = replace(spec, read_only=read_only)
            if write_cache is not None:
                spec = replace(spec, write_cache=write_cache)
            try:
                await self.unit.configure(read_only=read_only, write_cache=write_cache)
            except ScsiError as error:
                raise OperationError(f"{self.id}: what is cached cannot be written") from error
            finally:
                self.config = replace(self.config, spec=spec)
            cache = "writeback" if spec.write_cache else "writethrough"
            self._note(
                Kind.LUN_CHANGED, f"is {'read-only' if spec.read_only else 'writable'}, {cache}"
            )

    async def lower(self, **caps: int | None) -> None:
        """`max_sectors`, `seg_max`, `cmd_per_lun` of `LunSpec`: 0 takes it away, None leaves it.
        The HBAs are to be told (`Hba.limits_changed`). `OperationError`."""
        async with self._change():
            changes: dict[str, Any] = {
                field: cap or None for field, cap in caps.items() if cap is not None
            }
            spec = replace(self.config.spec, **changes)
            try:
                check_unit(spec, self.backend)
            except CapError as error:
                raise OperationError(f"{self.id}: {error}", error.field) from None
            self.config = replace(self.config, spec=spec)
            self.unit.lower(of_unit(spec))
            self._note(Kind.LUN_CHANGED, "has other limits")

    def renew(self, backend: Backend, unit: LogicalUnit) -> None:
        """The same storage, opened again; no HBA has the old unit any more."""
        self.backend, self.unit = backend, unit
        self._apply()

    def _apply(self) -> None:
        """What was asked for, to a unit that knows nothing of it."""
        self.unit.lower(of_unit(self.config.spec))
        self._apply_rates()

    async def limit(self, **rates: int | None) -> None:
        """`iops`, `bps`, `iops_burst`, `bps_burst` of `LunSpec`: 0 takes a limit away, None leaves
        it. What waits takes its turn at the new rates. `OperationError`."""
        async with self._change():
            for name, rate in rates.items():
                if rate is not None and not 0 <= rate <= MAX_RATE:
                    raise OperationError(f"{rate} is not within 0 to {MAX_RATE}", name)
            changes: dict[str, Any] = {
                name: rate or None for name, rate in rates.items() if rate is not None
            }
            self.config = replace(self.config, spec=replace(self.config.spec, **changes))
            self._apply_rates()
            self._runtime.release(self.unit.data_plane)
            spec = self.config.spec
            iops, bps = spec.iops or "any number of", spec.bps or "any number of"
            self._note(Kind.LUN_CHANGED, f"may do {iops} commands and {bps} bytes a second")

    def _apply_rates(self) -> None:
        spec = self.config.spec
        self.unit.data_plane.set_limits(
            _rate(spec.iops, spec.iops_burst), _rate(spec.bps, spec.bps_burst)
        )

    async def pause(self, *, deadline: float) -> bool:
        """From now on commands wait for `resume`. Whether those that ran are over within
        `deadline` seconds; it stays paused in any case. A guest gives a command up after some time
        (Linux: 30 s), and then aborts it. A driver that stops its queue meanwhile has them back,
        with BUSY. SANITIZE and FORMAT UNIT go on."""
        async with self._change():
            if not self.unit.paused:
                self._pause()
                self._note(Kind.LUN_PAUSED, "is paused")
            try:
                await asyncio.wait_for(self.unit.quiesce(), deadline)
            except TimeoutError:
                return False
            return True

    async def resume(self) -> None:
        """Commands that waited are processed, in the order they came."""
        async with self._change():
            if self.unit.paused:
                self._resume()
                self._note(Kind.LUN_RESUMED, "goes on")

    async def flush(self) -> None:
        """What was written is durable on return. `OperationError`."""
        async with self._change():
            try:
                await self.unit.flush()
            except ScsiError as error:
                raise OperationError(f"{self.id}: cannot be flushed") from error

    async def power_fail(self, seed: int) -> Losses:
        """Power goes and comes back: commands that run end with TRANSPORT FAILURE, what a volatile
        cache holds is lost as `seed` says, and each nexus has POWER ON OCCURRED to report."""
        async with self._change():
            if not self.backend.can_lose_power:
                raise OperationError(
                    f"{self.id}: the power of a device of the host is its own", "lun"
                )
            if self.unit.overwriting:
                raise OperationError(f"{self.id}: SANITIZE or FORMAT UNIT is under way")
            async with self._without_power() as cache:
                abort = self._runtime.abort(Response.TRANSPORT_FAILURE, lu=self.unit.data_plane)
                ended = asyncio.ensure_future(abort)
                try:
                    losses = Losses(0, 0, 0)
                    if cache is not None:
                        losses = Losses(*await asyncio.to_thread(cache.fail, seed))
                except OSError as error:
                    raise OperationError(f"{self.id}: {error.strerror}") from None
                finally:
                    await ended
                await self.unit.quiesce()
                self.unit.power_on()
            self._note(Kind.LUN_POWER_FAILED, f"lost power: {losses.lost} writes gone")
            return losses

    @asynccontextmanager
    async def _without_power(self) -> AsyncIterator[VolatileCache | None]:
        """Nothing is processed meanwhile."""
        was_paused, cache = self.unit.paused, self.backend.cache
        self._pause()
        try:
            yield cache
        finally:
            if cache is not None:
                await asyncio.to_thread(cache.power_on)
            if not was_paused:
                self._resume()

    async def close(self) -> None:
        """Once no HBA has the unit and it is quiet: flushes, and gives the storage back."""
        self.unit.end()
        async with self._lock:
            self._closed = True
            if self.unit.paused:
                self._resume()
            try:
                await asyncio.to_thread(self.backend.sync)
            except OSError as error:
                log.error("%s: cannot be flushed: %s", self.config.spec, error.strerror)
            self.backend.close()

    @asynccontextmanager
    async def _change(self) -> AsyncIterator[None]:
        async with self._lock:
            if self._closed:
                raise OperationError(f"{self.id} was removed", "lun")
            yield

    @asynccontextmanager
    async def _held(self) -> AsyncIterator[None]:
        """Commands wait, and none runs; until then, if it was paused before."""
        was_paused = self.unit.paused
        self._pause()
        try:
            await self.unit.quiesce()
            yield
        finally:
            if not was_paused:
                self._resume()

    def _pause(self) -> None:
        self._runtime.pause(self.unit.data_plane)
        self.unit.pause(True)

    def _resume(self) -> None:
        self.unit.pause(False)
        self._runtime.resume(self.unit.data_plane)

    def _note(self, kind: Kind, text: str) -> None:
        self._runtime.journal.note(kind, text, unit=self.id)


def _rate(rate: int | None, burst: int | None) -> tuple[int, int]:
    """For `_dataplane.Lu.set_limits`; a tenth of a second's at once, unless `burst` is given."""
    if rate is None:
        return 0, 0
    return rate, max(rate // 10, 1) if burst is None else burst
