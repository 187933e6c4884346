"""Counts tests that found no guest to run in, and fails them where guests are required."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Generator

import pytest

REQUIRE = "VSCSI_EMU_REQUIRE_GUESTS"
MARKER = "guest"


class Guests:
    """The plugin. A test with the marker ``guest`` that is skipped counts."""

    def __init__(self) -> None:
        self._skipped: Counter[str] = Counter()
        self._run = 0

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        if item.get_closest_marker(MARKER) is None or hasattr(report, "wasxfail"):
            return report
        if report.skipped:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
            self._skipped[reason.removeprefix("Skipped: ")] += 1
            if os.environ.get(REQUIRE):
                report.outcome = "failed"
                report.longrepr = f"{REQUIRE} is set, but the guest was skipped: {reason}"
        elif report.when == "call":
            self._run += 1
        return report

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self._run and not self._skipped:
            return
        skipped = self._skipped.total()
        terminalreporter.write_line(f"guests: {self._run} tests run, {skipped} skipped")
        for reason, count in self._skipped.items():
            terminalreporter.write_line(f"    {count} skipped: {reason}", yellow=True)
