"""What a logical unit remembers over restarts."""

from __future__ import annotations

from typing import Any, Protocol


class SavedStateError(ValueError):
    """What was saved contradicts itself, or no version of this program wrote it."""


class StateStore(Protocol):
    """Named sections of JSON values, one store a unit."""

    def load(self, section: str) -> Any:
        """What was saved last; None for nothing."""

    async def save(self, section: str, value: Any) -> None:
        """Durable on return; None forgets. `OSError` where it cannot be written: the old value is
        then still there."""
