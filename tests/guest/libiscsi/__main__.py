"""Runs the suite and prints what it finds: ``python -m tests.guest.libiscsi [-s A] [TEST …]``."""

from __future__ import annotations

import argparse
import sys
from collections import Counter

from . import suite
from .peers import PEERS
from .setups import SETUPS
from .suite import Outcome


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.guest.libiscsi", description=__doc__)
    parser.add_argument("-s", "--setup", choices=SETUPS, default="A", help="the disk; default A")
    parser.add_argument("-p", "--peer", choices=PEERS, help="someone else's disk instead")
    parser.add_argument("-v", "--verbose", action="store_true", help="all that the tests print")
    parser.add_argument("tests", nargs="*", metavar="TEST", help="how their names begin; all")
    arguments = parser.parse_args()
    setup = SETUPS[arguments.setup]
    wanted = tuple(arguments.tests)
    names = [name for name in setup.tests(everything=True) if not wanted or name.startswith(wanted)]
    if arguments.peer:
        lines, title = PEERS[arguments.peer](names), arguments.peer
    else:
        lines = setup.run(names, verbose=arguments.verbose)
        title = f"{setup.name}, {setup.what}"
    counts: Counter[Outcome] = Counter()
    for line in lines:
        found = list(suite.results([line]))
        for result in found:
            counts[result.outcome] += 1
            if arguments.verbose or result.outcome is not Outcome.PASS:
                print(result.test, result.outcome, result.reason, sep="\t", flush=True)
        if not found:
            print(line, flush=True)
    print(f"{title}:", *(f"{counts[outcome]} {outcome}" for outcome in Outcome))
    return 0 if counts.total() == counts[Outcome.PASS] + counts[Outcome.SKIP] else 1


if __name__ == "__main__":
    sys.exit(main())
