"""A command on its way through: what came, and the one answer it gets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from vscsi_emu.scsi.cdb import Cdb
from vscsi_emu.scsi.nexus import Nexus
from vscsi_emu.scsi.sense import DataOutTooShort, ScsiError
from vscsi_emu.scsi.status import Status
from vscsi_emu.scsi.target import Target
from vscsi_emu.scsi.unit import LogicalUnit


class Command(Protocol):
    """What `handle` needs of `_dataplane.Command`."""

    @property
    def cdb(self) -> bytes: ...
    @property
    def data_out(self) -> bytes: ...
    def finish(self, status: int, *, data_in: bytes = b"", sense: bytes = b"") -> None: ...
    def execute(self) -> None: ...
    def fail(self, response: int) -> None: ...


class Reply:
    """Answers a command exactly once."""

    def __init__(self, command: Command, nexus: Nexus | None) -> None:
        self._command = command
        self.nexus = nexus
        self.given = False

    def good(self, data: bytes = b"") -> None:
        self.given = True
        self._command.finish(Status.GOOD, data_in=data)

    def check_condition(self, error: ScsiError) -> None:
        """In the sense data format that the logical unit is set to."""
        if self.nexus is not None and not error.deferred:
            self.nexus.unit.errors.note(error)
        descriptor = self.nexus is not None and self.nexus.unit.descriptor_sense
        self.given = True
        sense = error.sense(descriptor=descriptor)
        self._command.finish(Status.CHECK_CONDITION, data_in=error.data, sense=sense)

    def conflict(self) -> None:
        """A reservation of another nexus excludes the command."""
        self.given = True
        self._command.finish(Status.RESERVATION_CONFLICT)

    def relay(self, response: int, status: int, sense: bytes) -> None:
        """What a device behind the unit said of a command that it did not do."""
        self.given = True
        if response:
            self._command.fail(response)
        else:
            self._command.finish(status, sense=sense)

    def aca_active(self) -> None:
        """The ACA condition of another nexus excludes the command."""
        self.given = True
        self._command.finish(Status.ACA_ACTIVE)

    def execute(self) -> None:
        """Hands a media command to the data plane."""
        self.given = True
        self._command.execute()


class Request:
    """What a handler gets. `target` and `lun` say what was addressed."""

    def __init__(
        self, command: Command, target: Target, lun: int | None, cdb: Cdb, reply: Reply
    ) -> None:
        self._command = command
        self.target = target
        self.lun = lun
        self.cdb = cdb
        self.reply = reply

    @property
    def nexus(self) -> Nexus:
        """`LookupError` where no logical unit was addressed."""
        nexus = self.target.find(self.lun)
        if nexus is None:
            raise LookupError("no logical unit is addressed")
        return nexus

    @property
    def unit(self) -> LogicalUnit:
        """The nexus's logical unit."""
        return self.nexus.unit

    @property
    def data_out(self) -> bytes:
        """All of it, at most the first MiB; for commands whose CDB has no length."""
        return self._command.data_out

    def parameter_list(self) -> bytes:
        """As many bytes of data-out as PARAMETER LIST LENGTH says."""
        length = self.cdb["parameter_list_length"]
        data = self._command.data_out[:length]
        if len(data) < length:
            raise DataOutTooShort(f"PARAMETER LIST LENGTH {length}, data-out {len(data)} bytes")
        return data

    def limit(self, data: bytes) -> bytes:
        """Data-in cut to ALLOCATION LENGTH (SPC-6)."""
        if "allocation_length" not in self.cdb.command.fields:
            return data
        return data[: self.cdb["allocation_length"]]


def began(request: Request, *, immed: bool) -> Callable[[], None]:
    """What to call when an operation is under way: with IMMED, its status is GOOD then."""
    return request.reply.good if immed else lambda: None
