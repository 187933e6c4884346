"""``vscsi-emu demo``: a server, a real kernel attached to it, and what that kernel sees."""

from __future__ import annotations

import hashlib
import json
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .errors import GuestError, GuestUnavailable
from .guest import LinuxGuest
from .hba import HbaProcess
from .initramfs import find_program
from .qemu import QemuGuest
from .uml import UmlGuest

DISK_MIB = 256
COPY_MIB = 32
FIO_SECONDS = 3
TIMEOUT_SECONDS = 180.0

# What the demonstration runs here or in the guest, and Debian's package of it.
_PROGRAMS = {
    "busybox": "busybox-static",
    "debugfs": "e2fsprogs",
    "fio": "fio",
    "lsscsi": "lsscsi",
    "mkfs.ext4": "e2fsprogs",
}

# Lines for us start with "@": a step that begins, or a fact. The others are for the reader.
_SCRIPT = f"""
set -eu
step() {{ echo "@step $*"; }}
fact() {{ echo "@fact $*"; }}
sum() {{ sha256sum "$1" | cut -d' ' -f1; }}

step "booted Linux $(uname -r); its disks"
lsscsi

dd if=/dev/urandom of=source bs=1M count={COPY_MIB} 2>/dev/null
for address in 0:0 0:1; do
    dev=$(disk $address)
    fact $address node "$dev"
    fact $address block-size "$(blockdev --getss $dev)"
    step "$dev: mkfs.ext4, mount"
    mkfs.ext4 -q -F $dev
    mount -t ext4 $dev mnt
    step "$dev: copy {COPY_MIB} MiB of random data, mount again, compare"
    cp source mnt/copy
    fact $address source $(sum source)
    umount mnt
    mount -t ext4 $dev mnt
    fact $address copy $(sum mnt/copy)
    step "$dev: fio, 4 KiB random reads and writes, 32 deep, for {FIO_SECONDS} s"
    fio --name=demo --filename=mnt/fio --size=64M --rw=randrw --bs=4k --iodepth=32 \\
        --ioengine=libaio --direct=1 --time_based --runtime={FIO_SECONDS} \\
        --eta=never --output-format=json --output=fio.json
    fact $address fio $(tr -d ' \\n' <fio.json)
    umount mnt
done
step "power off"
"""


@dataclass
class Disk:
    """One of the demonstration's disks, and what became known of it."""

    address: str
    what: str
    lun: str
    """The value of ``--lun``."""
    image: Path | None = None
    facts: dict[str, str] = field(default_factory=dict)

    def iops(self, direction: str) -> int:
        """What fio measured for ``read`` or ``write``."""
        measured: float = json.loads(self.facts["fio"])["jobs"][0][direction]["iops"]
        return round(measured)


