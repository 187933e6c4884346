"""What runs inside a guest whose host bus adapter is scsi_debug: a server that passes commands to
its disk, and Linux in QEMU over vhost-user as the guest of that.

``python -m tests.guest.nested /dev/sda`` checks; with ``--bench`` and any nodes it measures.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.guest.passthrough import MEDIUM, MEDIUM_ERROR_LBA, RECOVERED, TRANSPORT, injected
from tests.guest.report import SECTIONS
from vscsi_emu.testing import HbaProcess, QemuGuest

MEMORY_MIB: Final = 320
SECONDS: Final = 420.0
TICKS: Final = os.sysconf("SC_CLK_TCK")

ERRORS: Final = {"medium": MEDIUM, "transport": TRANSPORT, "recovered": RECOVERED}
"""scsi_debug's `opts`; all but the first concern every command."""
KEYS: Final = {"medium": "Medium Error", "transport": "Aborted Command", "recovered": "Recovered"}

# The node of an sg device, and the error's sense key if one has to wait for it.
RAW: Final = f"""
raw() {{
    n=0
    while [ $n -lt 200 ]; do
        out=$(sg_raw -r 512 $1 28 00 00 00 {MEDIUM_ERROR_LBA:#06x} 00 00 01 00 2>&1)
        case $out in *"$2"*) break;; esac
        n=$((n + 1)); sleep 0.1
    done
    echo "$out"
}}
""".replace(f"{MEDIUM_ERROR_LBA:#06x}", f"{MEDIUM_ERROR_LBA >> 8:02x} {MEDIUM_ERROR_LBA & 255:02x}")

GUEST: Final = (
    SECTIONS
    + RAW
    + """
fio_verify() {
    for how in "--bs=4k --size=4M" "--bs=1M --size=32M --offset=8M"; do
        fio --name=verify --filename=$(disk 0:0) --rw=randrw $how --verify=crc32c \\
            --verify_fatal=1 --iodepth=64 --ioengine=libaio --direct=1 --eta=never || return
    done
}
limits() { cat /sys/block/${1##*/}/queue/max_sectors_kb; sg_vpd -p bl $1; }
section fio fio_verify
section limits limits $(disk 0:0)
"""
    + "".join(f"section {name} raw $(sg 0:0) '{key}'\n" for name, key in KEYS.items())
)

JOB: Final = "--bs=4k --rw=randread --iodepth={depth} --ioengine=libaio --direct=1 --size=32M"
DEPTHS: Final = (1, 32)
BENCH: Final = SECTIONS + "".join(
    f"section {depth} fio --name=b --filename=$(disk 0:0) {JOB.format(depth=depth)} "
    "--time_based --runtime=8 --output-format=json\n"
    for depth in DEPTHS
)


def lines(hba: HbaProcess, script: str) -> Iterator[str]:
    guest = QemuGuest([hba.socket], memory_mib=MEMORY_MIB, programs=["sg_raw"])
    with guest.start(script, SECONDS) as running:
        yield from running.lines()
        running.wait().check()


def check(node: str) -> None:
    """The guest's sections, and the host's of the same errors, as ``host-NAME``."""
    errors = iter(ERRORS.items())
    with HbaProcess([f"sg:{node}"]) as hba:
        for line in lines(hba, GUEST):
            if line.startswith("<<<") and line.split()[1] in ERRORS:
                # The guest asks until it is there.
                name, options = next(errors)
                injecting = injected(options, every_nth=0 if options == MEDIUM else 1)
                injecting.__enter__()
                print_host(name)
            print(line, flush=True)
            if line.startswith(">>>") and line.split()[1] in ERRORS:
                injecting.__exit__(None, None, None)


def print_host(name: str) -> None:
    script = f"{SECTIONS}{RAW}section host-{name} raw /dev/sg0 '{KEYS[name]}'"
    print(subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout)


# ── Figures ────────────────────────────────────────────────────────────────────────────────────


def bench(nodes: list[str]) -> None:
    """IOPS, and CPU time of the host per command: fio's on the host's own disk; the server's."""
    host = {}
    for depth in DEPTHS:
        command = f"fio --name=b --filename=/dev/sda {JOB.format(depth=depth)}"
        arguments = [*command.split(), "--time_based", "--runtime=8", "--output-format=json"]
        done = subprocess.run(arguments, capture_output=True, text=True, check=True)
        job = json.loads(done.stdout)["jobs"][0]
        busy = (job["usr_cpu"] + job["sys_cpu"]) / 100 * job["job_runtime"] * 1000
        host[depth] = job["read"]["iops"], busy / job["read"]["total_ios"]
        show("host's own", depth, *host[depth], host[depth])
    for node in nodes:
        with HbaProcess([f"sg:{node}"]) as hba:
            report: list[str] = []
            for line in lines(hba, BENCH):
                if line.startswith("<<<"):
                    report, before = [], busy_seconds(hba.pid)
                elif line.startswith(">>>"):
                    busy = busy_seconds(hba.pid) - before
                    read = json.loads("\n".join(report))["jobs"][0]["read"]
                    depth = int(line.split()[1])
                    each = busy * 1e6 / read["total_ios"]
                    show(node, depth, read["iops"], each, host[depth])
                else:
                    report.append(line)


def busy_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def show(name: str, depth: int, iops: float, cpu: float, host: tuple[float, float]) -> None:
    print(
        f"{name}, QD {depth}: {iops:.0f} IOPS ({iops / host[0]:.3f}), "
        f"{cpu:.0f} us CPU a command ({cpu / host[1]:.2f})",
        flush=True,
    )


if __name__ == "__main__":
    if sys.argv[1] == "--bench":
        bench(sys.argv[2:])
    else:
        check(sys.argv[1])
