"""Skipped guest tests are counted, and are failures where guests are required."""

from __future__ import annotations

import pytest

from tests.plugins.guests import REQUIRE, Guests

SOURCE = """
import pytest

@pytest.mark.guest
def test_without_guest():
    pytest.skip("no such kernel")

@pytest.mark.guest
def test_with_guest():
    pass

def test_other():
    pytest.skip("not a guest's affair")
"""


class Outer:
    def pytest_configure(self, config: pytest.Config) -> None:
        config.addinivalue_line("markers", "guest: needs a kernel")
        config.pluginmanager.register(Guests())


def run(pytester: pytest.Pytester) -> pytest.RunResult:
    pytester.makepyfile(SOURCE)
    return pytester.runpytest_inprocess(plugins=[Outer()])


def test_skips_are_counted_with_their_reason(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(REQUIRE, raising=False)
    result = run(pytester)
    result.assert_outcomes(passed=1, skipped=2)
    result.stdout.fnmatch_lines(["guests: 1 tests run, 1 skipped", "*1 skipped: no such kernel"])


def test_where_required_a_skip_is_a_failure(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(REQUIRE, "1")
    run(pytester).assert_outcomes(passed=1, skipped=1, failed=1)