class Steps:
    """Shows one step after another: a spinner meanwhile on a terminal, one line each in a log."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status = console.status("")
        self._title: str | None = None
        self._lines: list[str] = []
        self._began = 0.0

    def begin(self, title: str) -> None:
        """Ends the step before, and begins this one."""
        self._end("[green]✓[/]")
        self._title, self._lines, self._began = title, [], time.monotonic()
        self._status.update(escape(title))
        self._status.start()

    def show(self, line: str) -> None:
        """Something that the step under way has to show."""
        self._lines.append(line)

    def __enter__(self) -> Steps:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end("[green]✓[/]" if error is None else "[red]✗[/]")

    def _end(self, mark: str) -> None:
        self._status.stop()
        if self._title is None:
            return
        seconds = time.monotonic() - self._began
        self._console.print(
            f"{mark} {escape(self._title)} [dim]({seconds:.1f} s)[/]", soft_wrap=True
        )
        for line in self._lines:
            self._console.print(f"    {escape(line)}", highlight=False, soft_wrap=True)
        self._title = None


def run(kind: str, console: Console) -> None:
    """The whole demonstration in a guest of `kind` (``uml`` or ``qemu``), shown on `console`.

    `GuestError` or `ServerError` if anything did not work as it must.
    """
    require_programs(kind)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="vscsi-emu-demo-") as scratch, Steps(console) as steps:
        image = Path(scratch, "disk.img")
        with image.open("wb") as handle:
            handle.truncate(DISK_MIB << 20)
        disks = [
            Disk("0:0", "file", f"0:0={image}", image),
            Disk("0:1", "RAM", f"0:1=mem:{DISK_MIB}M,block-size=4096"),
        ]
        steps.begin(f"vscsi-emu serve: a file and a RAM disk of {DISK_MIB} MiB each")
        with HbaProcess([disk.lun for disk in disks]) as hba:
            steps.begin(f"boot a {kind} guest that is attached to it")
            _watch(_guest(kind, hba.socket), disks, steps)
        steps.begin("compare with the image on the host")
        for disk in disks:
            _verify(disk, Path(scratch, "copy"))
    console.print(_summary(disks))
    console.print(f"[green]all good[/] after {time.monotonic() - began:.0f} s")


def require_programs(kind: str) -> None:
    """`GuestUnavailable` with the exact line that installs what is not there."""
    packages = {package for name, package in _PROGRAMS.items() if find_program(name) is None}
    if kind == "uml" and find_program("linux.uml") is None:
        packages.add("user-mode-linux")
    if packages:
        raise GuestUnavailable(
            "the demo needs programs that are not installed; as root, run:\n"
            f"    apt-get install {' '.join(sorted(packages))}"
        )


def _guest(kind: str, socket: Path) -> LinuxGuest:
    return UmlGuest([socket]) if kind == "uml" else QemuGuest([socket])


def _watch(guest: LinuxGuest, disks: list[Disk], steps: Steps) -> None:
    by_address = {disk.address: disk for disk in disks}
    with guest.start(_SCRIPT, TIMEOUT_SECONDS) as running:
        for line in running.lines():
            match line.split(maxsplit=3):
                case ["@step", *_]:
                    steps.begin(line.removeprefix("@step "))
                case ["@fact", address, name, value] if address in by_address:
                    by_address[address].facts[name] = value
                case _:
                    steps.show(line)
        running.wait().check()


def _verify(disk: Disk, scratch: Path) -> None:
    """The copy is what was copied: as the guest read it, and in the image."""
    sums = {"read by the guest": disk.facts.get("copy")}
    if disk.image is not None:
        _host("e2fsck", "-fn", str(disk.image))
        _host("debugfs", "-R", f"dump /copy {scratch}", str(disk.image))
        sums["in the image"] = hashlib.sha256(scratch.read_bytes()).hexdigest()
    for where, checksum in sums.items():
        if checksum is None or checksum != disk.facts.get("source"):
            raise GuestError(
                f"{disk.what} disk: the copy {where} has SHA-256 {checksum}, "
                f"the original {disk.facts.get('source')}"
            )


def _host(name: str, *arguments: str) -> None:
    program = find_program(name)
    assert program is not None, "require_programs comes first"
    done = subprocess.run(
        [program, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    if done.returncode:
        raise GuestError(
            f"{name} on the host exited with {done.returncode}:\n{done.stdout}{done.stderr}"
        )


def _summary(disks: list[Disk]) -> Table:
    table = Table(title="What the guest did", title_justify="left")
    for column in ("disk", "node", "block", "SHA-256, original = copy in"):
        table.add_column(column, no_wrap=True)
    table.add_column("IOPS read / write", justify="right", no_wrap=True)
    for disk in disks:
        places = "guest, image" if disk.image else "guest"
        table.add_row(
            disk.what,
            disk.facts["node"],
            disk.facts["block-size"],
            f"{disk.facts['copy'][:12]}… [green]=[/] {places}",
            f"{disk.iops('read'):,} / {disk.iops('write'):,}",
        )
    return table
