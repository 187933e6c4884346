"""Counts tests that found no guest to run in, and fails them where guests are required."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Generator

import pytest

REQUIRE = "VSCSI_EMU_REQUIRE_GUESTS"
MARKER = "guest"
_SKIPPED = "guest skipped"


class Guests:
    """The plugin. A test with the marker ``guest`` that is skipped counts."""

    def __init__(self) -> None:
        self._skipped: Counter[str] = Counter()
        self._run = 0

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            if item.get_closest_marker(MARKER) is not None:
                # With its reports it comes from pytest-xdist's workers too.
                item.user_properties.append((MARKER, True))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        if item.get_closest_marker(MARKER) is None or hasattr(report, "wasxfail"):
            return report
        if report.skipped:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
            report.user_properties.append((_SKIPPED, reason.removeprefix("Skipped: ")))
            if os.environ.get(REQUIRE):
                report.outcome = "failed"
                report.longrepr = f"{REQUIRE} is set, but the guest was skipped: {reason}"
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        said = dict(report.user_properties)
        if _SKIPPED in said:
            self._skipped[str(said[_SKIPPED])] += 1
        elif MARKER in said and report.when == "call":
            self._run += 1

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self._run and not self._skipped:
            return
        skipped = self._skipped.total()
        terminalreporter.write_line(f"guests: {self._run} tests run, {skipped} skipped")
        for reason, count in self._skipped.items():
            terminalreporter.write_line(f"    {count} skipped: {reason}", yellow=True)
