"""What people do with disks: file systems, fio, discard, sg tools. One boot a kind of guest.

The guest works through all disks, section by section; the tests then look at what each did, and
at the images it left on the host.
"""

from __future__ import annotations

import hashlib
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from vscsi_emu.testing import HbaProcess
from vscsi_emu.testing.initramfs import find_program

from .conftest import make_guest
from .report import SECTIONS, Section, parse

pytestmark = [pytest.mark.guest, pytest.mark.timeout(600)]

MIB = 1 << 20
DISK_MIB = 192
COPY_MIB = 64
FULL_MIB = 16
HUGE = 3 << 40
BOOT_SECONDS = 420.0

# Tools that must exit 0, each with something only a right answer makes them say.
TOOLS = {
    "sg_inq": ("sg_inq $(sg $1)", "Peripheral device type: disk"),
    "sg_vpd": ("sg_vpd -a $(sg $1)", "Block limits VPD page"),
    "sg_luns": ("sg_luns $(sg $1)", "Lun list length"),
    "sg_readcap": ("sg_readcap --16 $(sg $1)", "Logical block length"),
    "sg_opcodes": ("sg_opcodes $(sg $1)", "Test Unit Ready"),
    "sg_modes": ("sg_modes -a $(sg $1)", "Caching"),
    "sg_reset": ("sg_reset --device $(sg $1)", ""),
}

SCRIPT = (
    SECTIONS
    + "\n".join(f"{name}() {{ set -e; command {line}; }}" for name, (line, _) in TOOLS.items())
    + f"""
sum() {{ sha256sum "$1" | cut -d' ' -f1; }}

block_size() {{ blockdev --getss $(disk $1); }}

# Two jobs on halves of their own, small and large requests, each verified.
fio_verify() {{
    for bs in 4k 128k; do
        fio --name=verify --filename=$(disk $1) --rw=randrw --bs=$bs --verify=crc32c \\
            --verify_fatal=1 --iodepth=32 --numjobs=2 --size=24M --offset_increment=24M \\
            --ioengine=libaio --direct=1 --eta=never --randrepeat=0 || return
    done
}}

file_system() {{
    set -e
    dev=$(disk $1)
    mkfs.ext4 -q -F $dev
    mount -t ext4 $dev mnt
    cp source mnt/copy
    umount mnt
    mount -t ext4 $dev mnt
    echo "source $(sum source)"
    echo "copy $(sum mnt/copy)"
    umount mnt
}}

discard() {{
    set -e
    dev=$(disk $1)
    cat /sys/block/${{dev##*/}}/queue/discard_max_bytes
    blkdiscard $dev
    cmp -n $(blockdev --getsize64 $dev) $dev /dev/zero
}}

last_block() {{
    set -e
    dev=$(disk $1)
    blockdev --getsize64 $dev
    last=$(($(blockdev --getsz $dev) - 1))
    printf '%-511s\\n' "the last block" >block
    dd if=block of=$dev bs=512 seek=$last oflag=direct conv=notrunc 2>/dev/null
    dd if=$dev of=back bs=512 skip=$last iflag=direct 2>/dev/null
    cmp block back
}}

dd if=/dev/urandom of=source bs=1M count={COPY_MIB} 2>/dev/null
for address in 0:0 0:1 1:0 1:1; do
    section $address.block_size block_size $address
    for tool in {" ".join(TOOLS)}; do section $address.$tool $tool $address; done
    section $address.fio fio_verify $address
    section $address.file_system file_system $address
done
section 2:0.discard discard 2:0
section 2:1.discard discard 2:1
section 7:0.last_block last_block 7:0
"""
)


@dataclass(frozen=True)
class Disk:
    """A disk of the everyday set: target 0 are files, target 1 RAM; LUN 1 has 4096-byte blocks."""

    address: str
    block_size: int
    image: str | None

    def __str__(self) -> str:
        return f"{'file' if self.image else 'mem'}-{self.block_size}"


DISKS = [
    Disk("0:0", 512, "disk512.img"),
    Disk("0:1", 4096, "disk4096.img"),
    Disk("1:0", 512, None),
    Disk("1:1", 4096, None),
]
disks = pytest.mark.parametrize("disk", DISKS, ids=str)


