"""Devices in Python, on examples/tape.py, and commands that are added to disks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vscsi_emu import Device, Hba, ScsiError
from vscsi_emu.driver.request import Result
from vscsi_emu.driver.scan import retried
from vscsi_emu.driver.virtio_scsi import VirtioScsi
from vscsi_emu.scsi.cdb import NACA, CommandType, Feature, Field, Route, bit, command, media_command
from vscsi_emu.scsi.device import DeviceUnit, device_command
from vscsi_emu.scsi.identity import Identity
from vscsi_emu.scsi.peripheral import Peripheral
from vscsi_emu.scsi.request import Request
from vscsi_emu.scsi.sense import SenseKey
from vscsi_emu.scsi.table import add_command, command_table
from vscsi_emu.virtio.scsi import TmfType

TAPE = Path(__file__).parents[3] / "examples/tape.py"
REWIND = bytes([0x01, 0, 0, 0, 0, 0])
GOOD, CHECK_CONDITION = 0x00, 0x02
FILEMARK, EOM, ILI = 0x80, 0x40, 0x20


class Drive:
    """The tape drive as an initiator uses it."""

    def __init__(self, device: VirtioScsi) -> None:
        self.device = device
        retried(device, 0, 0, bytes(6), 0)

    def read(self, length: int, *, flags: int = 0) -> Result:
        cdb = bytes([0x08, flags, *length.to_bytes(3), 0])
        return self.device.execute(0, 0, cdb, data_in_length=length)

    def write(self, data: bytes) -> Result:
        cdb = bytes([0x0A, 0, *len(data).to_bytes(3), 0])
        return self.device.execute(0, 0, cdb, data_out=data)

    def send(self, *cdb: int, data_in_length: int = 0) -> Result:
        return self.device.execute(0, 0, bytes(cdb), data_in_length=data_in_length)

    def filemarks(self, count: int) -> Result:
        return self.send(0x10, 0, *count.to_bytes(3), 0)

    def space(self, code: int, count: int) -> Result:
        return self.send(0x11, code, *(count & 0xFF_FFFF).to_bytes(3), 0)

    def position(self) -> int:
        data = self.send(0x34, *bytes(9), data_in_length=20).data
        assert bool(data[0] & 0x80) == (data[4:8] == bytes(4))
        return int.from_bytes(data[4:8])


@contextmanager
def drive(capacity: str = "8M") -> Iterator[Drive]:
    with Hba(f"python:{TAPE}:Tape,argument={capacity}") as hba, hba.driver() as guest:
        yield Drive(guest.device)


def sense(result: Result) -> tuple[int, int, int, int]:
    """Sense key with the bits above it, ASC and ASCQ, and INFORMATION (fixed format)."""
    assert result.status == CHECK_CONDITION
    raw = result.sense
    information = int.from_bytes(raw[3:7], signed=True) if raw[0] & 0x80 else 0
    return raw[2] & 0xF, raw[2] & 0xF0, int.from_bytes(raw[12:14]), information


def test_it_is_found_as_a_tape() -> None:
    with Hba(f"python:{TAPE}:Tape", "mem:1M") as hba, hba.driver() as guest:
        found = guest.units[0, 0]
        assert (found.device_type, found.product) == (0x01, "Virtual tape")
        assert list(guest.disks) == [(1, 0)]
        for target, wanted in ((0, b"\x00\x80\x83"), (1, b"\x00\x80\x83\x86")):
            cdb = bytes([0x12, 0x01, 0x00, 0, 255, 0])
            pages = retried(guest.device, target, 0, cdb, 255).data
            assert pages[0] == (0x01 if target == 0 else 0x00)
            assert pages[4:].startswith(wanted)
            assert (len(pages) == 7) == (target == 0)


def test_names_may_be_given() -> None:
    with Hba(f"python:{TAPE}:Tape,product=Mine,serial=7") as hba, hba.driver() as guest:
        assert guest.units[0, 0].product == "Mine"


def test_records_come_back_one_by_one() -> None:
    with drive() as tape:
        for data in (b"a" * 10, b"b" * 70000):
            assert tape.write(data).status == GOOD
        assert tape.filemarks(1).status == GOOD
        tape.send(*REWIND)
        assert tape.position() == 0
        assert tape.read(10).data == b"a" * 10
        # Longer, shorter, and with SILI, which makes no error of either.
        shorter = tape.read(100000)
        assert sense(shorter) == (0, ILI, 0, 30000)
        assert shorter.data[:70000] == b"b" * 70000
        tape.space(0, -1)
        longer = tape.read(69999)
        assert sense(longer) == (0, ILI, 0, -1)
        assert longer.data == b"b" * 69999
        tape.space(0, -1)
        assert tape.read(80000, flags=0x02).data == b"b" * 70000
        assert sense(tape.read(512)) == (0, FILEMARK, 0x0001, 512)
        assert sense(tape.read(512)) == (8, 0, 0x0005, 512)


def test_spacing_stops_where_it_must() -> None:
    with drive() as tape:
        for number in range(3):
            tape.write(bytes([number]))
            tape.filemarks(1)
        assert tape.position() == 6
        assert tape.space(1, -2).status == GOOD
        assert tape.position() == 3
        tape.send(*REWIND)
        assert sense(tape.space(0, 2)) == (0, FILEMARK, 0x0001, 1)
        assert sense(tape.space(1, 5)) == (8, 0, 0x0005, 3)
        assert sense(tape.space(1, -9)) == (0, EOM, 0x0004, 6)
        assert tape.space(3, 0).status == GOOD
        assert tape.position() == 6
        assert sense(tape.space(2, 1))[2] == 0x2400


def test_writing_cuts_off_what_was_behind_and_ends_at_the_end() -> None:
    with drive("100K") as tape:
        tape.write(b"x" * 60000)
        tape.write(b"y" * 40000)
        assert sense(tape.write(b"z" * 40000)) == (0xD, EOM, 0x0002, 40000)
        tape.send(*REWIND)
        assert tape.write(b"new").status == GOOD
        assert sense(tape.read(512)) == (8, 0, 0x0005, 512)


def test_what_it_cannot_do_is_refused() -> None:
    with drive() as tape:
        assert sense(tape.read(1, flags=0x01))[:3] == (5, 0, 0x2400)  # FIXED
        assert sense(tape.send(0x08, 0x00, 0x10, 0x00, 0x01, 0))[2] == 0x2400  # beyond 1 MiB
        assert sense(tape.send(0x28, *bytes(9)))[2] == 0x2000  # READ(10) is a disk's
        assert sense(tape.send(0x01, 0x80, 0, 0, 0, 0))[2] == 0x2400  # a reserved bit
        assert tape.send(0x05, *bytes(5), data_in_length=6).data == b"\x00\x10\x00\x00\x00\x01"
        assert tape.send(0x1A, 0, 0, 0, 12, 0, data_in_length=12).data[3] == 8


def test_a_command_of_the_devices_own_takes_the_place_of_ours() -> None:
    class Quiet(Device):
        peripheral = Peripheral.PROCESSOR

        @device_command("TEST UNIT READY", 0x00, 6)
        def ready(self, request: Request) -> bytes:
            raise ScsiError(SenseKey.NOT_READY, 0x0403)

    table = DeviceUnit(Quiet(), Identity("1", bytes([0x30, *bytes(7)])), quiesce=nothing).commands
    (ready,) = (entry for entry in table if entry.opcode == 0x00)
    with pytest.raises(ScsiError, match="NOT_READY 0403h"):
        ready.handler(None)  # type: ignore[misc, arg-type]
    assert {entry.opcode for entry in table} >= {0x03, 0x12, 0xA0, 0x5E, 0xA3}


async def nothing(_: object) -> None:
    pass


def test_a_reset_reaches_the_device() -> None:
    with drive() as tape:
        tape.write(b"x")
        assert tape.position() == 1
        tape.device.task_management(TmfType.LOGICAL_UNIT_RESET, 0, 0)
        assert sense(tape.send(*bytes(6)))[2] == 0x2903
        assert tape.position() == 0


def test_its_commands_are_reported() -> None:
    with drive() as tape:
        cdb = bytes([0xA3, 0x0C, 0x01, 0x11, 0, 0, 0, 0, 0, 64, 0, 0])
        data = tape.device.execute(0, 0, cdb, data_in_length=64).data
        assert data[1] == 3
        assert data[4:10] == bytes([0x11, 0x0F, 0xFF, 0xFF, 0xFF, NACA])


# ── Commands that disks have besides ours ──────────────────────────────────────────────────────


@command("COUNT", 0xC0, 6, twice=bit(1, 0), allocation_length=Field(4))
def count(request: Request) -> bytes:
    return bytes([2 if request.cdb["twice"] else 1])


def test_a_command_from_outside_is_a_command_like_others() -> None:
    remove = add_command(count)
    try:
        with Hba("mem:1M") as hba:
            remove()
            with hba.driver() as guest:
                execute = guest.device.execute
                result = execute(0, 0, bytes([0xC0, 1, 0, 0, 8, 0]), data_in_length=8)
                assert result.data[:1] == b"\x02"
                refused = execute(0, 0, bytes([0xC0, 2, 0, 0, 8, 0]), data_in_length=8)
                assert sense(refused)[2] == 0x2400
                cdb = bytes([0xA3, 0x0C, 0x01, 0xC0, 0, 0, 0, 0, 0, 64, 0, 0])
                data = execute(0, 0, cdb, data_in_length=64).data
                assert data[4:10] == bytes([0xC0, 0x01, 0, 0, 0xFF, NACA])
        assert not command_table(Feature.NONE).supports_opcode(0xC0)
    finally:
        if command_table(Feature.NONE).supports_opcode(0xC0):
            remove()


@command("INQUIRE", 0x12, 6)
def inquire(request: Request) -> bytes:
    return b""


@command("MAINTAIN", 0xA3, 12)
def maintain(request: Request) -> bytes:
    return b""


@command("ACT", 0xC1, 12, service_action=1)
def act(request: Request) -> bytes:
    return b""


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        (inquire, "INQUIRE has the operation code of INQUIRY"),
        (maintain, "MAINTAIN: operation code 0xa3 needs a service action"),
        (act, "ACT: operation code 0xc1 has no service action"),
        (media_command("FETCH", 0xC2, 10, Route.READ), "FETCH has no handler"),
    ],
)
def test_a_command_that_cannot_be_is_refused(entry: CommandType, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        add_command(entry)
