"""What runs inside a guest whose host bus adapter is scsi_debug: an HBA that passes commands to it,
and our own driver as the guest of that. ``python -m tests.guest.passthrough``."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any, Final, NamedTuple
from unittest import mock

import pytest
import pyudev
import sgio

from vscsi_emu import _dataplane
from vscsi_emu.backends import sg as backend
from vscsi_emu.config import from_arguments
from vscsi_emu.driver.dma import DmaAllocator
from vscsi_emu.driver.mmio import VirtioMmioBus
from vscsi_emu.driver.request import Result, every
from vscsi_emu.driver.virtio_scsi import REQUEST_QUEUE, InFlight, Options, VirtioScsi
from vscsi_emu.host.errors import HostError
from vscsi_emu.inprocess import InProcess, Slot
from vscsi_emu.passthrough import PassthroughUnit
from vscsi_emu.scsi import passing
from vscsi_emu.service import StartError
from vscsi_emu.virtio.config import ScsiConfig
from vscsi_emu.virtio.scsi import (
    FUNCTION_COMPLETE,
    EventType,
    ResetReason,
    Response,
    TmfType,
)

MIB: Final = 1 << 20
MEMORY: Final = 24 * MIB
BLOCK: Final = 512
BLOCKS: Final = 64 * MIB // BLOCK
SECONDS: Final = 240.0
"""Ends what hangs, on a machine of any load."""
DRIVER: Final = Path("/sys/bus/pseudo/drivers/scsi_debug")
OPTIONS: Final = Options(obey_limits=False)
"""An old driver: it does not know what the host takes."""

COMMANDS: Final = 40
MANY: Final = 64

MEDIUM, TIMEOUT, RECOVERED, TRANSPORT = 0x02, 0x04, 0x08, 0x10
MEDIUM_ERROR_LBA: Final = 0x1234


class Machine(NamedTuple):
    device: VirtioScsi
    unit: PassthroughUnit
    server: InProcess

    def command(self, cdb: bytes, data_out: bytes = b"", data_in_length: int = 0) -> Result:
        return self.device.execute(0, 0, cdb, data_out=data_out, data_in_length=data_in_length)

    def take_attentions(self) -> None:
        """Until TEST UNIT READY is GOOD."""
        for _ in range(8):
            result = self.command(bytes(6))
            if not result.status:
                return
            assert result.sense[2] == 6, show(result)

    def good(self, cdb: bytes, data_out: bytes = b"", data_in_length: int = 0) -> bytes:
        result = self.command(cdb, data_out, data_in_length)
        assert (result.response, result.status) == (0, 0), show(result)
        assert result.residual == 0, show(result)
        return result.data

    def round_trip(self, lba: int, data: bytes) -> None:
        blocks = len(data) // BLOCK
        self.good(struct.pack(">BBQIBB", 0x8A, 0, lba, blocks, 0, 0), data)
        back = self.good(struct.pack(">BBQIBB", 0x88, 0, lba, blocks, 0, 0), b"", len(data))
        assert back == data, "other data came back"


def show(result: Result) -> str:
    return (
        f"response {result.response}, status {result.status:#x}, sense {result.sense.hex()}, "
        f"residual {result.residual}"
    )


@cache
def memory(size: int = MEMORY) -> _dataplane.GuestMemory:
    """The same for all: pages are dear in User-Mode Linux."""
    return _dataplane.GuestMemory.anonymous(size)


@contextmanager
def passing_to(lun: str, options: Options = OPTIONS, *, ram: int = MEMORY) -> Iterator[Machine]:
    with InProcess(from_arguments([f"0:0={lun}"]), memory=memory(ram)) as machine:
        (slot,) = machine.slots
        device = attach(slot, options, ram)
        unit = slot.hba.luns[0, 0]
        assert isinstance(unit, PassthroughUnit)
        found = Machine(device, unit, machine)
        found.take_attentions()
        yield found


def attach(slot: Slot, options: Options, ram: int = MEMORY, at: int = MIB) -> VirtioScsi:
    allocator = DmaAllocator(at, ram - at)
    bus = VirtioMmioBus.find(slot, slot.base, allocator, timeout=SECONDS)
    assert bus is not None
    return VirtioScsi(bus, options, timeout=SECONDS)


def pattern(length: int, seed: int) -> bytes:
    """Blocks that each say which one they are."""
    stamp = struct.Struct(">QQ")
    # In place: objects by the hundred thousand are as dear as pages.
    data = bytearray(b"\xa5") * length
    for at in range(length // BLOCK):
        stamp.pack_into(data, at * BLOCK, seed, at)
    return bytes(data)


# ── Limits ─────────────────────────────────────────────────────────────────────────────────────


def limit(kib: int) -> None:
    """Whatever the limit, the guest is told of it, and commands over it work all the same."""
    queue = Path("/sys/block/sda/queue")
    (queue / "max_sectors_kb").write_text(str(kib))
    with passing_to("sg:/dev/sda") as machine:
        assert machine.device.config.max_sectors == kib * 2, machine.device.config
        page = machine.good(bytes([0x12, 1, 0xB0, 0, 64, 0]), b"", 64)
        most, optimal = struct.unpack_from(">II", page, 8)
        assert most == kib * 2, page.hex()
        assert 0 < optimal <= most, page.hex()
        longest = MIB + 3 * BLOCK if kib < 1024 else 3 * MIB
        for number, length in enumerate((BLOCK, 100 * BLOCK, longest)):
            machine.round_trip(number * 5, pattern(length, number))
        assert machine.unit.device.split == (4 if kib < 64 else 2)
    queue.joinpath("max_sectors_kb").write_text("1024")


def lowered() -> None:
    """A limit may be lowered, and not raised: the message says what the host gives."""
    disk = ["0:0=sg:/dev/sda"]
    caps = {"max-sectors": 64, "seg-max": 8, "cmd-per-lun": 3}
    with InProcess(from_arguments(disk, caps=caps), memory=memory()) as machine:
        config = machine.slots[0].hba.config
        assert (config.max_sectors, config.seg_max, config.cmd_per_lun) == (64, 8, 3)
    Path("/sys/block/sda/queue/max_sectors_kb").write_text("512")
    wanted = from_arguments(disk, caps={"max-sectors": 1025})
    with pytest.raises(StartError, match="above 1024, queue/max_sectors_kb"), InProcess(wanted):
        pass


def relimited() -> None:
    """The driver hears of a limit that is changed on the host while it is there."""
    queue = Path("/sys/block/sda/queue/max_sectors_kb")
    with passing_to("sg:/dev/sda") as machine:
        device = machine.device
        for kib, split in ((64, 2), (1024, 0), (128, 2)):
            changes, before = device.bus.config_changes, machine.unit.device.split  # type: ignore[attr-defined]
            queue.write_text(str(kib))
            event = device.next_event(SECONDS)
            assert event, "no event"
            assert (event.event, event.reason) == (EventType.PARAM_CHANGE, 0x2A)
            assert device.bus.config_changes > changes  # type: ignore[attr-defined]
            config = ScsiConfig.unpack(device.bus.read_config(0, 36))
            assert config.max_sectors == 2 * kib, config
            senses = [machine.command(bytes(6)).sense for _ in range(2)]
            codes = {sense[2:3] + sense[12:14] for sense in senses}
            assert codes == {b"\x06\x3f\x03", b"\x06\x2a\x00"}, codes
            page = machine.good(bytes([0x12, 1, 0xB0, 0, 64, 0]), b"", 64)
            assert int.from_bytes(page[8:12]) == 2 * kib, page.hex()
            machine.round_trip(kib, pattern(MIB, kib))
            assert machine.unit.device.split - before == split
        depth = scsi_device("sda") / "queue_depth"
        usual = depth.read_text()
        depth.write_text("2")
        assert device.next_event(SECONDS)
        assert ScsiConfig.unpack(device.bus.read_config(0, 36)).cmd_per_lun == 2
        depth.write_text(usual)
    queue.write_text("1024")


def huge() -> None:
    """16 MiB in one command."""
    with open("/dev/sda", "wb", buffering=0) as disk:
        for number in range(16):
            disk.write(pattern(MIB, number))
    with passing_to("sg:/dev/sda") as machine:
        back = machine.good(struct.pack(">BBQIBB", 0x88, 0, 0, 2**15, 0, 0), b"", 16 * MIB)
        for number in range(16):
            assert back[number * MIB : (number + 1) * MIB] == pattern(MIB, number), number


def tiny_segments() -> None:
    """Segments of a few bytes at odd addresses, where no host's DMA goes."""
    options = Options(obey_limits=False, framing=every(25), align=1, queue_size=1024)
    with passing_to("sg:/dev/sda", options) as machine:
        machine.round_trip(9, pattern(16 * BLOCK, 3))
        assert machine.unit.device.bounced == 2


