"""What all tests share: the plugins of `tests.plugins`, and where downloads are kept."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.plugins.guests import Guests
from tests.plugins.normative import Normative

pytest_plugins = ["pytester"]

TESTS = Path(__file__).parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--normative-update",
        action="store_true",
        help="write tests/conformance/proven.txt from this run",
    )


def pytest_configure(config: pytest.Config) -> None:
    os.environ.setdefault("VSCSI_EMU_CACHE", str(TESTS.parent / ".cache"))
    conformance = TESTS / "conformance"
    table, proven = conformance / "normative.tsv", conformance / "proven.txt"
    config.pluginmanager.register(Normative(config, table, proven))
    config.pluginmanager.register(Guests())
