"""What happens to the HBAs of a process, for those who watch: nothing here changes anything."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

TMFS_KEPT: Final = 256
"""Task management functions that can be looked up; older ones are forgotten."""


class Kind(StrEnum):
    """Kinds of records."""

    LUN_ADDED = "lun.added"
    LUN_REMOVED = "lun.removed"
    LUN_RESIZED = "lun.resized"
    LUN_CHANGED = "lun.changed"
    LUN_PAUSED = "lun.paused"
    LUN_RESUMED = "lun.resumed"
    LUN_POWER_FAILED = "lun.power-failed"
    SESSION_CONNECTED = "session.connected"
    SESSION_DISCONNECTED = "session.disconnected"
    TMF = "tmf"
    ATTENTION = "attention"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One thing that happened."""

    kind: str
    """A value of `Kind`."""
    text: str
    """For people."""
    hba: str | None = None
    """Name of the HBA, where it concerns one."""
    lun: str | None = None
    """Its address there, as TARGET:LUN."""
    unit: str | None = None
    """Id of the logical unit, where it concerns the unit itself."""
    time: float = field(default_factory=time.time)
    """Seconds since the epoch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TmfRecord:
    """A task management function that was answered (SAM-6 clause 7)."""

    hba: str
    lun: str
    function: str
    """As in ``VIRTIO_SCSI_T_TMF_*``, without the prefix."""
    tag: int | None
    """Of the command, where the function names one."""
    response: str
    """As in ``VIRTIO_SCSI_S_*``, without the prefix."""
    seconds: float
    """From its arrival to its answer."""
    time: float
    """Of its answer, in seconds since the epoch."""


Watcher = Callable[[Record], None]


class Journal:
    """Tells watchers, and remembers the last task management functions."""

    def __init__(self) -> None:
        self.tmfs: Final[deque[TmfRecord]] = deque(maxlen=TMFS_KEPT)
        self._watchers: dict[object, Watcher] = {}

    @property
    def watched(self) -> bool:
        """Whether a note would reach anybody."""
        return bool(self._watchers)

    def watch(self, watcher: Watcher) -> Callable[[], None]:
        """Calls `watcher` with each record from now on, until what is returned is called."""
        key = object()
        self._watchers[key] = watcher

        def end() -> None:
            self._watchers.pop(key, None)

        return end

    def note(
        self,
        kind: Kind,
        text: str,
        *,
        hba: str | None = None,
        lun: str | None = None,
        unit: str | None = None,
    ) -> None:
        """Tells all who watch."""
        if self._watchers:
            record = Record(kind=kind.value, text=text, hba=hba, lun=lun, unit=unit)
            for watcher in list(self._watchers.values()):
                watcher(record)

    def note_tmf(self, tmf: TmfRecord) -> None:
        """Remembers it, and tells all who watch."""
        self.tmfs.append(tmf)
        tag = "" if tmf.tag is None else f" of tag {tmf.tag:#x}"
        self.note(Kind.TMF, f"{tmf.function}{tag}: {tmf.response}", hba=tmf.hba, lun=tmf.lun)
