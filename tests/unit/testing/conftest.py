"""A place for temporary files whose name leaves room for sockets, however pytest is run."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def short_path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="vscsi-", dir="/tmp") as directory:
        yield Path(directory)
