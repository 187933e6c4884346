"""Where commands print their tables."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rich.console import Console

_WIDE: Final = 1000


def table_console() -> Console:
    """Of the terminal's width; in a pipe or a file no line is wrapped: tools read it."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else _WIDE)
