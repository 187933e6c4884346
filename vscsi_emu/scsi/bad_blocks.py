"""Blocks that WRITE LONG marked bad, remembered over restarts (SBC-5 4.18.2).

The data plane knows them too and forgets each as it is written. What it does must not come before
what is saved: a block that was written is never bad again. So while there are any, writes come
here first, and those that reach one wait until it is forgotten in the store.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from vscsi_emu.scsi.sense import Asc, ScsiError, SenseKey
from vscsi_emu.scsi.store import SavedStateError

if TYPE_CHECKING:
    from vscsi_emu.scsi.cdb import Cdb
    from vscsi_emu.scsi.store import StateStore
    from vscsi_emu.scsi.unit import LogicalUnit

log = logging.getLogger(__name__)

MAX_MARKS: Final = 8192
_SECTION: Final = "bad-blocks"

_TO_THE_END: Final = frozenset({"WRITE SAME(10)", "WRITE SAME(16)", "WRITE SAME(32)"})
"""Writes for which 0 blocks are all from the LBA on."""


class BadBlocks:
    """Of one unit, by LBA. `store` None: only the data plane knows them, until it ends.

    Raises `SavedStateError`.
    """

    def __init__(self, unit: LogicalUnit, store: StateStore | None) -> None:
        self._unit = unit
        self._store = store
        self._lock = asyncio.Lock()
        saved = store.load(_SECTION) if store is not None else None
        self._marks = frozenset(lba for lba in _from_json(saved) if lba < unit.blocks)
        for lba in self._marks:
            unit.data_plane.mark_bad(lba * unit.block_size, unit.block_size)

    def __bool__(self) -> bool:
        """Whether writes must come here first."""
        return bool(self._marks)

    async def mark(self, lba: int) -> None:
        """Before the data plane does it. `ScsiError`: it cannot be remembered."""
        if self._store is None:
            return
        async with self._lock:
            marks = self._marks | {lba}
            if len(marks) > MAX_MARKS:
                raise ScsiError(SenseKey.ILLEGAL_REQUEST, Asc.INSUFFICIENT_RESOURCES)
            await self._save(marks)
        self._unit.update_gates()
        # A write that began before the gates closed would forget it behind our back.
        await self._unit.quiesce()

    async def forget(self, lba: int, blocks: int) -> None:
        """Before they are written. `ScsiError`: that could not be saved."""
        async with self._lock:
            gone = self._within(lba, blocks)
            if gone:
                await self._save(self._marks - gone)
        if gone:
            self._unit.update_gates()

    def _within(self, lba: int, blocks: int) -> frozenset[int]:
        return frozenset(mark for mark in self._marks if lba <= mark < lba + blocks)

    async def _save(self, marks: frozenset[int]) -> None:
        assert self._store is not None
        try:
            await self._store.save(_SECTION, list(_runs(marks)) or None)
        except OSError as error:
            log.error("blocks marked bad cannot be saved: %s", error)
            raise ScsiError(SenseKey.HARDWARE_ERROR, Asc.INTERNAL_TARGET_FAILURE) from error
        self._marks = marks


def written_blocks(cdb: Cdb, capacity: int) -> tuple[int, int]:
    """What a media command may write: first LBA and number. All, where only its data-out says
    (UNMAP): blocks that it does not reach stay bad, but not over a restart."""
    if "lba" not in cdb.command.fields:
        return 0, capacity
    lba, blocks = cdb["lba"], cdb["blocks"]
    if not blocks and cdb.command.name in _TO_THE_END:
        blocks = capacity
    elif not blocks and cdb.command.name == "WRITE(6)":
        blocks = 256
    return lba, blocks


def _runs(marks: frozenset[int]) -> Iterator[list[int]]:
    """[first, how many], so that the file stays small."""
    first = last = None
    for mark in sorted(marks):
        if last is not None and mark == last + 1:
            last = mark
            continue
        if first is not None and last is not None:
            yield [first, last - first + 1]
        first = last = mark
    if first is not None and last is not None:
        yield [first, last - first + 1]


def _from_json(value: Any) -> Iterator[int]:
    if value is None:
        return
    try:
        runs = [(int(first), int(count)) for first, count in value]
    except (TypeError, ValueError) as error:
        raise SavedStateError(f"saved bad blocks are damaged: {error!r}") from None
    if any(first < 0 or count < 1 for first, count in runs) or (
        sum(count for _, count in runs) > MAX_MARKS
    ):
        raise SavedStateError("saved bad blocks are none")
    for first, count in runs:
        yield from range(first, first + count)
