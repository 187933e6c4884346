"""Copy operations of one I_T_L nexus by 4-byte list identifier, and what is told of them
(SPC-6 6.24, 6.26)."""

from __future__ import annotations

import enum
import struct
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from vscsi_emu.scsi.copy_run import CopyRun
from vscsi_emu.scsi.sense import Asc, ScsiError, SenseKey
from vscsi_emu.scsi.status import Status

MAX_OPERATIONS: Final = 256
"""More are refused while that many run; else the oldest result is forgotten."""

_LAYOUT: Final = struct.Struct(">BBHIBBBBQH6x")
_BLOCKS: Final = 0xF1
_NO_UPDATE: Final = 0xFFFF_FFFE
_UPDATE_MS: Final = 100


class State(enum.IntEnum):
    """COPY OPERATION STATUS."""

    COMPLETED = 0x01
    FAILED = 0x02
    PARTIAL = 0x03
    """Fewer blocks than asked for, as the token stands for no more."""
    IN_FOREGROUND = 0x11
    IN_BACKGROUND = 0x12
    TERMINATED = 0x60
    """By COPY OPERATION ABORT, or what has its effect."""


@dataclass(slots=True)
class Operation:
    """`service_action`: of the command that began it. `transferred`: blocks until now."""

    service_action: int
    state: State
    transferred: Callable[[], int] = lambda: 0
    error: ScsiError | None = None
    token: bytes | None = None
    run: CopyRun = field(default_factory=CopyRun)

    @property
    def running(self) -> bool:
        return self.state in (State.IN_FOREGROUND, State.IN_BACKGROUND)

    def end(self, state: State, error: ScsiError | None = None) -> None:
        count = self.transferred()
        self.state, self.error, self.transferred = state, error, lambda: count
        self.run.end()

    def report(self, *, descriptor: bool) -> bytes:
        """Parameter data without AVAILABLE DATA. `descriptor`: the format of sense data."""
        sense = self.error.sense(descriptor=descriptor) if self.error else b""
        padded = sense + bytes(-len(sense) % 4)
        status = Status.CHECK_CONDITION if self.error else Status.GOOD
        return (
            _LAYOUT.pack(
                self.service_action,
                self.state,
                0,
                _UPDATE_MS if self.running else _NO_UPDATE,
                status,
                len(padded),
                len(sense),
                _BLOCKS,
                self.transferred(),
                0,
            )
            + padded
        )


class CopyOperations:
    def __init__(self) -> None:
        self._operations: OrderedDict[int, Operation] = OrderedDict()

    def start(self, list_id: int, operation: Operation) -> None:
        """In place of what was with this identifier. `ScsiError` while too many run."""
        self._operations.pop(list_id, None)
        if len(self._operations) >= MAX_OPERATIONS:
            over = (key for key, old in self._operations.items() if not old.running)
            oldest = next(over, None)
            if oldest is None:
                raise ScsiError(SenseKey.ILLEGAL_REQUEST, Asc.OPERATION_IN_PROGRESS)
            del self._operations[oldest]
        self._operations[list_id] = operation

    def find(self, list_id: int) -> Operation | None:
        return self._operations.get(list_id)

    def running(self) -> dict[int, CopyRun]:
        """Those that are not over, by list identifier."""
        return {key: each.run for key, each in self._operations.items() if each.running}

    def forget(self) -> None:
        """Reset or nexus loss: results of what is over are gone."""
        for list_id in [key for key, old in self._operations.items() if not old.running]:
            del self._operations[list_id]
