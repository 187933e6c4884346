"""Faults for tests: of a server's process, or of an HBA in this process.

with HbaProcess(["mem:64M"], monitor=True) as hba, injected(hba, "0:0", "hang") as fault:
    ...
    assert fault.hits == 1
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from vscsi_emu.control.faces import SyncFace
    from vscsi_emu.control.results import FaultState
    from vscsi_emu.faults.vocabulary import KindName


class Controlled(Protocol):
    """`HbaProcess` with a monitor, or `InProcess`."""

    @property
    def control(self) -> SyncFace: ...


class InjectedFault:
    """A fault that is in effect."""

    def __init__(self, control: SyncFace, state: FaultState) -> None:
        self._control = control
        self._last = state

    @property
    def id(self) -> int:
        """As in `fault.list`."""
        return self._last.id

    @property
    def state(self) -> FaultState:
        """As it is now, or was at the end."""
        for state in self._control.fault_list():
            if state.id == self.id:
                self._last = state
        return self._last

    @property
    def hits(self) -> int:
        """Commands, or task management functions, that it took."""
        return self.state.hits

    @property
    def met(self) -> int:
        """Those that it is for, whether or not their number was."""
        return self.state.met

    def release(self) -> None:
        """What hangs goes on; what comes still hangs."""
        self._control.fault_release(self.id)

    def remove(self) -> None:
        """Ends it. Idempotent."""
        if any(state.id == self.id for state in self._control.fault_list()):
            self._last = self._control.fault_remove(self.id)


def inject(hba: Controlled, lun: str, kind: KindName, **fields: Any) -> InjectedFault:
    """From now on commands of `lun`, TARGET:LUN or an id, go wrong. `fields`: those of
    `vscsi_emu.faults.Fault`. An `RpcError` or, in this process, an `OperationError` says what is
    wrong with them."""
    control = hba.control
    return InjectedFault(control, control.fault_add(lun, kind, **fields))


@contextmanager
def injected(hba: Controlled, lun: str, kind: KindName, **fields: Any) -> Iterator[InjectedFault]:
    """As `inject`, until the context is left."""
    fault = inject(hba, lun, kind, **fields)
    try:
        yield fault
    finally:
        fault.remove()
