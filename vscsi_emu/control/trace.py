"""Commands as they ended: what the data plane records of them, for people and programs."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from vscsi_emu import _dataplane
from vscsi_emu.control.decode import describe_cdb, describe_sense
from vscsi_emu.control.statistics import response_name, status_name
from vscsi_emu.scsi.cdb import filter_of
from vscsi_emu.virtio.scsi import decode_lun, show_address

if TYPE_CHECKING:
    from vscsi_emu.scsi.unit import LogicalUnit
    from vscsi_emu.service import Service

MAX_DATA: Final = 1 << 16
"""Most bytes of data kept of a command."""
CAPACITY: Final = 16384
"""Records kept in each worker until they are taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedCommand:
    """A command as it ended. Bytes are in hexadecimal."""

    time: int
    """When its response was written, in nanoseconds since the epoch."""
    nanoseconds: int
    """From where it was taken from its queue until then."""
    hba: str
    queue: int
    """Index of its virtqueue."""
    lun: str
    """The request's 8-byte lun field (virtio 1.4, 5.6.6.1)."""
    tag: int
    task_attribute: int
    """``VIRTIO_SCSI_S_SIMPLE`` and so on."""
    cdb: str
    data_out_length: int
    """Bytes of the buffer."""
    data_in_length: int
    data_out_moved: int
    """Bytes that the command moved."""
    data_in_moved: int
    status: int
    """SAM status."""
    response: int
    """``VIRTIO_SCSI_S_*``."""
    sense: str
    data: str
    """The first bytes of what was moved, if that was asked for."""

    @property
    def address(self) -> str:
        """TARGET:LUN, or the lun field where that names none."""
        address = decode_lun(bytes.fromhex(self.lun))
        return self.lun if address is None else show_address(address)

    @property
    def good(self) -> bool:
        return self.status == 0 and self.response == 0

    @property
    def outcome(self) -> str:
        """Response, status and sense as text."""
        if self.response:
            return response_name(self.response)
        sense = f" {describe_sense(bytes.fromhex(self.sense))}" if self.sense else ""
        return f"{status_name(self.status)}{sense}"

    def __str__(self) -> str:
        """A line for people."""
        moved = self.data_out_moved + self.data_in_moved
        length = self.data_out_length + self.data_in_length
        amount = f"{moved}" if moved == length else f"{moved} of {length}"
        return (
            f"{self.address} {describe_cdb(bytes.fromhex(self.cdb))} → {self.outcome} "
            f"({amount} bytes, {self.nanoseconds / 1000:.1f} µs)"
        )


class Tracing:
    """A trace of a service's commands, until `end`. For the service's event loop."""

    def __init__(
        self,
        service: Service,
        *,
        units: Iterable[LogicalUnit] = (),
        opcodes: Iterable[int] = (),
        errors: bool = False,
        min_latency: float = 0.0,
        data_bytes: int = 0,
        capacity: int = CAPACITY,
        keep_newest: bool = False,
    ) -> None:
        """What it is of: these units and commands, by `CommandType.code` (none: all); `errors`:
        commands that did not end well; at least `min_latency` seconds. `keep_newest`: where there
        is no room for all of them, old ones go."""
        self._names = {hba.port: hba.name for hba in service.hbas}
        self._epoch = time.time_ns() - time.monotonic_ns()
        self._trace = _dataplane.Trace(
            capacity,
            units=[unit.data_plane for unit in units],
            **filter_of(opcodes),
            errors=errors,
            min_nanoseconds=round(min_latency * 1e9),
            data_bytes=data_bytes,
            keep_newest=keep_newest,
        )
        service.trace(self._trace)

    def take(self) -> tuple[list[TracedCommand], int]:
        """Commands since the last call, in the order in which they ended, and how many records
        were lost."""
        return [self._command(record) for record in self._trace.take()], self._trace.take_lost()

    def peek(self) -> list[TracedCommand]:
        """The commands that are kept now. They stay."""
        return [self._command(record) for record in self._trace.peek()]

    def end(self) -> None:
        self._trace.end()

    def _command(self, record: _dataplane.TraceRecord) -> TracedCommand:
        return TracedCommand(
            time=record.time + self._epoch,
            nanoseconds=record.nanoseconds,
            hba=self._names.get(record.port, "?"),
            queue=record.queue,
            lun=record.lun.hex(),
            tag=record.tag,
            task_attribute=record.task_attribute,
            cdb=record.cdb.hex(),
            data_out_length=record.data_out_length,
            data_in_length=record.data_in_length,
            data_out_moved=record.data_out_moved,
            data_in_moved=record.data_in_moved,
            status=record.status,
            response=record.response,
            sense=record.sense.hex(),
            data=record.data.hex(),
        )


class Recent:
    """The last commands of the HBAs of this process, cheap enough to be always on in tests.

    with InProcess(config) as machine, Recent(machine.service) as recent:
        …
        print(*recent(20), sep="\\n")
    """

    def __init__(self, service: Service, *, keep: int = 256, data_bytes: int = 0) -> None:
        """`keep`: commands of each worker. `service` must be running when this is entered."""
        self._service = service
        self._keep = keep
        self._data_bytes = data_bytes

    def __enter__(self) -> Self:
        self._tracing = Tracing(
            self._service, capacity=self._keep, data_bytes=self._data_bytes, keep_newest=True
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._tracing.end()

    def __call__(self, count: int = 20) -> list[TracedCommand]:
        """The last `count` commands, oldest first. From any thread, also when the HBAs are gone."""
        return self._tracing.peek()[-count:]