@dataclass(frozen=True)
class Everyday:
    """What a guest did, and the directory with the images it left."""

    sections: dict[str, Section]
    directory: Path


def sparse(path: Path, size: int) -> Path:
    with path.open("wb") as handle:
        handle.truncate(size)
    return path


def full(path: Path, size: int) -> Path:
    path.write_bytes(b"\xa5" * size)
    return path


@pytest.fixture(scope="module")
def everyday(kind: str) -> Iterator[Everyday]:
    """Boots once, with every disk these tests want, and runs everything."""
    with tempfile.TemporaryDirectory(prefix="vscsi-emu-everyday-") as scratch:
        directory = Path(scratch)
        luns = []
        for disk in DISKS:
            uri = f"mem:{DISK_MIB}M"
            if disk.image:
                uri = str(sparse(directory / disk.image, DISK_MIB * MIB))
            luns.append(f"{disk.address}={uri},block-size={disk.block_size}")
        for lun, block_size in enumerate((512, 4096)):
            image = full(directory / f"full{block_size}.img", FULL_MIB * MIB)
            luns.append(f"2:{lun}={image},block-size={block_size}")
        luns.append(f"7:0={sparse(directory / 'huge.img', HUGE)}")
        with HbaProcess(luns, queues=2) as hba:
            result = make_guest(kind, [hba]).run(SCRIPT, BOOT_SECONDS)
            assert hba.running, hba.log
        yield Everyday(parse(result.check().output), directory)


def host(*command: str) -> str:
    """Runs a program of the host on an image; its output."""
    program = find_program(command[0])
    assert program, f"{command[0]} is not installed"
    done = subprocess.run(
        [program, *command[1:]], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout}{done.stderr}"
    return done.stdout


@disks
def test_the_guest_sees_the_block_size(everyday: Everyday, disk: Disk) -> None:
    output = everyday.sections[f"{disk.address}.block_size"].check()
    assert int(output) == disk.block_size


@disks
def test_a_file_system_keeps_a_copy(everyday: Everyday, disk: Disk, tmp_path: Path) -> None:
    output = everyday.sections[f"{disk.address}.file_system"].check()
    sums = dict(line.split() for line in output.splitlines())
    assert len(sums["source"]) == 64
    assert sums["copy"] == sums["source"]
    if disk.image:
        image = everyday.directory / disk.image
        host("e2fsck", "-fn", str(image))
        host("debugfs", "-R", f"dump /copy {tmp_path / 'copy'}", str(image))
        data = (tmp_path / "copy").read_bytes()
        assert len(data) == COPY_MIB * MIB
        assert hashlib.sha256(data).hexdigest() == sums["source"]


@disks
def test_fio_reads_what_it_wrote(everyday: Everyday, disk: Disk) -> None:
    output = everyday.sections[f"{disk.address}.fio"].check()
    assert output.count("err= 0") == 4, output


@disks
@pytest.mark.parametrize("tool", TOOLS)
def test_sg_tool(everyday: Everyday, disk: Disk, tool: str) -> None:
    output = everyday.sections[f"{disk.address}.{tool}"].check()
    assert TOOLS[tool][1].lower() in output.lower()
    if tool == "sg_readcap":
        assert f"Logical block length={disk.block_size} bytes" in output
    if tool == "sg_luns":
        assert output.split()[-2:] == ["0000000000000000", "0001000000000000"]


@pytest.mark.parametrize("lun", [0, 1], ids=["512", "4096"])
def test_blkdiscard_frees_space_in_the_file(everyday: Everyday, lun: int) -> None:
    everyday.sections[f"2:{lun}.discard"].check()
    image = everyday.directory / f"full{(512, 4096)[lun]}.img"
    assert image.stat().st_size == FULL_MIB * MIB
    assert image.stat().st_blocks * 512 < MIB


def test_the_last_block_of_three_tebibytes(everyday: Everyday) -> None:
    output = everyday.sections["7:0.last_block"].check()
    assert int(output.split()[0]) == HUGE
    image = everyday.directory / "huge.img"
    assert image.stat().st_size == HUGE
    with image.open("rb") as handle:
        handle.seek(HUGE - 512)
        assert handle.read() == b"the last block".ljust(511) + b"\n"
