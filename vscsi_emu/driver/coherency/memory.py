"""Guest memory as a weakly ordered CPU with caches sees it, beside a device that sees its own."""

from dataclasses import dataclass
from random import Random
from typing import Final

from vscsi_emu.driver.coherency.faults import FaultKind, FaultLog
from vscsi_emu.driver.coherency.path import CpuCache, DeviceCache, Path, Shared
from vscsi_emu.driver.coherency.ranges import Range, RangeMap
from vscsi_emu.driver.coherency.ring import WatchedRing
from vscsi_emu.driver.dma import Direction, DmaMemory

STORE_BUFFER: Final = 64
"""Stores that may wait; then the oldest becomes visible."""
EVICTIONS: Final = 1 / 256


@dataclass(frozen=True, slots=True)
class _Store:
    address: int
    data: bytes

    def overlaps(self, address: int, length: int) -> bool:
        return self.address < address + length and address < self.address + len(self.data)

    def covers(self, address: int) -> bool:
        return self.address <= address < self.address + len(self.data)


class CoherencyModel:
    """`DmaMemory` of a driver on a CPU whose view of `memory` may not be the device's.

    `memory` is the device's view, and what the real data plane works on. Addresses are the
    device's. `seed` decides which lines are evicted and prefetched, `evictions` how often, as a
    share of all accesses. Plain stores become visible in any order that is allowed; of those the
    model takes the worst: an index before what it publishes.

    What went wrong is in `log`, which also tells what would have gone wrong with other timing.
    """

    def __init__(
        self,
        memory: DmaMemory,
        *,
        device_coherent: bool = True,
        seed: int = 0,
        evictions: float = EVICTIONS,
    ) -> None:
        self.log = FaultLog()
        self.mapped: RangeMap[Direction] = RangeMap()
        """Buffers that the device has, as far as the DMA API knows."""
        self._memory = memory
        self._random = Random(seed)
        self._evictions = evictions
        self._uncached: RangeMap[None] = RangeMap()
        self._rings: list[WatchedRing] = []
        self._stores: list[_Store] = []
        self.set_device_coherent(device_coherent)

    def set_device_coherent(self, coherent: bool) -> None:
        """Whether the device's accesses go through the caches. Before there is any allocation."""
        self._cacheable: Path = (
            Shared(self._memory) if coherent else CpuCache(self._memory, self.log)
        )
        self._past: Path = DeviceCache(self._memory, self.log) if coherent else Shared(self._memory)
        self.device_coherent = coherent

    # ── Mappings and cache maintenance ──────────────────────────────────────────────────────────

    def map_uncached(self, address: int, length: int) -> None:
        """From now on the CPU reaches these bytes past its caches."""
        self._cacheable.clean(address, length)
        self._cacheable.invalidate(address, length)
        self._uncached.add(address, length, None)

    def unmap_uncached(self, address: int) -> None:
        if found := self._uncached.pop(address):
            self._past.clean(address, found.length)

    def clean(self, address: int, length: int) -> None:
        """Makes the CPU's stores to these bytes visible to a device that snoops no caches."""
        self._drain_range(address, length)
        self._path(address).clean(address, length)

    def invalidate(self, address: int, length: int) -> None:
        """Has the CPU read these bytes anew."""
        self._path(address).invalidate(address, length)

    def prefetch(self, address: int, length: int) -> None:
        """What a CPU may do with any cacheable memory at any time."""
        self._path(address).touch(address, length)

    def _path(self, address: int) -> Path:
        return self._past if self._uncached.find(address) else self._cacheable

    # ── Rings ───────────────────────────────────────────────────────────────────────────────────

    def watch(self, ring: WatchedRing) -> None:
        """A queue starts: the device looks at it, and its publications are looked at here."""
        self.drain()
        self._rings.append(ring)
        self.device_looks()

    def forget_rings(self) -> None:
        self._rings.clear()

    def device_looks(self) -> None:
        """The device reads indices, and perhaps more, which brings them into its caches."""
        for ring in self._rings:
            for address, length in ring.indices:
                self._path(address).touch(address, length)
            for address, length in ring.parts:
                if self._random.random() < 0.5:
                    self._path(address).touch(address, length)

    def before_sleep(self) -> None:
        """The driver waits for a notification now."""
        for ring in self._rings:
            ring.before_sleep()
        self.drain()

    # ── What a driver does ──────────────────────────────────────────────────────────────────────

    def read(self, address: int, length: int, /) -> bytes:
        self._check_owner(address, length, store=False)
        for ring in self._rings:
            ring.plain_read(address, length)
        return self._load(address, length)

    def write(self, address: int, data: bytes, /) -> None:
        self._check_owner(address, len(data), store=True)
        store = _Store(address, bytes(data))
        if any(store.covers(ring.layout.avail_idx) for ring in self._rings):
            self._overtake(store)
        else:
            self._push(store)

    def load_u16_acquire(self, address: int, /) -> int:
        for ring in self._rings:
            ring.load(address)
        return int.from_bytes(self._load(address, 2), "little")

    def store_u16_release(self, address: int, value: int, /) -> None:
        self.drain()
        self._push(_Store(address, value.to_bytes(2, "little")))

    def fence(self) -> None:
        self.drain()
        for ring in self._rings:
            ring.fence()
        self._memory.fence()

    # ── Views ───────────────────────────────────────────────────────────────────────────────────

    def driver_view(self, address: int, length: int) -> bytes:
        """What the driver would read now."""
        return self._forward(address, self._path(address).peek(address, length))

    def device_view(self, address: int, length: int) -> bytes:
        """What the device would read now."""
        return self._memory.read(address, length)

    def pending(self, address: int, length: int = 1) -> bool:
        """Whether a store to these bytes still waits to become visible."""
        return any(store.overlaps(address, length) for store in self._stores)

    def disagreement(self, address: int) -> FaultKind:
        """What it is called if the two views of this address differ."""
        return self._path(address).disagreement

    # ── The store buffer ────────────────────────────────────────────────────────────────────────

    def drain(self) -> None:
        """All stores become visible, in order. So does a register access for those before it."""
        while self._stores:
            self._show(self._stores.pop(0))

    def _drain_range(self, address: int, length: int) -> None:
        waiting, self._stores = self._stores, []
        for store in waiting:
            if store.overlaps(address, length):
                self._show(store)
            else:
                self._stores.append(store)

    def _push(self, store: _Store) -> None:
        self._stores.append(store)
        if len(self._stores) > STORE_BUFFER:
            self._show(self._stores.pop(0))

    def _overtake(self, store: _Store) -> None:
        self._drain_range(store.address, len(store.data))
        self._show(store)

    def _show(self, store: _Store) -> None:
        self._perhaps_evict()
        self._path(store.address).write(store.address, store.data)
        for ring in self._rings:
            if store.covers(ring.layout.avail_idx):
                ring.published()

    def _load(self, address: int, length: int) -> bytes:
        self._perhaps_evict()
        return self._forward(address, self._path(address).read(address, length))

    def _forward(self, address: int, data: bytes) -> bytes:
        """A CPU sees its own stores before others do."""
        waiting = [s for s in self._stores if s.overlaps(address, len(data))]
        if not waiting:
            return data
        seen = bytearray(data)
        for store in waiting:
            for i, byte in enumerate(store.data, store.address - address):
                if 0 <= i < len(seen):
                    seen[i] = byte
        return bytes(seen)

    def _perhaps_evict(self) -> None:
        if self._random.random() < self._evictions:
            self._random.choice((self._cacheable, self._past)).evict(self._random)

    def _check_owner(self, address: int, length: int, *, store: bool) -> None:
        held: Range[Direction] | None = self.mapped.find(address)
        if held is not None and (store or held.value is Direction.FROM_DEVICE):
            verb = "wrote" if store else "read"
            self.log.report(
                FaultKind.MISSING_SYNC,
                address,
                f"CPU {verb} {address:#x} while the device has the buffer: no dma_unmap before",
            )
