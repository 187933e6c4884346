"""The counting plugin itself: what it accepts, counts, and fails for."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.plugins.normative import Normative, read_rows

TABLE = "id\tclause\tside\tlevel\tgist\n" + "".join(
    f'{row}\t2.1\t{side}\tMUST\tSays "something\n'
    for row, side in [("a.d1", "device"), ("a.d2", "device"), ("b.f1", "front-end")]
)


class Outer:
    """Brings the plugin and its option into an inner run of pytest."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def pytest_addoption(self, parser: pytest.Parser) -> None:
        parser.addoption("--normative-update", action="store_true")

    def pytest_configure(self, config: pytest.Config) -> None:
        config.addinivalue_line("markers", "normative(id, ...): rows")
        plugin = Normative(config, self._directory / "table", self._directory / "proven")
        config.pluginmanager.register(plugin)


def run(
    pytester: pytest.Pytester, source: str, *arguments: str, floor: str = ""
) -> pytest.RunResult:
    (pytester.path / "table").write_text(TABLE)
    if not (pytester.path / "proven").exists():
        (pytester.path / "proven").write_text(floor)
    pytester.makepyfile("import pytest\n" + source)
    return pytester.runpytest_inprocess(*arguments, plugins=[Outer(pytester.path)])


def case(*rows: str, body: str = "pass", name: str = "test_it") -> str:
    return f"@pytest.mark.normative({', '.join(map(repr, rows))})\ndef {name}(): {body}\n"


def test_counts_the_rows_of_passed_tests(pytester: pytest.Pytester) -> None:
    source = case("a.d1", "b.f1") + case("a.d2", body="assert False", name="test_other")
    result = run(pytester, source)
    result.stdout.fnmatch_lines(["normative: 2 of 3 rows proven (device 1/2, front-end 1/1)"])


def test_a_failure_outweighs_a_pass(pytester: pytest.Pytester) -> None:
    source = case("a.d1") + case("a.d1", body="assert False", name="test_other")
    run(pytester, source).stdout.fnmatch_lines(["normative: 0 of 3 rows proven *"])


def test_unknown_row_is_an_error(pytester: pytest.Pytester) -> None:
    result = run(pytester, case("a.d9"))
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*::test_it: a.d9"])


def test_a_lost_row_fails_a_full_run(pytester: pytest.Pytester) -> None:
    result = run(pytester, case("a.d1"), floor="a.d1\na.d2\n")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*proven no more*", "a.d2"])


def test_a_partial_run_may_prove_fewer(pytester: pytest.Pytester) -> None:
    source = case("a.d1") + case("a.d2", name="test_other")
    assert run(pytester, source, "-k", "test_it", floor="a.d1\na.d2\n").ret == pytest.ExitCode.OK


def test_a_skipped_test_loses_nothing(pytester: pytest.Pytester) -> None:
    result = run(pytester, case("a.d1", body="pytest.skip('no guest')"), floor="a.d1\n")
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["normative: 0 of 3 rows proven *"])


def test_update_writes_what_is_proven(pytester: pytest.Pytester) -> None:
    run(pytester, case("a.d2", "a.d1"), "--normative-update")
    assert (pytester.path / "proven").read_text() == "a.d1\na.d2\n"


def test_the_real_table_has_every_row_once(request: pytest.FixtureRequest) -> None:
    table = request.config.rootpath / "tests" / "conformance" / "normative.tsv"
    assert len(read_rows(table)) == len(table.read_text().splitlines()) - 1
