"""Counts the normative statements that tests prove, and lets the count only grow.

``@pytest.mark.normative("split.d3", …)`` names rows of ``conformance/normative.tsv``; one that is
not there is an error. A row is proven when a test that names it passed and none failed. Rows that
were proven once stand in ``conformance/proven.txt``; a full run that no longer proves one fails.
``--normative-update`` writes that file anew.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

MARKER = "normative"
# What they deselect, only a worker is told.
_SELECTING = ("markexpr", "keyword", "deselect")


def read_rows(table: Path) -> dict[str, str]:
    """Side of every row id."""
    with table.open(newline="") as handle:
        reader = csv.DictReader(handle, dialect="excel-tab", quoting=csv.QUOTE_NONE)
        return {row["id"]: row["side"] for row in reader}


class Normative:
    """The plugin; `table` and `proven` are the two files."""

    def __init__(self, config: pytest.Config, table: Path, proven: Path) -> None:
        self._config = config
        self._rows = read_rows(table)
        self._floor_file = proven
        self._passed: set[str] = set()
        self._failed: set[str] = set()
        self._skipped: set[str] = set()
        self._deselected = False
        self._lost: set[str] = set()

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        unknown = []
        for item in items:
            ids = {row for mark in item.iter_markers(MARKER) for row in mark.args}
            unknown += [f"{item.nodeid}: {row}" for row in sorted(ids - self._rows.keys())]
            # With its reports they come from pytest-xdist's workers too.
            item.user_properties.append((MARKER, " ".join(sorted(ids))))
        if unknown:
            raise pytest.UsageError("rows that are not in normative.tsv:\n" + "\n".join(unknown))

    def pytest_deselected(self) -> None:
        self._deselected = True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        said = dict(report.user_properties)
        ids = set(str(said.get(MARKER, "")).split())
        if report.failed:
            self._failed |= ids
        elif report.skipped:
            self._skipped |= ids
        elif report.when == "call":
            self._passed |= ids

    @property
    def proven(self) -> set[str]:
        """Rows that this run proved."""
        return (self._passed - self._failed) & self._rows.keys()

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if not self._full_run(session):
            return
        if self._config.getoption("--normative-update"):
            self._floor_file.write_text("".join(f"{row}\n" for row in sorted(self.proven)))
            return
        # What was skipped says nothing; where it must not be skipped, that is an error itself.
        self._lost = self._floor() - self.proven - self._skipped
        if self._lost and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._lost:
            terminalreporter.section("normative rows that are proven no more", red=True)
            for row in sorted(self._lost):
                terminalreporter.write_line(row)
        for line in self._summary():
            terminalreporter.write_line(line)

    def _summary(self) -> Iterator[str]:
        proven = Counter(self._rows[row] for row in self.proven)
        total = Counter(self._rows.values())
        sides = ", ".join(f"{side} {proven[side]}/{total[side]}" for side in sorted(total))
        yield f"normative: {proven.total()} of {total.total()} rows proven ({sides})"
        if new := self.proven - self._floor():
            yield f"normative: {len(new)} rows more than proven.txt has; add --normative-update"

    def _floor(self) -> set[str]:
        return set(self._floor_file.read_text().split()) if self._floor_file.exists() else set()

    def _full_run(self, session: pytest.Session) -> bool:
        return (
            not hasattr(self._config, "workerinput")
            and not any(self._config.getoption(option) for option in _SELECTING)
            and self._config.args_source is not pytest.Config.ArgsSource.ARGS
            and not self._deselected
            and not self._config.getoption("collectonly")
            and not session.shouldfail
            and not session.shouldstop
            and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
        )
