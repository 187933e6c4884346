"""libiscsi's conformance suite: every test does what `libiscsi/expected.tsv` says."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from vscsi_emu.testing import GuestUnavailable

from .libiscsi import suite
from .libiscsi.expected import TABLE, expected
from .libiscsi.setups import SETUPS
from .libiscsi.suite import Outcome, Result

pytestmark = [pytest.mark.guest, pytest.mark.timeout(900)]

DOCUMENT = Path(__file__).parents[2] / "docs" / "conformance.md"
ALL_TESTS = 204  # of libiscsi 1.19, without Sanitize


@pytest.fixture(params=SETUPS)
def setup(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen


def run(setup: str) -> list[Result]:
    chosen = SETUPS[setup]
    try:
        return list(suite.results(chosen.run(chosen.tests())))
    except (FileNotFoundError, GuestUnavailable) as error:
        pytest.skip(str(error))


def test_the_suite_finds_what_is_expected(setup: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = run(setup)
    counts = Counter(result.outcome for result in found)
    with capsys.disabled():
        print(f"\nlibiscsi {setup}, {SETUPS[setup].what}:", *(f"{counts[o]} {o}" for o in Outcome))
    assert [result.test for result in found] == SETUPS[setup].tests()
    known = expected(setup)
    surprises = [
        f"{result.test}: {result.outcome} {result.reason}"
        for result in found
        if result.outcome != known.get(result.test, Result(result.test, Outcome.PASS)).outcome
    ]
    assert not surprises, "\n".join(surprises)


def test_every_test_of_the_suite_is_run() -> None:
    try:
        assert len(SETUPS["A"].tests()) == ALL_TESTS
        ran = {name for setup in SETUPS.values() for name in setup.tests()}
        assert ran == set(suite.listed(sanitize=True))
    except FileNotFoundError as error:
        pytest.skip(str(error))


def test_the_table_speaks_of_tests_that_exist() -> None:
    lines = [line.split("\t") for line in TABLE.read_text().splitlines()[1:]]
    assert all(reason for _, _, _, reason in lines)
    try:
        names = set(suite.listed(sanitize=True))
    except FileNotFoundError as error:
        pytest.skip(str(error))
    assert {line[0] for line in lines} <= names


def test_the_document_names_each_with_its_reason() -> None:
    document = DOCUMENT.read_text().splitlines()
    for line in TABLE.read_text().splitlines()[1:]:
        test, _, outcome, reason = line.split("\t")
        assert any(
            f"`{test}`" in row and row.endswith(f"| {outcome} | {reason} |") for row in document
        ), test
