"""SIGTERM under load: what was acknowledged is on the disk."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from vscsi_emu.testing import GuestRun, HbaProcess

from .conftest import make_guest

pytestmark = pytest.mark.guest

RECORD = 4096
STREAMS = 4
RECORDS = 4096
ACKS_BEFORE = 150
LOAD_OFFSET_MIB = 128

# Each stream writes record after record, uncached, and says so only when the write has returned.
# fio meanwhile keeps the queue deep, so that SIGTERM finds commands of every age in flight.
SCRIPT = f"""
dev=$(disk 0:0)
fio --name=load --filename=$dev --rw=randwrite --bs=16k --iodepth=32 --ioengine=libaio --direct=1 \\
    --offset={LOAD_OFFSET_MIB}M --size=64M --time_based --runtime=300 --eta=never >/dev/null 2>&1 &
stream() {{
    n=0
    while [ $n -lt {RECORDS} ]; do
        printf '%-{RECORD - 1}s\\n' "stream $1 record $n" |
            dd of=$dev bs={RECORD} count=1 iflag=fullblock oflag=direct conv=notrunc \\
                seek=$(($1 * {RECORDS} + n)) 2>/dev/null || break
        echo "ack $1 $n"
        n=$((n + 1))
    done
}}
for s in {" ".join(map(str, range(STREAMS)))}; do stream $s & done
wait
"""


def acknowledged(output: str) -> list[tuple[int, int]]:
    """(stream, record) of every whole line that says so."""
    found = re.findall(r"^ack (\d+) (\d+)\n", output, re.MULTILINE)
    return [(int(stream), int(record)) for stream, record in found]


def wait_for_acknowledgements(running: GuestRun, wanted: int, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while len(acknowledged(running.output)) < wanted:
        assert time.monotonic() < deadline, f"{running.output}\n{running.console}"
        time.sleep(0.02)


@pytest.mark.parametrize("cache", ["writeback", "writethrough"])
def test_sigterm_loses_no_acknowledged_write(kind: str, cache: str, tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    with image.open("wb") as handle:
        handle.truncate(192 << 20)
    with (
        HbaProcess([f"{image},cache={cache}"], queues=2) as hba,
        make_guest(kind, [hba]).start(SCRIPT, 120) as running,
    ):
        wait_for_acknowledgements(running, ACKS_BEFORE, 90)
        assert hba.terminate() == 0, hba.log
        # Nothing completes any more; what completed before is still on its way to us.
        time.sleep(0.5)
        acks = acknowledged(running.output)
    assert len(acks) >= ACKS_BEFORE
    assert {stream for stream, _ in acks} == set(range(STREAMS))
    with image.open("rb") as handle:
        for stream, record in acks:
            handle.seek((stream * RECORDS + record) * RECORD)
            expected = f"stream {stream} record {record}".ljust(RECORD - 1) + "\n"
            assert handle.read(RECORD) == expected.encode()
