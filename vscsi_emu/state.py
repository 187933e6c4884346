"""The file that a logical unit remembers its state in: small, JSON, replaced atomically."""

from __future__ import annotations

import asyncio
import json
import os
from contextlib import suppress
from typing import Any, Final

_FORMAT: Final = 1
_MAX_BYTES: Final = 1 << 20
"""Far more than a unit remembers; a file that is larger is not ours."""


class StateError(Exception):
    """A state file that cannot be used; one line that names it and the fix."""


class StateFile:
    """A `scsi.store.StateStore` in the file at `path`, which is there while it has a section."""

    def __init__(self, path: str) -> None:
        self.path: Final = path
        self._lock = asyncio.Lock()
        self._sections = _read(path)

    def load(self, section: str) -> Any:
        return self._sections.get(section)

    async def save(self, section: str, value: Any) -> None:
        async with self._lock:
            sections = {**self._sections, section: value}
            sections = {name: kept for name, kept in sections.items() if kept is not None}
            if sections != self._sections:
                await asyncio.to_thread(_write, self.path, sections)
                self._sections = sections


def _read(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            document = json.loads(file.read(_MAX_BYTES + 1))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise StateError(f"{path}: {error.strerror}; name another file with state=") from None
    except ValueError:
        raise StateError(f"{path} is no state file; remove it, or name another with state=") from (
            None
        )
    if not isinstance(document, dict) or document.get("format") != _FORMAT:
        raise StateError(f"{path} is of another version; remove it, or name another with state=")
    sections = document.get("sections")
    if not isinstance(sections, dict):
        raise StateError(f"{path} is damaged; remove it, or name another with state=")
    return sections


def _write(path: str, sections: dict[str, Any]) -> None:
    """Old or new, never half of it, whatever moment the power fails at."""
    directory = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if sections:
            _replace(path, json.dumps({"format": _FORMAT, "sections": sections}, indent=1))
        else:
            with suppress(FileNotFoundError):
                os.unlink(path)
        os.fsync(directory)
    finally:
        os.close(directory)


def _replace(path: str, text: str) -> None:
    draft = f"{path}.new"
    with open(draft, "w", encoding="ascii") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)
