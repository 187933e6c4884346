"""What a logical unit remembers over restarts."""

from __future__ import annotations

import logging
from typing import Any, Protocol

from vscsi_emu.scsi.sense import Asc, ScsiError, SenseKey

log = logging.getLogger(__name__)


class SavedStateError(ValueError):
    """What was saved contradicts itself, or no version of this program wrote it."""


class StateStore(Protocol):
    """Named sections of JSON values, one store a unit."""

    def load(self, section: str) -> Any:
        """What was saved last; None for nothing."""

    async def save(self, section: str, value: Any) -> None:
        """Durable on return; None forgets. `OSError` where it cannot be written: the old value is
        then still there."""


def load(store: StateStore | None, section: str) -> Any:
    """What was saved last; None for nothing, or without a store."""
    return store.load(section) if store is not None else None


async def save(store: StateStore | None, section: str, value: Any) -> None:
    """Before anybody sees it: what was acknowledged is never lost. Without a store nothing is
    saved. `ScsiError` HARDWARE ERROR where that fails."""
    if store is None:
        return
    try:
        await store.save(section, value)
    except OSError as error:
        log.error("%s cannot be saved: %s", section, error)
        raise ScsiError(SenseKey.HARDWARE_ERROR, Asc.INTERNAL_TARGET_FAILURE) from error
