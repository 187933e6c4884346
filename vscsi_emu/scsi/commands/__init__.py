"""Every command, one module a family. A new declaration in a family is in the table by itself."""

from typing import Final

from vscsi_emu.scsi.cdb import CommandType
from vscsi_emu.scsi.commands import (
    background,
    buffer,
    capacity,
    copy,
    defects,
    diagnostic,
    format_unit,
    identifying,
    inquiry,
    log,
    media,
    mode,
    persistent,
    port_groups,
    power,
    priority,
    report,
    reserve,
    sanitize,
    security,
    sense,
    timestamp,
    token,
)

_FAMILIES: Final = (
    background,
    buffer,
    capacity,
    copy,
    defects,
    diagnostic,
    format_unit,
    identifying,
    inquiry,
    log,
    media,
    mode,
    persistent,
    port_groups,
    power,
    priority,
    report,
    reserve,
    sanitize,
    security,
    sense,
    timestamp,
    token,
)

ALL: Final = tuple(
    entry
    for family in _FAMILIES
    for entry in vars(family).values()
    if isinstance(entry, CommandType)
)
