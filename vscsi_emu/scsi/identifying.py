"""Identifying information: what applications call a unit, kept over restarts (SPC-4 5.6)."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from vscsi_emu.scsi.sense import Asc, invalid_field_in_parameter_list
from vscsi_emu.scsi.store import SavedStateError, StateStore, load, save

if TYPE_CHECKING:
    from vscsi_emu.scsi.nexus import Nexus
    from vscsi_emu.scsi.unit import LogicalUnit

PERIPHERAL: Final = 0b0000000
TEXT: Final = 0b0000010
MAX_BYTES: Final[Mapping[int, int]] = MappingProxyType({PERIPHERAL: 512, TEXT: 256})
"""By INFORMATION TYPE: the longest that the standard has."""

_SECTION: Final = "identifying-information"


class IdentifyingInformation:
    """Of one unit, by INFORMATION TYPE; empty until it is set.

    `store` None: it lives as long as the unit does. Raises `SavedStateError`.
    """

    def __init__(self, unit: LogicalUnit, store: StateStore | None) -> None:
        self._unit = unit
        self._store = store
        self._lock = asyncio.Lock()
        saved = load(store, _SECTION)
        self._values = _from_json(saved) if saved is not None else {}

    def __getitem__(self, kind: int) -> bytes:
        return self._values.get(kind, b"")

    async def set(self, kind: int, value: bytes, *, by: Nexus) -> None:
        """Saved, then in force. `ScsiError` for a text that is none, or if it cannot be saved."""
        if kind == TEXT:
            _check_text(value)
        async with self._lock:
            if value == self[kind]:
                return
            values = {**self._values, kind: value}
            values = {kind: value for kind, value in values.items() if value}
            await save(self._store, _SECTION, _to_json(values) or None)
            self._values = values
            self._unit.establish(Asc.DEVICE_IDENTIFIER_CHANGED, but=by)


def _check_text(value: bytes) -> None:
    """UTF-8 with one NUL, at its end; nothing at all takes the text away."""
    if not value:
        return
    try:
        value.decode()
    except UnicodeDecodeError as error:
        raise invalid_field_in_parameter_list(error.start) from None
    if (end := value.find(0)) != len(value) - 1:
        raise invalid_field_in_parameter_list(end if end >= 0 else len(value) - 1)


def _to_json(values: Mapping[int, bytes]) -> dict[str, str]:
    return {f"{kind:07b}": value.hex() for kind, value in values.items()}


def _from_json(saved: object) -> dict[int, bytes]:
    try:
        if not isinstance(saved, dict):
            raise TypeError(type(saved).__name__)
        values = {int(kind, 2): bytes.fromhex(value) for kind, value in saved.items()}
        if any(len(value) > MAX_BYTES[kind] for kind, value in values.items()):
            raise ValueError("too long")
    except (KeyError, TypeError, ValueError) as error:
        raise SavedStateError(f"saved identifying information is damaged: {error!r}") from None
    return values
