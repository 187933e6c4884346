"""I_T_L nexus: what one initiator port's way to a logical unit remembers (SAM-6 5.14)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

from vscsi_emu import _dataplane
from vscsi_emu.scsi.copy_results import CopyResults
from vscsi_emu.scsi.persistent import NexusId
from vscsi_emu.scsi.sense import Asc, ScsiError, SenseKey

if TYPE_CHECKING:
    from vscsi_emu.scsi.unit import LogicalUnit

_RESETS: Final = (
    Asc.POWER_ON_OCCURRED,
    Asc.DEVICE_INTERNAL_RESET,
    Asc.SCSI_BUS_RESET_OCCURRED,
    Asc.BUS_DEVICE_RESET_FUNCTION_OCCURRED,
    Asc.I_T_NEXUS_LOSS_OCCURRED,
)
"""Unit attention precedence, highest first; all others come after these (SAM-6 5.14.2)."""


async def _no_commands() -> int:
    return 0


class Nexus:
    """Unit attention conditions pending here, and the gate that they and reservations close.

    `on_attention` is called with each code as it is established. `abort()` ends the commands of
    this nexus, and says how many there were once they are complete.
    """

    def __init__(self, unit: LogicalUnit, name: NexusId) -> None:
        self.unit = unit
        self.id: Final = name
        self.data_plane: Final = _dataplane.Nexus(unit.data_plane)
        self.on_attention: Callable[[Asc], None] | None = None
        self.abort: Callable[[], Awaitable[int]] = _no_commands
        self.copies: Final = CopyResults()
        self._pending: list[Asc] = []
        self._deferred: ScsiError | None = None
        self._observed = False
        self.prevents_removal = False
        """PREVENT of PREVENT ALLOW MEDIUM REMOVAL (SPC-6 6.18)."""
        self.establish(Asc.POWER_ON_OCCURRED)

    @property
    def pending(self) -> tuple[Asc, ...]:
        """Unit attention conditions in the order in which they will be reported."""
        return tuple(self._pending)

    def establish(self, code: Asc) -> None:
        """Establishes a unit attention condition, once; no media command overtakes it.

        A reset takes the place of those of lower precedence, whose effects it includes.
        """
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
        """The next command reports this error of one that has its status already (SPC-6 4.4.8)."""
        self._deferred = ScsiError(error.key, error.code, deferred=True)
        self.update_gate()

    def take(self) -> ScsiError | None:
        """The unit attention or deferred error to report now; it is pending no more."""
        error = None
        if self._pending:
            error = ScsiError(SenseKey.UNIT_ATTENTION, self._pending.pop(0))
        elif self._deferred is not None:
            error, self._deferred = self._deferred, None
        self.update_gate()
        return error

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
        """Media commands come to Python while there is something to report, while not ready, and
        those of the classes that a reservation excludes."""
        if self._pending or self._deferred or self._observed or not self.unit.fast:
            closed = _dataplane.CLASS_ALL
        else:
            closed = self.unit.reservations.closed_classes(self)
        self.data_plane.close(closed)
        self.data_plane.open(_dataplane.CLASS_ALL & ~closed)
