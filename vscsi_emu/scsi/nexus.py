"""I_T_L nexus: what one initiator port's way to a logical unit remembers (SAM-6)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final, Protocol

from vscsi_emu import _dataplane
from vscsi_emu.scsi.copy_operations import CopyOperations
from vscsi_emu.scsi.copy_results import CopyResults
from vscsi_emu.scsi.persistent import NexusId
from vscsi_emu.scsi.port_groups import AccessState
from vscsi_emu.scsi.sense import Asc, ScsiError, SenseKey
from vscsi_emu.scsi.status import Status

if TYPE_CHECKING:
    from vscsi_emu.scsi.cdb import Flag
    from vscsi_emu.scsi.copy_run import CopyRun
    from vscsi_emu.scsi.unit import LogicalUnit

_RESETS: Final = (
    Asc.POWER_ON_OCCURRED,
    Asc.DEVICE_INTERNAL_RESET,
    Asc.SCSI_BUS_RESET_OCCURRED,
    Asc.BUS_DEVICE_RESET_FUNCTION_OCCURRED,
    Asc.I_T_NEXUS_LOSS_OCCURRED,
)
"""Unit attention precedence, highest first; all others come after these (SAM-6)."""


class Abort(Protocol):
    """Begins at once to end the commands of a nexus; how many there were, once they are complete.

    They end with `status`, or as the transport says that a command was aborted. `until`: only
    those with this stamp or a lower one (`_dataplane.Notice`).
    """

    def __call__(
        self, *, status: Status | None = None, until: int | None = None
    ) -> Awaitable[int]: ...


async def _no_commands(*, status: Status | None = None, until: int | None = None) -> int:
    return 0


class Nexus:
    """Unit attention conditions pending here, and the gate that they and reservations close.

    `on_attention` is called with each code as it is established. `abort` is the transport's.
    `port_group`: the target port group of its target port.
    """

    def __init__(self, unit: LogicalUnit, name: NexusId, port_group: int) -> None:
        self.unit = unit
        self.id: Final = name
        self.port_group: Final = port_group
        self.data_plane: Final = _dataplane.Nexus(unit.data_plane)
        self.on_attention: Callable[[Asc], None] | None = None
        self.abort: Abort = _no_commands
        self.copies: Final = CopyResults()
        self.operations: Final = CopyOperations()
        self._pending: list[Asc] = []
        self._information: dict[Asc, int] = {}
        self._deferred: ScsiError | None = None
        self._unsettled: set[asyncio.Task[object]] = set()
        self.echo: bytes | None = None
        """The echo buffer, once it is written (SPC-4 6.49.9)."""
        self._observed = False
        self.prevents_removal = False
        """PREVENT of PREVENT ALLOW MEDIUM REMOVAL (SPC-6)."""
        self.establish(Asc.POWER_ON_OCCURRED)

    @property
    def pending(self) -> tuple[Asc, ...]:
        """Unit attention conditions in the order in which they will be reported."""
        return tuple(self._pending)

    @property
    def access_state(self) -> AccessState:
        """Of the unit through this nexus's target port."""
        return self.unit.port_groups.status(self.port_group).state

    def refusal(self, flags: Flag) -> ScsiError | None:
        """Why a command with these flags is not processed now."""
        return self.access_state.refusal(flags) or self.unit.refusal(flags)

    def establish(self, code: Asc, information: int | None = None) -> None:
        """Establishes a unit attention condition, once; no media command overtakes it.

        A reset takes the place of those of lower precedence, whose effects it includes.
        `information`: of the sense data; the last one stands.
        """
        if information is not None:
            self._information[code] = information
        if code in _RESETS:
            reset = [pending for pending in self._pending if pending in _RESETS]
            best = min([code, *reset], key=_RESETS.index)
            others = [pending for pending in self._pending if pending not in _RESETS]
            self._pending = [best, *others]
        elif code not in self._pending:
            self._pending.append(code)
        self.update_gate()
        if self.on_attention is not None:
            self.on_attention(code)

    def defer(self, error: ScsiError) -> None:
        """The next command reports this error of one that has its status already (SPC-6)."""
        self.unit.errors.note(error)
        self._deferred = ScsiError(error.key, error.code, deferred=True)
        self.update_gate()

    def settle_after(self, task: asyncio.Task[object]) -> None:
        """Commands that report unit attention conditions wait for `task`: it may establish one,
        and its cause shows before it ends."""
        self._unsettled.add(task)
        self.update_gate()
        task.add_done_callback(self._settle)

    def _settle(self, task: asyncio.Task[object]) -> None:
        self._unsettled.remove(task)
        self.update_gate()

    def settled(self) -> Awaitable[None] | None:
        """What a command has to wait for before it takes a unit attention condition."""
        return self._wait_settled() if self._unsettled else None

    async def _wait_settled(self) -> None:
        while self._unsettled:
            await asyncio.wait(self._unsettled)

    def take(self) -> ScsiError | None:
        """The unit attention or deferred error to report now; it is pending no more."""
        error = None
        if self._pending:
            code = self._pending.pop(0)
            information = self._information.pop(code, None)
            error = ScsiError(SenseKey.UNIT_ATTENTION, code, information=information)
        elif self._deferred is not None:
            error, self._deferred = self._deferred, None
        elif self.data_plane.take_lost():
            error = ScsiError(SenseKey.MEDIUM_ERROR, Asc.WRITE_ERROR, deferred=True)
        self.update_gate()
        return error

    def running_copies(self) -> dict[int, CopyRun]:
        """By list identifier: 32 bits, of which 8-bit ones are the lower (SPC-4 5.17.4.2)."""
        return {**self.copies.running(), **self.operations.running()}

    def abort_copies(self) -> list[CopyRun]:
        """As COPY OPERATION ABORT does; those that are still to end."""
        runs = list(self.running_copies().values())
        for run in runs:
            run.abort()
        return runs

    def forget_copies(self) -> None:
        """Reset or nexus loss: nobody can ask any more what became of copies that are over."""
        self.copies.forget()
        self.operations.forget()

    def lost(self) -> None:
        """I_T nexus loss (SAM-6): what was only for as long as the nexus is there."""
        self.prevents_removal = False
        self.echo = None
        self.forget_copies()
        self.data_plane.clear_aca()
        self.unit.reservations.lost(self)

    def clear(self, code: Asc) -> None:
        """Forgets a condition without reporting it."""
        if code in self._pending:
            self._pending.remove(code)
            self.update_gate()

    def observe(self, on: bool) -> None:
        """Whether every command comes to Python, so that somebody sees it."""
        self._observed = on
        self.update_gate()

    def update_gate(self) -> None:
        """Media commands come to Python while there is something to report, while the unit or the
        way to it is not ready, and those of the classes that a reservation excludes."""
        ready = self.unit.fast and self.access_state.active
        lost = self.data_plane.lost
        if (
            self._pending
            or self._deferred
            or lost
            or self._unsettled
            or self._observed
            or not ready
        ):
            closed = _dataplane.CLASS_ALL
        else:
            closed = self.unit.reservations.closed_classes(self)
            if self.unit.bad_blocks:
                closed |= _dataplane.CLASS_WRITE
        self.data_plane.close(closed)
        self.data_plane.open(_dataplane.CLASS_ALL & ~closed)
