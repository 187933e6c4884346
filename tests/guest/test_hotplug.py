"""Disks that come, grow and go while Linux uses them.

One disk stays, and fio verifies what it writes there all the time. Others are plugged in, used by
fio as soon as the guest sees them, resized, and unplugged under that load: the guest's driver must
hear of each step by itself, as nothing in the guest asks for a scan.
"""

from __future__ import annotations

import os
import re
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from vscsi_emu.control import Client
from vscsi_emu.testing import GuestRun, GuestUnavailable, HbaProcess, UmlGuest

from .conftest import make_guest

pytestmark = [pytest.mark.guest, pytest.mark.timeout(620)]

MIB = 1 << 20
SMALL_MIB, LARGE_MIB = 16, 24
PLUGGED = 20
"""Disks that come and go at a time; the first `USED` are used."""
USED = 5
ROUNDS = 5
"""100 disks altogether."""
WARM_UP = 2
STOP = "2:0"
STEP_SECONDS = 60.0
MEMORY_GROWTH_KIB = 16 << 10
POOL_THREADS = 4 + (os.cpu_count() or 1)
"""Which asyncio keeps for later work, once there was some; far fewer than disks come here."""
FIO = (
    "--bs=4k --ioengine=libaio --direct=1 --eta=never --randrepeat=0 --rw=randrw --size=4M "
    "--rate_iops=300"
)

# Few processes: a guest that emulates its processor spends its time with making them.
SCRIPT = f"""
use() {{
    case $1 in
    0) fio --name=plugged --filename=$2 --iodepth=8 --time_based --runtime=600 \\
        --allow_file_create=0 {FIO} ;;
    [1-{USED - 1}])
        while [ -b $2 ] && dd if=/dev/zero of=$2 bs=64k count=256 oflag=direct; do :; done ;;
    esac >/dev/null 2>&1
}}

while [ ! -e enough ]; do
    fio --name=stays --filename=$(disk 0:0) --iodepth=16 --verify=crc32c --verify_fatal=1 {FIO} ||
        {{ touch failed; break; }}
done >stays.log 2>&1 &
stays=$!
told=" "
while set -- /sys/bus/scsi/devices/*:0:{STOP}/block/*; [ ! -e "$1" ]; do
    seen=" "
    for lun in {" ".join(map(str, range(PLUGGED)))}; do
        for dir in /sys/bus/scsi/devices/*:0:1:$lun/block/*; do
            [ -e $dir/size ] && read sectors <$dir/size && [ "$sectors" != 0 ] || continue
            seen="$seen$lun=$sectors "
            case $told in *" $lun="*) ;; *) use $lun /dev/${{dir##*/}} & esac
        done
    done 2>/dev/null
    [ "$seen" = "$told" ] || echo "seen$seen"
    told=$seen
    sleep 0.1
done
touch enough
wait $stays
# Whoever came late has another disk of that name; whoever hangs in the kernel does not end here.
kill $(pidof fio dd) 2>/dev/null
wait
echo "verified $(grep -c 'err= 0' stays.log) times"
[ ! -e failed ] || {{ cat stays.log; exit 1; }}
"""


@dataclass(frozen=True)
class Footprint:
    """What a process takes."""

    fds: int
    threads: int
    memory_kib: int

    @classmethod
    def of(cls, pid: int) -> Footprint:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        status = dict(line.split(":", 1) for line in lines)
        # Of its own: guest memory, and memory disks, are files that it maps.
        return cls(
            len(os.listdir(f"/proc/{pid}/fd")),
            int(status["Threads"]),
            int(status["RssAnon"].split()[0]),
        )

    @classmethod
    def settled(cls, pid: int) -> Footprint:
        """With the storage of the disk that stays only: of the threads that used a disk's the last
        one closes it, maybe after the answer."""
        deadline = time.monotonic() + STEP_SECONDS
        while storage(pid) != 1:
            assert time.monotonic() < deadline, f"{storage(pid)} disks are left"
            time.sleep(0.02)
        return cls.of(pid)


def storage(pid: int) -> int:
    """Descriptors of memory disks."""
    found = 0
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            found += os.readlink(fd).startswith("/memfd:vscsi-disk")
    return found


@pytest.fixture
def monitor_path(tmp_path: Path) -> str:
    return str(tmp_path / "monitor")


