"""Power failures under databases: the example finds what is wrong, and only that."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.unit.test_examples import load

pytestmark = [pytest.mark.guest, pytest.mark.timeout(600)]

example = load("crash_consistency")

FAILURES = 2
CHANCES = 4
"""Failures until a loss must have shown: by luck everything may reach the medium."""


@pytest.mark.parametrize(
    "setup",
    [
        example.Setup("ext4", "sqlite"),
        example.Setup("xfs", "sqlite"),
        pytest.param(
            example.Setup("xfs", "postgresql"),
            marks=pytest.mark.skipif(
                not list(Path("/usr/lib/postgresql").glob("*/bin/initdb")),
                reason="PostgreSQL is not installed: apt-get install postgresql",
            ),
        ),
    ],
    ids=lambda setup: f"{setup.application}-{setup.file_system}",
)
def test_who_flushes_keeps_what_was_acknowledged(setup: object) -> None:
    # PostgreSQL takes long to begin.
    failures = 1 if "postgresql" in str(setup) else FAILURES
    outcomes = list(example.run(setup, failures=failures, seed=7))
    assert len(outcomes) == failures
    assert all(outcome.acknowledged for outcome in outcomes)
    assert all(outcome.good for outcome in outcomes), "\n".join(map(str, outcomes))


@pytest.mark.parametrize(
    "setup",
    [example.Setup(careless=True), example.Setup(mount_options="barrier=0")],
    ids=["application", "file system"],
)
def test_who_does_not_flush_is_found_out(setup: object) -> None:
    *_, last = example.run(setup, failures=CHANCES, seed=7)
    assert not last.good, last


def test_its_exit_code_tells(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    writes = example.LunLosses(id="disk", survived=1, torn=0, lost=2)
    good = example.Outcome(1, acknowledged=5, found=6, writes=writes, said="")
    for found, code, text in ((6, 0, "6 found: good"), (4, 1, "1 LOST"), (None, 1, "damaged")):
        outcome = example.Outcome(2, acknowledged=5, found=found, writes=writes, said="it said")
        monkeypatch.setattr(example, "run", lambda *_, o=outcome, **__: iter([good, o]))
        monkeypatch.setattr(sys, "argv", ["crash_consistency.py"])
        assert example.main() == code
        assert text in capsys.readouterr().out
