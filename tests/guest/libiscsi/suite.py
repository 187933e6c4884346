"""The suite itself: which tests it has, how a guest runs them, what their output says."""

from __future__ import annotations

import enum
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

PROGRAM = "iscsi-test-cu"
INSTALL = "apt-get install libiscsi-bin"
FAMILY = "SCSI"
SANITIZE = "Sanitize"
TEST_SECONDS = 60
_TIMED_OUT = 124  # timeout(1)
_SIGNALLED = 128  # and above: the shell's exit code for a signal

# One line a test, as it ends. What precedes "Suite:" is the program looking at the disk. A unit
# attention for another node (parameters changed by the test before) would fail its first command.
_SCRIPT = """
nodes=$({nodes})
for test in {tests}; do
    for node in $nodes; do sg_turs -n 2 $node >/dev/null 2>&1; done
    timeout {seconds} {program} -d -f -V {options} -t {family}.$test $nodes >log 2>&1
    awk -v test=$test -v code=$? '
        /^Suite:/ {{ ran = 1 }}
        /[^ ]/ {{ last = $0 }}
        ran && skipped == "" && match($0, /\\[SKIPPED\\] */) {{
            skipped = substr($0, RSTART + RLENGTH)
        }}
        ran && failed == "" && match($0, /^ +[0-9]+\\. /) {{ failed = substr($0, RLENGTH + 1) }}
        END {{
            if (!ran) failed = "did not run: " last
            print test "\\t" code "\\t" ran + 0 "\\t" skipped "\\t" failed
        }}' log
    {after}
done
"""


class Outcome(enum.StrEnum):
    PASS = "pass"
    FAIL = "fail"
    SKIP = "skip"
    TIMEOUT = "timeout"
    CRASH = "crash"
    """The program itself died of a signal."""


@dataclass(frozen=True)
class Result:
    """What one test did; `reason` for all but a pass."""

    test: str
    outcome: Outcome
    reason: str = ""


def listed(*, sanitize: bool = False) -> list[str]:
    """``Suite.Test`` of every test of the family, as the program lists them."""
    program = shutil.which(PROGRAM)
    if program is None:
        raise FileNotFoundError(f"{PROGRAM} is not installed: {INSTALL}")
    output = subprocess.run([program, "--list"], capture_output=True, text=True, check=True).stdout
    paths = [line.split(".") for line in output.split()]
    names = [path[1:] for path in paths if path[0] == FAMILY and len(path) == 3]
    return [f"{group}.{test}" for group, test in names if sanitize or group != SANITIZE]


def script(
    nodes: str, names: Iterable[str], *, sanitize: bool = False, verbose: bool = False
) -> str:
    """Runs these tests, each in a process of its own, on the nodes that the command `nodes` prints;
    the first is the disk, a second another path to it. `verbose`: with all that they print."""
    return _SCRIPT.format(
        nodes=nodes,
        tests=" ".join(names),
        seconds=TEST_SECONDS,
        program=PROGRAM,
        options="-S" if sanitize else "",
        family=FAMILY,
        after="sed -n '/^Suite:/,$p' log" if verbose else "",
    )


def timed_out(test: str) -> str:
    """The line of a test whose guest had to be killed."""
    return f"{test}\t{_TIMED_OUT}\t1\t\t"


def results(lines: Iterable[str]) -> Iterator[Result]:
    """What the script's lines say, as they come. The suite counts a skip as passed; we do not.

    Lines that are no results are what `verbose` adds.
    """
    for line in lines:
        if line.count("\t") != 4:
            continue
        test, code, ran, skipped, failed = line.split("\t")
        if int(code) == _TIMED_OUT:
            yield Result(test, Outcome.TIMEOUT, f"not done in {TEST_SECONDS} s")
        elif int(code) > _SIGNALLED:
            yield Result(test, Outcome.CRASH, f"signal {int(code) - _SIGNALLED}")
        elif int(code) or not int(ran):
            yield Result(test, Outcome.FAIL, failed or f"exit code {code}")
        elif skipped:
            yield Result(test, Outcome.SKIP, skipped)
        else:
            yield Result(test, Outcome.PASS)
