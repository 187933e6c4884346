"""Kinds of devices other than disks, in Python: see `Device`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Final, cast

from vscsi_emu import _dataplane
from vscsi_emu.scsi.cdb import Allowed, Cdb, CommandType, Feature, Field, Flag, Handler, command
from vscsi_emu.scsi.peripheral import Peripheral
from vscsi_emu.scsi.table import device_table
from vscsi_emu.scsi.unit import LogicalUnit

if TYPE_CHECKING:
    from vscsi_emu.scsi.identity import Identity
    from vscsi_emu.scsi.request import Request

_NO_MEDIUM: Final = 512
"""Bytes of the medium that the data plane knows of: no command of a device goes there."""

Method = Callable[[Any, "Request"], "bytes | Awaitable[bytes]"]
"""A `Device`'s; answers a command with its data-in; raises `ScsiError`."""


class Device:
    """A device of any peripheral type. Served as ``python:MODULE:CLASS`` or
    ``python:FILE.py:CLASS``; the key ``argument=TEXT``, if given, is the class's one argument.

    Its commands are methods, declared by `device_command`. What all devices have is there already,
    unless a method takes its place: INQUIRY, REPORT LUNS, REQUEST SENSE, TEST UNIT READY,
    reservations, and reports of what is supported. Methods run on the event loop: one that has to
    wait is `async`.
    """

    peripheral: ClassVar[Peripheral]
    """What INQUIRY says it is."""
    product: ClassVar[str] = "Virtual device"
    """PRODUCT IDENTIFICATION, unless the user names another; at most 16 characters."""
    removable: ClassVar[bool] = False
    """RMB of INQUIRY."""

    def reset(self) -> None:
        """After a logical unit reset: commands that waited were aborted."""

    def close(self) -> None:
        """After the last command. Everything else waits for it."""


def device_command(
    name: str,
    opcode: int,
    length: int,
    *,
    service_action: int | None = None,
    flags: Flag = Flag.NEEDS_READY,
    allowed: Allowed | Callable[[Cdb], Allowed] = Allowed.NONE,
    **fields: Field,
) -> Callable[[Method], CommandType]:
    """Declares a command that the decorated method of a `Device` handles, as `cdb.command` does for
    a function."""
    declare = command(
        name,
        opcode,
        length,
        service_action=service_action,
        flags=flags,
        allowed=allowed,
        **fields,
    )
    return cast(Callable[[Method], CommandType], declare)


class DeviceUnit(LogicalUnit):
    """The logical unit that a `Device` is."""

    def __init__(
        self,
        device: Device,
        identity: Identity,
        *,
        quiesce: Callable[[_dataplane.Lu], Awaitable[None]],
    ) -> None:
        self.device: Final = device
        super().__init__(
            _dataplane.Engine.null(_NO_MEDIUM),
            identity,
            block_size=_NO_MEDIUM,
            removable=device.removable,
            peripheral=device.peripheral,
            commands=device_table(Feature.ACA, _commands(device)),
            quiesce=quiesce,
        )

    def reset(self) -> None:
        super().reset()
        self.device.reset()


def _commands(device: Device) -> Iterator[CommandType]:
    """Bound to `device`. A subclass's declaration takes the place of one by the same name."""
    for name in dir(type(device)):
        entry = getattr(type(device), name)
        if isinstance(entry, CommandType):
            handler = cast(Handler, partial(cast(Method, entry.handler), device))
            yield replace(entry, handler=handler)