def seen(sizes: dict[int, int]) -> str:
    """The guest's line for disks of these sizes in MiB, by LUN."""
    return "seen " + "".join(f"{lun}={mib * 2048} " for lun, mib in sorted(sizes.items()))


def wait_for(running: GuestRun, line: str) -> None:
    """Until that is the last thing the guest saw."""
    deadline = time.monotonic() + STEP_SECONDS
    while True:
        lines = running.output.splitlines()
        if lines and lines[-1] == line:
            return
        assert time.monotonic() < deadline, (
            f"no {line!r}:\n{running.output[-1000:]}\n{running.console[-3000:]}"
        )
        time.sleep(0.02)


def one_round(monitor: Client, running: GuestRun) -> None:
    luns = [f"1:{lun}" for lun in range(PLUGGED)]
    monitor.lun_add(luns=[f"{lun}=mem:{SMALL_MIB}M" for lun in luns])
    wait_for(running, seen(dict.fromkeys(range(PLUGGED), SMALL_MIB)))
    for lun in luns:
        monitor.lun_resize(lun=lun, size=f"{LARGE_MIB}M")
    wait_for(running, seen(dict.fromkeys(range(PLUGGED), LARGE_MIB)))
    # Not by force: it goes because the guest lets go of it, fio or not.
    monitor.lun_remove(lun=list(luns), deadline=STEP_SECONDS)
    wait_for(running, seen({}))


def test_disks_come_and_go_under_load(kind: str, monitor_path: str) -> None:
    with (
        HbaProcess(["mem:64M"], queues=2, arguments=["--monitor", monitor_path]) as hba,
        Client(monitor_path, timeout=2 * STEP_SECONDS) as monitor,
        make_guest(kind, [hba]).start(SCRIPT, 600) as running,
    ):
        for _ in range(WARM_UP):
            one_round(monitor, running)
        before = Footprint.settled(hba.pid)
        for _ in range(ROUNDS - WARM_UP):
            one_round(monitor, running)
        after = Footprint.settled(hba.pid)
        assert after.fds == before.fds
        assert after.threads <= before.threads + POOL_THREADS
        assert after.memory_kib - before.memory_kib < MEMORY_GROWTH_KIB
        assert len(monitor.hba_query().luns) == 1
        assert not [tmf for tmf in monitor.tmf_log() if tmf.response != "OK"]
        monitor.lun_add(luns=[f"{STOP}=mem:1M"])
        result = running.wait().check()
    verified = re.search(r"^verified (\d+) times$", result.output, re.MULTILINE)
    assert verified is not None, result.output[-3000:]
    assert int(verified[1]) > 0
    assert "hung" not in result.console


LOWERED = """
device=$(disk 0:0)
limit=/sys/block/${device##*/}/queue/max_sectors_kb
read first <$limit
while [ ! -e enough ]; do
    dd if=/dev/zero of=$device bs=1M count=8 oflag=direct || { touch failed; break; }
done >dd.log 2>&1 &
writing=$!
echo "at first $first"
while read now <$limit; [ "$now" = "$first" ]; do sleep 0.1; done
echo "now $now"
touch enough
wait $writing
[ ! -e failed ] || { cat dd.log; exit 1; }
"""


def test_linux_hears_of_a_lower_limit_and_loses_nothing(monitor_path: str) -> None:
    """By the event alone; nothing in the guest asks for a scan."""
    try:
        UmlGuest().require()
    except GuestUnavailable as error:
        pytest.skip(str(error))
    with (
        HbaProcess(["mem:64M"], arguments=["--monitor", monitor_path]) as hba,
        Client(monitor_path, timeout=STEP_SECONDS) as monitor,
        make_guest("uml", [hba]).start(LOWERED, 200) as running,
    ):
        first = limit_seen(running)
        assert first > 32
        monitor.lun_set(lun="0:0", max_sectors=64)
        wait_for(running, "now 32")
        running.wait().check()


def limit_seen(running: GuestRun) -> int:
    """The guest's first line, once it is there."""
    deadline = time.monotonic() + STEP_SECONDS
    while (found := re.search(r"^at first (\d+)$", running.output, re.MULTILINE)) is None:
        assert time.monotonic() < deadline, running.console[-3000:]
        time.sleep(0.02)
    return int(found[1])
