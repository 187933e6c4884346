"""Does an application keep what it acknowledged when the power fails?

    python examples/crash_consistency.py                                # sqlite on ext4
    python examples/crash_consistency.py --file-system xfs --application postgresql
    python examples/crash_consistency.py --careless                  # without fsync: it fails
    python examples/crash_consistency.py --mount-options barrier=0   # without flushes: it fails

A database in a User-Mode Linux guest commits one transaction after the other, and says so. At a
random moment the whole machine loses its power: the guest is killed, and the disk's write cache
forgets what was not flushed, as a seed says. Then it boots again. The file system must be
consistent, and the database must have every transaction that it acknowledged. The exit code is 1
if it has not.
"""

import argparse
import random
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from vscsi_emu.control import Client
from vscsi_emu.control.results import LunLosses, PowerFailure
from vscsi_emu.testing import GuestRun, HbaProcess, UmlGuest

SQLITE = """
cat >application.py <<'END'
import sqlite3, sys

database = sqlite3.connect("mnt/database", isolation_level=None)
database.execute("PRAGMA synchronous = " + sys.argv[1])
[state] = database.execute("PRAGMA integrity_check").fetchone()
assert state == "ok", state
database.execute("CREATE TABLE IF NOT EXISTS journal (number INTEGER PRIMARY KEY, data BLOB)")
rows = database.execute("SELECT number, data FROM journal ORDER BY number").fetchall()
assert rows == [(n, b"%d" % n * 500) for n in range(1, len(rows) + 1)], "rows are damaged"
number = len(rows)
print("found", number, flush=True)
while sys.argv[2] == "run":
    number += 1
    database.execute("INSERT INTO journal VALUES (?, ?)", (number, b"%d" % number * 500))
    print("acknowledged", number, flush=True)
END
# FULL is not enough: it does not sync the directory after a commit, which is the removal of a file.
level=EXTRA
[ $1 = careless ] && level=OFF
python3 application.py $level $2
"""

POSTGRESQL = """
bin=$(echo /usr/lib/postgresql/*/bin)
as_user() { runuser -u postgres -- "$@"; }
options="-c shared_buffers=8MB -c dynamic_shared_memory_type=mmap -c listen_addresses= -k /run"
[ $1 = careless ] && options="$options -c fsync=off"
chmod 777 /run
if [ ! -d mnt/data ]; then
    mkdir mnt/data
    chown postgres mnt/data
    as_user $bin/initdb -A trust -D $PWD/mnt/data >/dev/null
    sync
fi
as_user $bin/pg_ctl -s -w -t 60 -D $PWD/mnt/data -o "$options" -l /run/log start || {
    cat /run/log; exit 1; }
sql() { as_user $bin/psql -qAtX -v ON_ERROR_STOP=1 -h /run postgres "$@"; }
sql -c "SET client_min_messages = error;
    CREATE TABLE IF NOT EXISTS journal (number integer PRIMARY KEY, data text)"
number=$(sql -c "SELECT count(*) FROM journal WHERE data = repeat(number::text, 500)")
[ "$(sql -c 'SELECT count(*), coalesce(max(number), 0) FROM journal')" = "$number|$number" ]
echo "found $number"
[ $2 = run ] || { as_user $bin/pg_ctl -s -w -D $PWD/mnt/data stop; exit; }
while number=$((number + 1)); do
    echo "INSERT INTO journal VALUES ($number, repeat('$number', 500));"
    printf '\\\\echo acknowledged %d\\n' $number
done | sql
"""

APPLICATIONS = {"sqlite": SQLITE, "postgresql": POSTGRESQL}
"""Called with ``honest`` or ``careless`` (no fsync), and ``check`` or ``run``. They print ``found
N``, the number of transactions that they have, and then ``acknowledged N`` for each that is done.
"""
CHECKS = {"ext4": "e2fsck -fn", "xfs": "xfs_repair -n"}
"""What finds a file system damaged, once its journal was replayed."""

NOISE = """
while dd if=/dev/urandom of=mnt/noise bs=4k count=64 oflag=direct conv=notrunc; do :; done \\
    >/dev/null 2>&1 &
"""
"""Writes that nobody flushes, so that the cache has always something to lose."""

DISK = "512M"
BOOT_SECONDS = 240.0


