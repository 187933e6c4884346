"""``make bench``: our disks beside QEMU's own, in one guest, in one run.

One QEMU guest (no KVM) sees the same kinds of disk twice: through vhost-user from ``vscsi-emu
serve``, and through QEMU's ``virtio-scsi-pci`` and ``scsi-hd`` with an I/O thread. The same fio job
runs on both in turn, several times; what counts is the ratio of the medians, since machines differ
and are noisy. Also: the time from the start of ``serve`` until it listens.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from vscsi_emu.testing import HbaProcess, QemuGuest

DISK_MIB = 256
SECONDS = 4
JOBS = {
    "randread 4k, QD 1": "--rw=randread --bs=4k --iodepth=1",
    "randread 4k, QD 32": "--rw=randread --bs=4k --iodepth=32",
    "randwrite 4k, QD 32": "--rw=randwrite --bs=4k --iodepth=32",
    "read 128k, QD 8": "--rw=read --bs=128k --iodepth=8",
}


@dataclass(frozen=True)
class Disk:
    """A disk as the guest finds it: SCSI host number and LUN."""

    name: str
    host: int
    lun: int


OURS = {"file": Disk("ours, file", 1, 0), "RAM": Disk("ours, RAM", 1, 1)}
THEIRS = {"file": Disk("QEMU, file", 0, 0), "RAM": Disk("QEMU, RAM", 0, 1)}


def script(rounds: int) -> str:
    """Every job on every disk, ours and theirs by turns, as ``@ disk job-number IOPS`` lines."""
    lines = ["set -eu"]
    disks = [disk for kind in OURS for disk in (OURS[kind], THEIRS[kind])]
    for disk in disks:
        name = f"h{disk.host}l{disk.lun}"
        where = f"/sys/bus/scsi/devices/{disk.host}:0:0:{disk.lun}/block"
        lines.append(f"{name}=/dev/$(ls {where}); test -b ${name}")
    for _ in range(rounds):
        for number, options in enumerate(JOBS.values()):
            for disk in disks:
                name = f"h{disk.host}l{disk.lun}"
                lines += [
                    f"fio --name=b --filename=${name} --ioengine=libaio --direct=1 {options}"
                    f" --time_based --runtime={SECONDS} --eta=never --output-format=json"
                    " --output=out.json",
                    f"echo \"@ {name} {number} $(tr -d ' \\n' <out.json)\"",
                ]
    return "\n".join(lines)


def measure(rounds: int, directory: Path) -> dict[tuple[str, int], float]:
    """IOPS, medians, by guest name of the disk and number of the job."""
    images = []
    for name in ("ours", "file", "ram"):
        # Written, not sparse: both sides read real pages.
        folder = Path("/dev/shm") if name == "ram" else directory
        image = Path(tempfile.mkstemp(dir=folder, prefix="vscsi-emu-bench-")[1])
        with image.open("wb") as handle:
            for _ in range(DISK_MIB):
                handle.write(b"\xa5" * (1 << 20))
        images.append(image)
    ours, file, ram = images
    peer = ["-object", "iothread,id=io", "-device", "virtio-scsi-pci,iothread=io,id=peer"]
    for lun, image in enumerate((file, ram)):
        peer += [
            *("-drive", f"if=none,id=d{lun},file={image},format=raw,cache=writeback,aio=threads"),
            *("-device", f"scsi-hd,bus=peer.0,drive=d{lun},scsi-id=0,lun={lun}"),
        ]
    try:
        with HbaProcess([str(ours), f"0:1=mem:{DISK_MIB}M"]) as hba:
            guest = QemuGuest([hba.socket], arguments=peer)
            seconds = rounds * len(JOBS) * 4 * (SECONDS + 3) + 120
            result = guest.run(script(rounds), timeout=seconds).check()
    finally:
        for image in images:
            image.unlink()
    figures: dict[tuple[str, int], list[float]] = {}
    for line in result.output.splitlines():
        match line.split(maxsplit=3):
            case ["@", name, number, text]:
                job = json.loads(text)["jobs"][0]
                iops = job["read"]["iops"] + job["write"]["iops"]
                figures.setdefault((name, int(number)), []).append(iops)
    return {key: statistics.median(values) for key, values in figures.items()}


def start_seconds() -> float:
    """From the start of ``serve`` until its socket listens; the median of five."""
    times = []
    for _ in range(5):
        began = time.monotonic()
        with HbaProcess(["mem:64M"]):
            times.append(time.monotonic() - began)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="runs of each job (default: 3)")
    rounds = parser.parse_args().rounds
    console = Console()
    console.print(f"start to listening: {start_seconds():.2f} s")
    with tempfile.TemporaryDirectory(prefix="vscsi-emu-bench-") as directory:
        figures = measure(rounds, Path(directory))
    table = Table(title="IOPS in one QEMU TCG guest", title_justify="left")
    for column in ("disk", "job", "ours", "QEMU virtio-scsi", "ratio"):
        table.add_column(column, justify="left" if column in ("disk", "job") else "right")
    for kind, ours in OURS.items():
        for number, job in enumerate(JOBS):
            mine = figures[f"h{ours.host}l{ours.lun}", number]
            theirs = figures[f"h{THEIRS[kind].host}l{THEIRS[kind].lun}", number]
            table.add_row(kind, job, f"{mine:,.0f}", f"{theirs:,.0f}", f"{mine / theirs:.2f}")
    console.print(table)


if __name__ == "__main__":
    main()