def nodes() -> None:
    """Every kind of node moves the same data."""
    for number, node in enumerate(("/dev/sda", "/dev/sg0", "/dev/bsg/0:0:0:0")):
        with passing_to(f"sg:{node}") as machine:
            machine.round_trip(100, pattern(MIB + BLOCK, number))
            result = machine.command(bytes([0x28, 0, 0xFF, 0, 0, 0, 0, 0, 1, 0]), b"", BLOCK)
            assert result.sense[2] == 5, show(result)


def pool_threads() -> set[str]:
    tasks = Path("/proc/self/task").iterdir()
    return {task.name for task in tasks if (task / "comm").read_text().startswith("vscsi-pool")}


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def side_by_side(machine: Machine) -> bool:
    """Whether the device had all of them at once."""
    items = submit_reads(machine, COMMANDS)
    most = 0
    while most < COMMANDS and not all(item.done for item in items):
        most = max(most, commands_in_flight())
        machine.device.reap(REQUEST_QUEUE)
    assert not any(answer.status for answer in machine.device.wait_all(items))
    return most == COMMANDS


def many_in_flight() -> None:
    """Commands run side by side; those that go through an sg node keep no threads waiting."""
    for node, threads in (("/dev/sg0", 0), ("/dev/sda", COMMANDS)):
        with passing_to(f"sg:{node}") as machine:
            before = pool_threads()
            slow_enough(partial(side_by_side, machine))
            # Some of them may have been there, idle.
            now = pool_threads()
            assert len(now - before) <= threads <= len(now), (node, before, now)
            machine.round_trip(0, pattern(MIB, 5))
            answers = machine.device.wait_all(submit_reads(machine, COMMANDS))
            data = b"".join(answer.data for answer in answers)
            assert data == pattern(COMMANDS * BLOCK, 5)