@dataclass(frozen=True)
class Setup:
    """What is tried."""

    file_system: str = "ext4"
    application: str = "sqlite"
    careless: bool = False
    """The application does not call fsync."""
    mount_options: str = "defaults"

    def script(self, *, first: bool, last: bool) -> str:
        """What the guest does. The first one makes the file system; the last one only checks."""
        mount = f"mount -t {self.file_system} -o {self.mount_options} $dev mnt"
        if first:
            begin = f"mkfs.{self.file_system} -q $dev\n{mount}"
        else:
            check = f"{CHECKS[self.file_system]} $dev >fsck 2>&1 || {{ cat fsck; exit 1; }}"
            begin = f"{mount}\numount mnt\n{check}\n{mount}"
        mode = "careless" if self.careless else "honest"
        steps = ["set -e", "dev=$(disk 0:0)", begin]
        steps += [f"set -- {mode} check"] if last else [NOISE, f"set -- {mode} run"]
        steps += [APPLICATIONS[self.application], "umount mnt"]
        return "\n".join(steps)


@dataclass(frozen=True)
class Outcome:
    """One power failure."""

    seed: int
    acknowledged: int
    found: int | None
    """None: file system or database did not come back."""
    writes: LunLosses
    """What became of those that the disk had not flushed."""
    said: str
    """By the guest that came after."""

    @property
    def good(self) -> bool:
        return self.found is not None and self.found >= self.acknowledged

    def __str__(self) -> str:
        lost = self.writes
        writes = f"unflushed writes: {lost.survived} survived, {lost.torn} torn, {lost.lost} lost"
        if self.found is None:
            return f"seed {self.seed}: damaged ({writes})\n{self.said}"
        verdict = "good" if self.good else f"{self.acknowledged - self.found} LOST"
        return (
            f"seed {self.seed}: {self.acknowledged} acknowledged, {self.found} found: {verdict} "
            f"({writes})"
        )


@contextmanager
def server() -> Iterator[tuple[HbaProcess, Client]]:
    """A disk with a volatile cache, and its monitor."""
    disk = f"mem:{DISK},volatile-cache"
    with HbaProcess([disk], monitor=True) as hba, Client(str(hba.monitor)) as client:
        yield hba, client


def run(setup: Setup, *, failures: int, seed: int) -> Iterator[Outcome]:
    """Fails the power again and again, until something is lost."""
    with server() as (hba, monitor):
        failure: PowerFailure | None = None
        acknowledged = 0
        for number in range(failures + 1):
            chosen = random.Random(f"{seed} {number}")
            script = setup.script(first=failure is None, last=number == failures)
            with UmlGuest([hba.socket]).start(script, BOOT_SECONDS) as guest:
                found = until_found(guest)
                if failure is not None:
                    [writes] = failure.luns
                    outcome = Outcome(failure.seed, acknowledged, found, writes, guest.output)
                    yield outcome
                    if not outcome.good:
                        return
                if number == failures:
                    guest.wait().check()
                    return
                until_acknowledged(guest, (found or 0) + chosen.randint(2, 40))
                time.sleep(chosen.uniform(0, 0.05))
                guest.kill()
                acknowledged = numbers(guest.output, "acknowledged")[-1]
            failure = monitor.power_fail(seed=chosen.randrange(1 << 32))


def numbers(output: str, word: str) -> list[int]:
    """Of the lines that are whole and begin with `word`."""
    lines = [line.split() for line in output.split("\n")[:-1]]
    return [int(line[1]) for line in lines if len(line) == 2 and line[0] == word]


def until_found(guest: GuestRun) -> int | None:
    for line in guest.lines():
        if found := numbers(line + "\n", "found"):
            return found[0]
    return None


def until_acknowledged(guest: GuestRun, number: int) -> None:
    for line in guest.lines():
        if number in numbers(line + "\n", "acknowledged"):
            return
    raise RuntimeError(f"the application ended by itself:\n{guest.output}")


def main() -> int:
    parser = argparse.ArgumentParser(description="Power failures under a database.")
    parser.add_argument("--file-system", choices=CHECKS, default="ext4")
    parser.add_argument("--application", choices=APPLICATIONS, default="sqlite")
    parser.add_argument("--careless", action="store_true", help="without fsync")
    parser.add_argument("--mount-options", default="defaults")
    parser.add_argument("--failures", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    setup = Setup(
        arguments.file_system, arguments.application, arguments.careless, arguments.mount_options
    )
    outcomes = []
    for outcome in run(setup, failures=arguments.failures, seed=arguments.seed):
        print(outcome, flush=True)
        outcomes.append(outcome)
    return 0 if all(outcome.good for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
