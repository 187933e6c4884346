"""Thin provisioning: how much space a unit's blocks take, and who is told that it gets short
(SBC-5 4.7.3.6, 4.7.3.7, 6.5.9)."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from vscsi_emu.scsi.mode_pages import PROVISIONING, ModePage

if TYPE_CHECKING:
    from vscsi_emu._dataplane import Space
    from vscsi_emu.scsi.unit import LogicalUnit

SOFT_THRESHOLD: Final = 80
"""Percent of the space in use at which the default threshold stands."""
_GRAIN: Final = 4096
"""Bytes in which space is counted."""
_MOST_SETS: Final = 0xFFFF_FFFF

Watcher = Callable[["Space", int, bool, Callable[[], None]], Callable[[], None]]
"""(space, level, rising, reached) → cancel: `reached` is called once, when the bytes in use are at
least `level` (rising) or fewer, unless it is cancelled before."""


def no_watcher(*_: object) -> Callable[[], None]:
    """Notices nothing."""
    return lambda: None


@dataclass(frozen=True, slots=True)
class ThinSpace:
    """What a unit may take. `pool`: the NAA name of a space that it shares with others, 8 bytes.
    `soft_threshold`: percent in use."""

    space: Space
    pool: bytes | None = None
    soft_threshold: int = SOFT_THRESHOLD


@dataclass(frozen=True, slots=True)
class Usage:
    """LBA mapping resources in threshold sets, as the log page has them (SBC-5 6.4.5). None: that
    cannot be told. `shared`: other units' use of them shows here too."""

    available: int | None
    used: int | None
    shared: bool


class Provisioning:
    """Of one unit. `thin` None: nothing bounds it but its capacity and the host's storage."""

    def __init__(self, unit: LogicalUnit, thin: ThinSpace | None, watcher: Watcher) -> None:
        self._unit = unit
        self.thin: Final = thin
        self._watcher = watcher
        bounds = [unit.blocks * unit.block_size, thin.space.limit if thin else 0]
        self.exponent: Final = _exponent(unit.block_size, max(bounds))
        """A threshold set is two to the power of this blocks."""
        self._set_bytes = unit.block_size << self.exponent
        self._settings: bytes | None = None
        self._thresholds: list[_Threshold] = []

    def usage(self) -> Usage:
        if self.thin is None:
            taken = self._unit.data_plane.engine.allocated
            return Usage(None, None if taken is None else self._sets(taken), shared=False)
        space = self.thin.space
        free = max(space.limit - space.used, 0)
        return Usage(
            free // self._set_bytes, self._sets(space.used), shared=self.thin.pool is not None
        )

    def _sets(self, used: int) -> int:
        return -(-used // self._set_bytes)

    # ── Thresholds ─────────────────────────────────────────────────────────────────────────────

    def mode_page(self) -> ModePage | None:
        """The Logical Block Provisioning mode page: a threshold for what is used, enabled, and one
        for what is available. None: there is nothing to watch."""
        if self.thin is None:
            return None
        limit, percent = self.thin.space.limit, self.thin.soft_threshold
        used = limit * percent // 100 // self._set_bytes
        default = _PAGE.pack(
            _SPF | PROVISIONING[0],
            PROVISIONING[1],
            _PAGE.size - 4,
            *(_ENABLED | _INCREASING, _USED, used),
            *(_DECREASING, _AVAILABLE, limit // self._set_bytes - used),
        )
        changeable = _PAGE.pack(
            _SPF | PROVISIONING[0],
            PROVISIONING[1],
            _PAGE.size - 4,
            *(_ENABLED, 0, 0xFFFF_FFFF),
            *(_ENABLED, 0, 0xFFFF_FFFF),
        )
        return ModePage(default, changeable)

    def update(self) -> None:
        """Watches what the mode pages ask for now."""
        if self.thin is None:
            return
        pages = self._unit.mode_pages
        settings = pages.value(PROVISIONING) if pages.notifies_thresholds else b""
        if settings == self._settings:
            return
        self.end()
        self._settings = settings
        self._thresholds = list(self._enabled(settings, self.thin.space)) if settings else []

    def end(self) -> None:
        """Watches nothing any more."""
        for threshold in self._thresholds:
            threshold.cancel()
        self._thresholds = []

    def _enabled(self, page: bytes, space: Space) -> Iterator[_Threshold]:
        _, _, _, *fields = _PAGE.unpack(page)
        half = self._set_bytes // 2
        for number in range(2):
            flags, resource, count = fields[3 * number : 3 * number + 3]
            low, high = count * self._set_bytes - half, count * self._set_bytes + half
            if resource == _AVAILABLE:
                # The same, seen from the other side: less is available once more is used.
                low, high = space.limit - high, space.limit - low
            if flags & _ENABLED:
                notify = partial(
                    self._unit.establish_threshold, _FIRST_DESCRIPTOR + number * _DESCRIPTOR
                )
                yield _Threshold(partial(self._watcher, space), low, high, notify)


class _Threshold:
    """Calls `notify` once more than `high` bytes are in use, and not again before it were less
    than `low` (SBC-5 4.7.3.7.4, 4.7.3.7.5)."""

    def __init__(
        self,
        watch: Callable[[int, bool, Callable[[], None]], Callable[[], None]],
        low: int,
        high: int,
        notify: Callable[[], None],
    ) -> None:
        self._watch = watch
        self._low, self._beyond = _level(low), _level(high + 1)
        self._notify = notify
        self._arm()

    def _arm(self) -> None:
        self.cancel = self._watch(self._beyond, True, self._passed)

    def _passed(self) -> None:
        self.cancel = self._watch(self._low, False, self._arm)
        self._notify()


def _level(level: int) -> int:
    return min(max(level, 0), 0xFFFF_FFFF_FFFF_FFFF)


_SPF: Final = 0x40
_ENABLED: Final = 0x80
_DECREASING, _INCREASING = 0, 1
_AVAILABLE, _USED = 1, 2
_FIRST_DESCRIPTOR: Final = 16
_DESCRIPTOR: Final = 8
_PAGE: Final = struct.Struct(">BBH12x" + 2 * "BB2xI")
"""Header, SITUA and reserved bytes, two threshold descriptors."""


def _exponent(block_size: int, most: int) -> int:
    """The smallest that counts `most` bytes in 32 bits, in sets of whole grains."""
    exponent = max(1, (_GRAIN // block_size).bit_length() - 1)
    while most >> exponent > _MOST_SETS * block_size:
        exponent += 1
    return exponent
