"""Every command, one module a family. A new declaration in a family is in the table by itself."""

from typing import Final

from vscsi_emu.scsi.cdb import CommandType
from vscsi_emu.scsi.commands import (
    capacity,
    copy,
    defects,
    diagnostic,
    format_unit,
    inquiry,
    log,
    media,
    mode,
    persistent,
    power,
    report,
    reserve,
    sanitize,
    sense,
    token,
)

_FAMILIES: Final = (
    capacity,
    copy,
    defects,
    diagnostic,
    format_unit,
    inquiry,
    log,
    media,
    mode,
    persistent,
    power,
    report,
    reserve,
    sanitize,
    sense,
    token,
)

ALL: Final = tuple(
    entry
    for family in _FAMILIES
    for entry in vars(family).values()
    if isinstance(entry, CommandType)
)
