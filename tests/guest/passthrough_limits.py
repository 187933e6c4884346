"""What a guest is told of its host's limits, and that it need not keep to them: runs inside a guest
whose host bus adapter is scsi_debug. ``python -m tests.guest.passthrough_limits MODULE``."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from tests.guest.passthrough import (
    BLOCK,
    DRIVER,
    MIB,
    SECONDS,
    Machine,
    attach,
    memory,
    passing_to,
    pattern,
    read_10,
    reload,
    run,
    scsi_device,
    until,
)
from vscsi_emu.backends.uri import parse_lun
from vscsi_emu.config import from_arguments
from vscsi_emu.disk import OperationError
from vscsi_emu.driver.request import every, paged
from vscsi_emu.driver.scan import retried
from vscsi_emu.driver.virtio_scsi import Options, VirtioScsi
from vscsi_emu.host.ioctl import BLKSECTGET, SG_GET_SG_TABLESIZE
from vscsi_emu.inprocess import InProcess
from vscsi_emu.scsi.sense import Asc
from vscsi_emu.virtio.config import ScsiConfig
from vscsi_emu.virtio.scsi import EventType, ResetReason

PAGE: Final = os.sysconf("SC_PAGE_SIZE")
ROOT: Final = Path(__file__).parents[2]
EXAMPLE: Final = ROOT / "examples" / "passthrough_limits.py"
DEFAULTS: Final = ScsiConfig()
OBEDIENT: Final = Options()


# ── The matrix ─────────────────────────────────────────────────────────────────────────────────


class Row(NamedTuple):
    """scsi_debug's parameters, what sysfs is told then, and what the device must look like."""

    parameters: str
    sysfs: Mapping[str, int] = {}
    type: int = 0
    size: int = 8 * MIB
    block: int = 512
    granularity: int = 1
    """Optimal transfer length granularity, in blocks."""
    lbpme: int = 0
    protection: int = 0
    """P_TYPE, from 1; 0: none."""


SECTORS, DEPTH = "queue/max_sectors_kb", "device/queue_depth"
MATRIX: Final = {
    "plain": Row("dev_size_mb=8"),
    "max_queue=1": Row("max_queue=1"),
    "max_queue=5": Row("max_queue=5"),
    "opt_xferlen_exp=3": Row("opt_blks=64 opt_xferlen_exp=3", granularity=8),
    "opt_xferlen_exp=7": Row("opt_blks=4096 opt_xferlen_exp=7", granularity=128),
    "sector_size=1024": Row("sector_size=1024", block=1024),
    "sector_size=4096": Row("sector_size=4096", block=4096),
    "virtual_gb=3": Row("virtual_gb=3", size=3 << 30),
    "virtual_gb=3000": Row("virtual_gb=3000", size=3000 << 30),
    "lbpu": Row("lbpu=1", lbpme=1),
    "dif=1": Row("dif=1", protection=1),
    "dif=3": Row("dif=3", protection=3),
    "4 KiB": Row("", {SECTORS: 4}),
    "64 KiB, depth 3": Row("", {SECTORS: 64, DEPTH: 3}),
    "4096, 16 KiB": Row("sector_size=4096", {SECTORS: 16}, block=4096),
    # It has no Block Limits page: the guest's is made, and knows no granularity.
    "optical": Row("ptype=7", type=7, granularity=0),
    "optical, 8 KiB": Row("ptype=7", {SECTORS: 8}, type=7, granularity=0),
    "tape": Row("ptype=1", type=1, size=0),
    "cd": Row("ptype=5", type=5, size=0),
    "enclosure": Row("ptype=13", type=0x0D, size=0),
}
COLUMNS: Final = (
    "device",
    "host: KiB",
    "segments",
    "depth",
    "config: max_sectors",
    "seg_max",
    "cmd_per_lun",
    "VPD: maximum",
    "optimal",
    "granularity",
    "blocks",
    "of",
)