# ── Errors ─────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def injected(options: int, every_nth: int = 0) -> Iterator[None]:
    (DRIVER / "opts").write_text(hex(options))
    (DRIVER / "every_nth").write_text(str(every_nth))
    try:
        yield
    finally:
        (DRIVER / "every_nth").write_text("0")
        (DRIVER / "opts").write_text("0")


def on_the_host(cdb: bytes, length: int) -> bytes:
    """Sense data that the same command gets there."""
    with open("/dev/sg0", "rb", buffering=0) as node:
        try:
            sgio.execute(node, cdb, None, bytearray(length))
        except sgio.CheckConditionError as error:
            return bytes(error.sense)
    return b""


def read_10(lba: int, blocks: int) -> bytes:
    return struct.pack(">BBIBHB", 0x28, 0, lba, 0, blocks, 0)


def errors() -> None:
    """A guest gets the sense data that the host gets."""
    with passing_to("sg:/dev/sda") as machine:
        with injected(MEDIUM):
            read = read_10(MEDIUM_ERROR_LBA, 1)
            wanted = on_the_host(read, BLOCK)
            result = machine.command(read, b"", BLOCK)
            assert (result.response, result.status) == (0, 2), show(result)
            assert result.sense[: len(wanted)] == wanted, (result.sense.hex(), wanted.hex())
            assert result.sense[2] & 0xF == 3, show(result)
            # In one of the pieces that such a command is split into.
            before = 2 * MIB
            read = read_10(MEDIUM_ERROR_LBA - before // BLOCK, 4 * MIB // BLOCK)
            result = machine.command(read, b"", 4 * MIB)
            assert result.sense[3:7] == MEDIUM_ERROR_LBA.to_bytes(4), show(result)
            # What scsi_debug has read of a piece that fails it does not give.
            assert 0 <= result.residual - (4 * MIB - before) < MIB, show(result)
        for kind, key in ((RECOVERED, 1), (TRANSPORT, 0xB)):
            with injected(kind, every_nth=1):
                wanted = on_the_host(read_10(0, 1), BLOCK)
                result = machine.command(read_10(0, 1), b"", BLOCK)
                assert (result.response, result.status) == (0, 2), show(result)
                assert result.sense[: len(wanted)] == wanted, (result.sense.hex(), wanted.hex())
                assert result.sense[2] & 0xF == key, show(result)


def timed_out() -> None:
    """A command that the device does not answer in its time is no error of the medium."""
    soon = {opcode: (2, *rule) for opcode, (_, *rule) in passing.rules(0).items()}
    for node in ("sda", "sg0"):
        with (
            mock.patch.object(backend, "rules", return_value=soon),
            passing_to(f"sg:/dev/{node}") as machine,
        ):
            with injected(TIMEOUT, every_nth=1):
                began = time.monotonic()
                result = machine.command(read_10(0, 1), b"", BLOCK)
                assert result.response == Response.TRANSPORT_FAILURE, show(result)
                assert 1.5 < time.monotonic() - began < 55, "not in the minute that others have"
            machine.take_attentions()
            machine.round_trip(0, pattern(BLOCK, 8))


def beyond_the_end() -> None:
    """Nothing of a split write is done when its end is not there."""
    with passing_to("sg:/dev/sda") as machine:
        machine.round_trip(BLOCKS - 4096, pattern(2 * MIB, 1))
        cdb = struct.pack(">BBQIBB", 0x8A, 0, BLOCKS - 4096, 4097 + 4096, 0, 0)
        result = machine.command(cdb, bytes((4097 + 4096) * BLOCK))
        assert result.sense[2:3] + result.sense[12:14] == b"\x05\x21\x00", show(result)
        machine.good(read_10(BLOCKS - 4096, 4096), b"", 2 * MIB)
        back = machine.good(read_10(BLOCKS - 4096, 4096), b"", 2 * MIB)
        assert back == pattern(2 * MIB, 1)


# ── Filter ─────────────────────────────────────────────────────────────────────────────────────


def outcome(machine: Machine, cdb: str) -> str:
    result = machine.command(bytes.fromhex(cdb))
    return (result.sense[2:3] + result.sense[12:14]).hex() if result.status else "good"


FORMAT_UNIT, TEST_UNIT_READY = "04" + "00" * 5, "00" * 6
REZERO_UNIT: Final = 0x01
"""Long obsolete, and still supported by scsi_debug."""


def filtered() -> None:
    """The three levels; what is refused is not in the list of what is supported either."""
    levels = {
        "readonly": (FORMAT_UNIT, "5f" + "00" * 9, "2a" + "00" * 9),
        "safe": (FORMAT_UNIT, "c1" + "00" * 9, "b5" + "00" * 11),
        "all": (),
    }
    for level, cdbs in levels.items():
        with passing_to(f"sg:/dev/sda,passthrough={level}") as machine:
            assert outcome(machine, TEST_UNIT_READY) == "good"
            for refused in cdbs:
                assert outcome(machine, refused) == "052000", (level, refused)
            (lun,) = machine.server.control.hba_query().luns
            assert lun.passthrough
            assert lun.passthrough.level == level
            assert lun.passthrough.refused == {cdb[:2]: 1 for cdb in cdbs}
            assert (lun.size, lun.block_size) == (BLOCKS * BLOCK, BLOCK)
            cdb = bytes([0xA3, 0x0C, 0, 0, 0, 0, 0, 0, 0x20, 0, 0, 0])
            listed = machine.command(cdb, b"", 0x2000).data
            opcodes = {listed[at] for at in range(4, len(listed), 8)}
            assert (REZERO_UNIT in opcodes) == (level == "all"), (level, opcodes)
            assert {0x00, 0x28, 0xA0} <= opcodes
            luns = machine.command(bytes([0xA0, *[0] * 7, 0, 16, 0, 0]), b"", 16).data
            assert luns == struct.pack(">II8x", 8, 0), luns.hex()


def write_protection() -> None:
    """A guest that may only read sees a disk that is write-protected, whatever the disk is."""
    wanted = {"readonly": 0x80, "safe": 0}
    for level, wp in wanted.items():
        with passing_to(f"sg:/dev/sda,passthrough={level}") as machine:
            assert machine.command(bytes([0x1A, 0, 0x3F, 0, 4, 0]), b"", 4).data[2] & 0x80 == wp
            long = machine.command(bytes([0x5A, 0, 0x3F, 0, 0, 0, 0, 2, 0, 0]), b"", 512).data
            assert long[3] & 0x80 == wp, long.hex()
            assert len(long) == 2 + int.from_bytes(long[:2]), "the rest is the device's"


def taken() -> None:
    """A disk that the host uses is refused unless one insists."""
    with open("/dev/sda", "rb", opener=exclusively):
        with pytest.raises(StartError, match="force=on"), passing_to("sg:/dev/sda"):
            pass
        with passing_to("sg:/dev/sda,force=on"):
            pass


def exclusively(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_EXCL)


# ── Task management, hot-plug ──────────────────────────────────────────────────────────────────


@contextmanager
def slowed(jiffies: int) -> Iterator[None]:
    """Commands on the medium take a while; in jiffies of 10 ms."""
    delay = DRIVER / "delay"
    before = delay.read_text()
    delay.write_text(str(jiffies))
    try:
        yield
    finally:
        delay.write_text(before)


def submit_read(machine: Machine, lba: int) -> InFlight[Result]:
    return machine.device.submit(0, 0, read_10(lba, 1), data_in_length=BLOCK)


def submit_reads(machine: Machine, count: int) -> list[InFlight[Result]]:
    return [submit_read(machine, lba) for lba in range(count)]


def commands_in_flight() -> int:
    """That the device has."""
    return int((scsi_device("sda") / "device_busy").read_text())


def slow_enough(check: Callable[[], bool]) -> None:
    """With commands that take so long that `check` finds them at work, on a machine of any load.
    (There is no other way to end them: scsi_debug's reset does not.)"""
    for jiffies in (100, 400, 1600):
        with slowed(jiffies):
            if check():
                return
    raise AssertionError("the commands were over too soon")


def task_management() -> None:
    """A reset reaches the device, and is over when its commands are; to abort one of them there is
    no way, and the guest is told so."""
    with passing_to("sg:/dev/sda") as machine:
        machine.unit.abort_seconds = 0.2
        slow_enough(partial(aborted, machine))
        slow_enough(partial(reset, machine))
        sense = machine.command(bytes(6)).sense
        assert sense[2:3] + sense[12:14] == b"\x06\x29\x03", sense.hex()


def aborted(machine: Machine) -> bool:
    """Whether it was too early."""
    (item,) = submit_reads(machine, 1)
    answer = machine.device.task_management(TmfType.ABORT_TASK, 0, 0, item.tag)
    response = machine.device.wait(item).response
    if answer == FUNCTION_COMPLETE:
        return False
    assert (answer, response) == (Response.FUNCTION_REJECTED, Response.ABORTED)
    return True


def reset(machine: Machine) -> bool:
    """Whether there was anything to end."""
    machine.take_attentions()
    items = submit_reads(machine, 3)
    answer = machine.device.task_management(TmfType.LOGICAL_UNIT_RESET, 0, 0)
    assert answer == FUNCTION_COMPLETE
    machine.device.reap(REQUEST_QUEUE)
    assert all(item.done for item in items), "it answered before they were over"
    responses = {machine.device.wait(item).response for item in items}
    return responses == {Response.RESET}


def scsi_device(disk: str) -> Path:
    """Its directory in sysfs."""
    return Path(f"/sys/block/{disk}/device").resolve()


def delete() -> None:
    Path("/sys/bus/scsi/devices/0:0:0:0/delete").write_text("1")


def scan() -> None:
    Path("/sys/class/scsi_host/host0/scan").write_text("- - -")


def scanned() -> None:
    """As `scan`, and the disk is there."""
    scan()
    # What comes last of it.
    until(Path("/sys/block/sda/queue/max_sectors_kb").exists, "the disk did not come back")


def told(machine: Machine, reason: ResetReason) -> None:
    """The driver is sent that event next."""
    event = machine.device.next_event(SECONDS)
    assert event, "no event"
    assert (event.event, event.reason) == (EventType.TRANSPORT_RESET, reason)


UNPLUGGED: Final = {
    (Response.OK, 0),
    (Response.OK, 2),
    (Response.BAD_TARGET, 0),
    (Response.TRANSPORT_FAILURE, 0),
}
"""How commands end when their device goes. CHECK CONDITION: LOGICAL UNIT NOT SUPPORTED, once it has
left its HBA. Those that are with the HBA in that moment may be lost on their way."""


def unplugged() -> None:
    """A disk that goes takes its commands with it; the same disk is known when it comes back."""
    for node in ("sda", "sg0"):
        unplug(node)


def unplug(node: str) -> None:
    with passing_to(f"sg:/dev/{node}") as machine:
        machine.round_trip(0, pattern(BLOCK, 1))
        with slowed(50):
            items = submit_reads(machine, 3)
            delete()
            answers = machine.device.wait_all(items)
        ends = {(answer.response, answer.status) for answer in answers}
        assert ends <= UNPLUGGED, ends
        told(machine, ResetReason.REMOVED)
        sense = machine.command(bytes(6)).sense
        assert sense[2:3] + sense[12:14] == b"\x05\x25\x00", sense.hex()
        scan()
        told(machine, ResetReason.RESCAN)
        machine.take_attentions()
        machine.round_trip(0, pattern(BLOCK, 2))


def unplugged_under_load() -> None:
    """Commands are on their way all the time, sometimes more than the device takes; each ends, and
    none as if nothing had happened."""
    depth = scsi_device("sda") / "queue_depth"
    before = int(depth.read_text())
    for node, at_most in (("sda", before), ("sg0", before), ("sg0", 1)):
        (scsi_device("sda") / "queue_depth").write_text(str(at_most))
        with passing_to(f"sg:/dev/{node}") as machine:
            device, ends = machine.device, Counter[tuple[int, int]]()
            items = submit_reads(machine, MANY)
            while not ends[Response.OK, 2]:
                answer = device.wait(items.pop(0))
                ends[answer.response, answer.status] += 1
                items.append(submit_read(machine, 0))
                if ends.total() == 200:
                    delete()
            for answer in device.wait_all(items):
                ends[answer.response, answer.status] += 1
            assert ends.keys() <= UNPLUGGED, ends
            assert ends[Response.TRANSPORT_FAILURE, 0] <= MANY, "only those that were on their way"
            told(machine, ResetReason.REMOVED)
        scanned()


def replaced() -> None:
    """A disk that is back before anybody has looked was away all the same."""
    with passing_to("sg:/dev/sda") as machine:

        async def away_and_back() -> None:
            """On the event loop, which sees both at once."""
            delete()
            scan()

        machine.server.call(away_and_back, timeout=SECONDS)
        told(machine, ResetReason.REMOVED)
        told(machine, ResetReason.RESCAN)
        machine.take_attentions()
        machine.round_trip(0, pattern(BLOCK, 4))
    # It was given another name, as the first was still in use.
    delete()
    scanned()


def events_lost() -> None:
    """Where the kernel had no room for its events, the disks are looked at."""
    connect = pyudev.Monitor.from_netlink

    def narrow(*arguments: Any, **keywords: Any) -> pyudev.Monitor:
        monitor = connect(*arguments, **keywords)
        monitor.set_receive_buffer_size(1)
        return monitor

    with (
        mock.patch("pyudev.Monitor.from_netlink", narrow),
        passing_to("sg:/dev/sda") as machine,
    ):

        async def too_many() -> None:
            for _ in range(100):
                Path("/sys/block/sda/uevent").write_text("change")
            delete()

        machine.server.call(too_many, timeout=SECONDS)
        told(machine, ResetReason.REMOVED)
        scan()
        told(machine, ResetReason.RESCAN)


def unheard() -> None:
    """Without the kernel's events a command shows that its disk is gone."""
    for node in ("sda", "sg0"):
        with (
            mock.patch("vscsi_emu.follow.Monitor", side_effect=HostError("not to be had")),
            passing_to(f"sg:/dev/{node}") as machine,
        ):
            delete()
            result = machine.command(bytes(6))
            assert result.response == Response.BAD_TARGET, show(result)
            told(machine, ResetReason.REMOVED)
        scanned()


def resized() -> None:
    """The host notices another capacity, so the guest does."""
    with passing_to("sg:/dev/sda") as machine:
        try:
            (DRIVER / "virtual_gb").write_text("1")
            Path("/sys/block/sda/device/rescan").write_text("1")
            event = machine.device.next_event(SECONDS)
            assert event, "no event"
            assert (event.event, event.reason) == (EventType.PARAM_CHANGE, 0x2A | 0x09 << 8)
            sense = machine.command(bytes(6)).sense
            assert sense[2:3] + sense[12:14] == b"\x06\x2a\x09", sense.hex()
            last = machine.good(bytes([0x25]).ljust(10, b"\0"), b"", 8)
            assert struct.unpack(">II", last) == (2**21 - 1, BLOCK)
            # Pieces of a command are checked against the new end.
            machine.good(read_10(2**21 - 4096, 4096), b"", 2 * MIB)
        finally:
            (DRIVER / "virtual_gb").write_text("0")


# ── Other devices ──────────────────────────────────────────────────────────────────────────────


def other_types(modules: list[str]) -> None:
    """What is no disk passes as what it is."""
    for number, kind in ((1, "tape"), (5, "cd"), (0x0D, "enclosure")):
        reload(modules, f"ptype={number}")
        (node,) = Path("/dev").glob("sg[0-9]*")
        with passing_to(f"sg:{node}") as machine:
            inquiry = machine.command(bytes([0x12, 0, 0, 0, 36, 0]), b"", 36).data
            assert inquiry[0] == number, (kind, inquiry.hex())
            assert inquiry[8:13] == b"Linux", inquiry
            page = machine.command(bytes([0x12, 1, 0x83, 0, 255, 0]), b"", 255).data
            assert page[:2] == bytes([number, 0x83]), page.hex()


def reload(modules: list[str], *parameters: str) -> None:
    for _ in range(50):
        # The thread that reads an sg node closes it after all else is over.
        if not subprocess.run(["busybox", "rmmod", "scsi_debug"], check=False).returncode:
            break
        time.sleep(0.1)
    subprocess.run(["busybox", "insmod", modules[-1], *parameters], check=True)


def main() -> None:
    modules = sys.argv[1:]
    checks: dict[str, Callable[[], None]] = {
        **{f"limit-{kib}": partial(limit, kib) for kib in (4, 64, 1024)},
        "lowered": lowered,
        "relimited": relimited,
        "huge": huge,
        "tiny_segments": tiny_segments,
        "nodes": nodes,
        "many_in_flight": many_in_flight,
        "errors": errors,
        "timed_out": timed_out,
        "beyond_the_end": beyond_the_end,
        "filtered": filtered,
        "write_protection": write_protection,
        "taken": taken,
        "task_management": task_management,
        "resized": resized,
        "unplugged": unplugged,
        "unplugged_under_load": unplugged_under_load,
        "replaced": replaced,
        "events_lost": events_lost,
        "unheard": unheard,
        "other_types": partial(other_types, modules),
    }
    run(checks)


def run(checks: Mapping[str, Callable[[], None]]) -> None:
    """Each in a section of its own."""
    for name, check in checks.items():
        print(f"<<< {name}", flush=True)
        began = time.monotonic()
        code = 0
        try:
            check()
        except Exception:
            traceback.print_exc(file=sys.stdout)
            code = 1
        print(f"{time.monotonic() - began:.1f} s")
        print(f">>> {name} {code}", flush=True)


if __name__ == "__main__":
    main()
