"""Every command, one module a family. A new declaration in a family is in the table by itself."""

from collections.abc import Iterable
from types import ModuleType
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

_PRIMARY: Final = (inquiry, persistent, report, reserve, sense)
"""Families that do not depend on the peripheral device type."""


def _declared(families: Iterable[ModuleType]) -> tuple[CommandType, ...]:
    return tuple(
        entry
        for family in families
        for entry in vars(family).values()
        if isinstance(entry, CommandType)
    )


ALL: Final = _declared(_FAMILIES)
PRIMARY: Final = _declared(_PRIMARY)