def matrix(modules: list[str]) -> None:
    table: list[tuple[str, ...]] = [COLUMNS]
    for name, row in MATRIX.items():
        reload(modules, *row.parameters.split())
        table.append(tuple(map(str, (name, *checked(row)))))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        print("  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)))


def checked(row: Row) -> tuple[int | str, ...]:
    """One line of the table, whose guest's side is asserted to be the host's."""
    node, host = host_of(row)
    with passing_to(f"sg:{node}", OBEDIENT) as machine:
        config = machine.device.config
        assert config.max_sectors == host.sectors, (row, config, host)
        assert config.seg_max == min(DEFAULTS.seg_max, host.segments), (row, config, host)
        assert config.cmd_per_lun == min(DEFAULTS.cmd_per_lun, host.depth), (row, config, host)
        inquiry = machine.good(bytes([0x12, 0, 0, 0, 36, 0]), b"", 36)
        assert inquiry[0] == row.type, (row, inquiry.hex())
        told = (config.max_sectors, config.seg_max, config.cmd_per_lun)
        seen = (host.sectors // 2, host.segments, host.depth)
        if not row.size:
            return *seen, *told, *["-"] * 5
        page = machine.good(bytes([0x12, 1, 0xB0, 0, 64, 0]), b"", 64)
        granularity, most, optimal = struct.unpack_from(">HII", page, 6)
        assert most == host.sectors * 512 // row.block, (row, page.hex(), host)
        assert granularity == row.granularity, (row, page.hex())
        assert optimal <= most, (row, page.hex())
        if granularity:
            assert optimal > 0, (row, page.hex())
            assert optimal % granularity == 0 or granularity > most, (row, page.hex())
        cdb = struct.pack(">BB8xIxx", 0x9E, 0x10, 32)
        last, block, protection, _, provisioning = struct.unpack_from(
            ">QIBBH", machine.good(cdb, b"", 32)
        )
        assert (last + 1, block) == (row.size // row.block, row.block), (row, last, block)
        assert provisioning >> 15 == row.lbpme, row
        lowered(machine, row, host)
        prot_en, p_type = protection & 1, protection >> 1 & 7
        assert (prot_en and p_type + 1) == row.protection, (row, protection)
        return *seen, *told, most, optimal, granularity, last + 1, block


def lowered(machine: Machine, row: Row, host: Host) -> None:
    """While it runs: page and configuration space follow, below what the host gives."""
    control = machine.server.control
    control.lun_set("0:0", max_sectors=8)
    machine.take_attentions()
    page = machine.good(bytes([0x12, 1, 0xB0, 0, 64, 0]), b"", 64)
    assert int.from_bytes(page[8:12]) == 8 * 512 // row.block, (row, page.hex())
    assert int.from_bytes(machine.device.bus.read_config(8, 4), "little") == 8, row
    text = refusal(lambda: control.lun_set("0:0", max_sectors=host.sectors + 1))
    assert f"is above {min(host.sectors, DEFAULTS.max_sectors)}, " in text, (row, text)
    control.lun_set("0:0", max_sectors=0)
    machine.take_attentions()


def refusal(call: Callable[[], object]) -> str:
    """What a call that cannot be done says."""
    try:
        call()
    except OperationError as error:
        return str(error)
    return "it can be done"


class Host(NamedTuple):
    """Of the device, from the kernel."""

    sectors: int
    segments: int
    depth: int


def host_of(row: Row) -> tuple[str, Host]:
    """Its node, and its limits, read without our package's own discovery."""
    if row.size:
        until(Path("/sys/block/sda/queue/max_sectors_kb").exists, "no disk")
    (sg,) = Path("/sys/class/scsi_generic").iterdir()
    device = sg / "device"
    blocks = list(Path("/sys/block").glob("sd*"))
    for attribute, value in row.sysfs.items():
        (blocks[0] / attribute).write_text(str(value))

    def number(path: Path) -> int:
        return int(path.read_text())

    host = next(Path("/sys/class/scsi_host").iterdir())
    depth = min(number(device / "queue_depth"), number(host / "can_queue"))
    segments = number(host / "sg_tablesize")
    if blocks:
        queue = blocks[0] / "queue"
        segments = min(segments, number(queue / "max_segments"))
        sectors = 2 * number(queue / "max_sectors_kb")
        node = f"/dev/{blocks[0].name}"
    else:
        node = f"/dev/{sg.name}"
        with open(node, "rb", buffering=0) as opened:
            answer = bytearray(4)
            fcntl.ioctl(opened, BLKSECTGET, answer)
            sectors = int.from_bytes(answer, "little") // 512
            fcntl.ioctl(opened, SG_GET_SG_TABLESIZE, answer)
            segments = min(segments, int.from_bytes(answer, "little"))
    return node, Host(min(sectors, segments * PAGE // 512), segments, depth)


# ── Requests of any size ───────────────────────────────────────────────────────────────────────

ODD: Final = (BLOCK, 3 * BLOCK, 127 * BLOCK, 999 * BLOCK, MIB + BLOCK, 5 * MIB - 7 * BLOCK)
LIMITS_KIB: Final = (4, 28, 256, 1024)
LONG_MIB: Final = 64
"""At the least limit; pages are dear in User-Mode Linux, so not at all of them."""
RAM: Final = 80 * MIB


def sizes() -> None:
    """Up to 64 MiB in one command, whatever the host takes."""
    queue = Path("/sys/block/sda/queue/max_sectors_kb")
    for kib in LIMITS_KIB:
        queue.write_text(str(kib))
        old = Options(obey_limits=False)
        with passing_to("sg:/dev/sda", old, ram=RAM) as machine:
            for number, length in enumerate(ODD):
                machine.round_trip(3 * number, pattern(length, number))
            assert machine.unit.device.split == 2 * sum(length > kib << 10 for length in ODD)
            if kib == min(LIMITS_KIB):
                long_read(machine, LONG_MIB)


def long_read(machine: Machine, mib: int) -> None:
    with open("/dev/sda", "wb", buffering=0) as disk:
        for number in range(mib):
            disk.write(pattern(MIB, number))
        os.fsync(disk)
    cdb = struct.pack(">BBQIBB", 0x88, 0, 0, mib * MIB // BLOCK, 0, 0)
    back = memoryview(machine.good(cdb, b"", mib * MIB))
    for number in range(mib):
        assert back[number * MIB : (number + 1) * MIB] == pattern(MIB, number), number


def segments() -> None:
    """Thousands of segments, each smaller than what any host's DMA takes."""
    Path("/sys/block/sda/queue/max_sectors_kb").write_text("64")
    old = Options(obey_limits=False, framing=every(61), align=1, queue_size=1024)
    with passing_to("sg:/dev/sda", old) as machine:
        for number in range(4):  # 992 each
            machine.round_trip(118 * number, pattern(118 * BLOCK, number))
        assert machine.unit.device.bounced == 8
    Path("/sys/block/sda/queue/max_sectors_kb").write_text("1024")


ALIGNMENT: Final = {"": 0, "dma_alignment": 511, "virt_boundary_mask": 4095}


def alignment() -> None:
    """Segments go where the host says that its DMA does. No driver here has such limits: it is
    sysfs that says so, and what sysfs says that counts."""
    for attribute, value in ALIGNMENT.items():
        with claimed(attribute, value):
            for size, bounced in ((PAGE, 0), (PAGE // 4 + 4, 2 if attribute else 0)):
                pieces = Options(framing=paged(size), align=PAGE)
                with passing_to("sg:/dev/sda", pieces) as machine:
                    before = machine.unit.device.bounced
                    machine.round_trip(8, pattern(8 * PAGE, size))
                    assert machine.unit.device.bounced - before == bounced, (attribute, size)


@contextmanager
def claimed(attribute: str, value: int) -> Iterator[None]:
    """sysfs says that a limit of the disk has this value."""
    if not attribute:
        yield
        return
    path, said = Path("/sys/block/sda/queue") / attribute, Path("/tmp") / attribute
    said.write_text(str(value))
    subprocess.run(["mount", "--bind", said, path], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", path], check=True)


def residuals() -> None:
    """What a device does not move is what the guest is told, in one piece or in many."""
    Path("/sys/block/sda/queue/max_sectors_kb").write_text("64")
    with passing_to("sg:/dev/sda") as machine:
        for blocks in (1, 300, 4096):
            longer = (blocks + 5) * BLOCK
            result = machine.command(read_10(0, blocks), b"", longer)
            assert (result.response, result.status) == (0, 0), result
            assert result.residual == 5 * BLOCK, (blocks, result.residual)
            assert len(result.data) == blocks * BLOCK
    Path("/sys/block/sda/queue/max_sectors_kb").write_text("1024")


# ── Devices that come later ────────────────────────────────────────────────────────────────────


def hot_plugged() -> None:
    """A device that comes later lowers limits, and the driver is told; when it goes, it is told,
    although there was none when the server began."""
    queue = Path("/sys/block/sda/queue/max_sectors_kb")
    queue.write_text("16")
    with InProcess(from_arguments(["0:0=mem:1M"]), memory=memory()) as machine:
        (slot,) = machine.slots
        driver = attach(slot, Options())
        take_attentions(driver, 0)
        before = driver.bus.config_changes  # type: ignore[attr-defined]
        old = driver.config
        service = machine._service
        lun = parse_lun("1:0=sg:/dev/sda")
        machine.call(lambda: service.add_luns(slot.hba, [lun]), timeout=SECONDS)
        events = [driver.next_event(SECONDS), driver.next_event(SECONDS)]
        found = {(event.event, event.reason, event.lun[1]) for event in events if event}
        changed = (Asc.PARAMETERS_CHANGED >> 8) | (Asc.PARAMETERS_CHANGED & 0xFF) << 8
        assert found == {
            (EventType.PARAM_CHANGE, changed, 0),
            (EventType.TRANSPORT_RESET, ResetReason.RESCAN, 1),
        }, events
        assert driver.bus.config_changes > before  # type: ignore[attr-defined]
        new = ScsiConfig.unpack(driver.bus.read_config(0, 36))
        assert new.max_sectors == 32 < old.max_sectors, new
        sense = driver.execute(0, 0, bytes(6)).sense
        assert sense[2:3] + sense[12:14] == b"\x06\x2a\x00", sense.hex()
        # The driver has not read the configuration space again.
        take_attentions(driver, 1)
        result = driver.execute(1, 0, read_10(0, 2048), data_in_length=MIB)
        assert (result.response, result.status, len(result.data)) == (0, 0, MIB), result
        (scsi_device("sda") / "delete").write_text("1")
        event = driver.next_event(SECONDS)
        assert event, "no event"
        assert (event.event, event.reason) == (EventType.TRANSPORT_RESET, ResetReason.REMOVED)
    Path("/sys/class/scsi_host/host0/scan").write_text("- - -")


def take_attentions(driver: VirtioScsi, target: int) -> None:
    assert not retried(driver, target, 0, bytes(6), 0).status


def example() -> None:
    """The bug of 2011, before and after."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), "/dev/sda"],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    print(done.stdout, done.stderr)
    assert done.returncode == 0
    before, knows, split = done.stdout.splitlines()
    assert "failed" in before
    assert f"{0xFFFF * 512} bytes" in knows
    assert f"{0xFFFF * 512} bytes, 1 split" in split


def main() -> None:
    modules = sys.argv[1:]
    assert DRIVER.exists()
    run(
        {
            "example": example,
            "sizes": sizes,
            "segments": segments,
            "alignment": alignment,
            "residuals": residuals,
            "hot_plugged": hot_plugged,
            "matrix": partial(matrix, modules),
        }
    )


if __name__ == "__main__":
    main()
