"""What each test should do: `expected.tsv` has the rows of those that do not pass."""

from __future__ import annotations

from pathlib import Path

from .suite import Outcome, Result

TABLE = Path(__file__).with_name("expected.tsv")


def expected(setup: str) -> dict[str, Result]:
    """By test, what does not pass on this set-up, and why. Columns of the table: test, the letters
    of the set-ups it speaks of, outcome, reason."""
    found = {}
    for line in TABLE.read_text().splitlines()[1:]:
        test, setups, outcome, reason = line.split("\t")
        if setup in setups:
            found[test] = Result(test, Outcome(outcome), reason)
    return found
