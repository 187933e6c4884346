"""What Debian's tshark makes of a capture, without settings or plugins."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

tshark = pytest.mark.skipif(shutil.which("tshark") is None, reason="tshark is not installed")


def dissect(path: Path, *fields: str, only: str = "") -> list[list[str]]:
    """A row a packet that the display filter `only` passes."""
    command = ["tshark", "-r", str(path), "-T", "fields", "-E", "separator=|"]
    command += ["-Y", only] if only else []
    for field in fields:
        command += ["-e", field]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    # A field that a packet has twice, in two layers, has the same value in both.
    return [
        [",".join(dict.fromkeys(cell.split(","))) if "queue" not in cell else cell for cell in row]
        for row in (line.split("|") for line in result.stdout.splitlines())
    ]
