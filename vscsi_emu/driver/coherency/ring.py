"""One split ring under watch: what the device finds when the driver publishes.

The device reads at its own pace. So that a fault does not depend on it, the chains are walked at
the moment in which their publication becomes visible, through the device's eyes and the driver's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from vscsi_emu.driver.coherency.faults import FaultKind
from vscsi_emu.driver.vring import (
    DESC_F_INDIRECT,
    DESC_F_NEXT,
    DESC_F_WRITE,
    DESCRIPTOR,
    RingLayout,
    Segment,
)

if TYPE_CHECKING:
    from vscsi_emu.driver.coherency.memory import CoherencyModel

BufferCheck = Callable[[Segment, bool, str], None]
"""Called for each buffer and indirect table the device is given: where, whether it may write
there, and what it is called."""

_INDEX: Final = 2


class WatchedRing:
    """`check` looks at each buffer beside what is looked at here."""

    def __init__(
        self,
        model: CoherencyModel,
        index: int,
        layout: RingLayout,
        check: BufferCheck | None = None,
    ) -> None:
        self.layout = layout
        self._model = model
        self._name = f"queue {index}"
        self._check = check
        self._seen = 0
        self._index_read_plainly = False
        self._looked_before_asking = False

    @property
    def indices(self) -> list[tuple[int, int]]:
        """(address, bytes) of what a device reads again and again."""
        return [(self.layout.avail_flags, 4), (self.layout.used_flags, 4)]

    @property
    def parts(self) -> list[tuple[int, int]]:
        size = self.layout.size
        return [
            (self.layout.desc, DESCRIPTOR.size * size),
            (self.layout.driver, 6 + 2 * size),
            (self.layout.device, 6 + 8 * size),
        ]

    # ── Order of the driver's accesses ──────────────────────────────────────────────────────────

    def load(self, address: int) -> None:
        """An acquiring load of the driver."""
        layout, waiting = self.layout, self._model.pending
        suppression = address in (layout.used_flags, layout.avail_event)
        if suppression and waiting(layout.avail_idx):
            self._report(
                FaultKind.MISSING_BARRIER,
                address,
                "the driver reads whether to notify before avail.idx is visible: "
                "no full barrier in between, and both sides may wait for ever (2.7.13.4)",
            )
        if address == layout.used_idx:
            self._looked_before_asking = waiting(layout.avail_flags) or waiting(layout.used_event)

    def plain_read(self, address: int, length: int) -> None:
        """A load that later ones may overtake."""
        layout = self.layout
        if address <= layout.used_idx < address + length:
            self._index_read_plainly = True
        elif self._index_read_plainly and layout.used_entry(0) <= address < layout.avail_event:
            self._report(
                FaultKind.MISSING_BARRIER,
                address,
                "a used element is read without a read barrier after used.idx",
            )

    def fence(self) -> None:
        self._index_read_plainly = False

    def before_sleep(self) -> None:
        if self._looked_before_asking:
            self._looked_before_asking = False
            self._report(
                FaultKind.MISSING_BARRIER,
                self.layout.used_idx,
                "used.idx was last read before the wish for a notification was visible: "
                "no full barrier in between, and the driver may sleep for ever (2.7.14)",
            )

    # ── What the device finds ───────────────────────────────────────────────────────────────────

    def published(self) -> None:
        """A store to avail.idx became visible."""
        layout = self.layout
        index = int.from_bytes(self._model.driver_view(layout.avail_idx, _INDEX), "little")
        self._compare(Segment(layout.avail_idx, _INDEX), "avail.idx")
        while self._seen != index:
            self._chain(self._seen)
            self._seen = (self._seen + 1) & 0xFFFF

    def _chain(self, number: int) -> None:
        entry = Segment(self.layout.avail_entry(number), 2)
        self._compare(entry, f"avail entry {number}")
        head = int.from_bytes(self._model.driver_view(*entry), "little")
        for segment, flags, name in self._descriptors(self.layout.desc, self.layout.size, head):
            if flags & DESC_F_INDIRECT:
                self._buffer(segment, False, f"the indirect table of {name}")
                count = segment.length // DESCRIPTOR.size
                for inner, inner_flags, _ in self._descriptors(segment.address, count, 0, False):
                    self._buffer(inner, bool(inner_flags & DESC_F_WRITE), f"a buffer of {name}")
            else:
                self._buffer(segment, bool(flags & DESC_F_WRITE), f"the buffer of {name}")

    def _descriptors(
        self, table: int, size: int, head: int, compare: bool = True
    ) -> Iterator[tuple[Segment, int, str]]:
        """(buffer, flags, name) of each descriptor of a chain, as the driver wrote it."""
        index = head
        for _ in range(size):
            place = Segment(table + DESCRIPTOR.size * index, DESCRIPTOR.size)
            name = f"descriptor {index}"
            if compare:
                self._compare(place, name)
            raw = self._model.driver_view(*place)
            address, length, flags, index = DESCRIPTOR.unpack(raw)
            yield Segment(address, length), flags, name
            if not flags & DESC_F_NEXT or index >= size:
                return

    def _buffer(self, segment: Segment, writable: bool, name: str) -> None:
        if self._check is not None:
            self._check(segment, writable, f"{self._name}: {name}")
        if not writable:
            self._compare(segment, name)

    def _compare(self, place: Segment, name: str) -> None:
        model = self._model
        wrote, reads = model.driver_view(*place), model.device_view(*place)
        if wrote == reads:
            return
        offset = next(i for i, (a, b) in enumerate(zip(wrote, reads, strict=True)) if a != b)
        at = place.address + offset
        if model.pending(at):
            kind = FaultKind.MISSING_BARRIER
            text = f"avail.idx became visible before the store to {name} at {at:#x}"
        else:
            kind = model.disagreement(at)
            how = (
                "past the cache, where the device reads an older copy"
                if kind is FaultKind.MISMATCHED_ALIAS
                else "into its cache and did not clean"
            )
            text = f"the CPU wrote {name} at {at:#x} {how}"
        self._report(kind, at, text)

    def _report(self, kind: FaultKind, address: int, text: str) -> None:
        self._model.log.report(kind, address, f"{self._name}: {text}")
