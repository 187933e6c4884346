"""trace.start, its notifications, the program, and the ring for tests."""

from __future__ import annotations

import gc
import json
import os
import struct
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.unit.capture.wireshark import dissect, tshark
from tests.unit.control.monitor import TIMEOUT, monitored
from tests.unit.transport.harness import Server, attached
from vscsi_emu.capture import CaptureWriter, read
from vscsi_emu.cli.trace import trace
from vscsi_emu.config import from_arguments
from vscsi_emu.control import Client, RpcError
from vscsi_emu.control.decode import cdb_length, describe_cdb, describe_sense, opcodes
from vscsi_emu.control.trace import Recent, TracedCommand
from vscsi_emu.driver.dma import DmaAllocator
from vscsi_emu.driver.mmio import VirtioMmioBus
from vscsi_emu.driver.virtio_scsi import VirtioScsi
from vscsi_emu.inprocess import InProcess
from vscsi_emu.virtio.mmio_registers import MODERN
from vscsi_emu.virtio.scsi import encode_lun

BLOCK = 512


def read_10(lba: int, blocks: int) -> bytes:
    return struct.pack(">BBIBHB", 0x28, 0, lba, 0, blocks, 0)


def write_10(lba: int, blocks: int) -> bytes:
    return struct.pack(">BBIBHB", 0x2A, 0, lba, 0, blocks, 0)


BEYOND = read_10(0x7FFF_FFFF, 1)
INQUIRY = bytes.fromhex("120000002400")
DATA = bytes(range(256)) * 4


@pytest.fixture
def running(tmp_path: Path) -> Iterator[tuple[Server, Client, VirtioScsi, str]]:
    luns = ["0:0=mem:1M", "3:2=mem:1M"]
    config = from_arguments(luns, socket=str(tmp_path / "hba.sock"))
    with (
        monitored(tmp_path, config) as (server, path),
        Client(path, timeout=TIMEOUT) as client,
        attached(server.sockets[0]) as driver,
    ):
        for target, lun in ((0, 0), (3, 2)):  # POWER ON
            driver.execute(target, lun, bytes(6))
        yield server, client, driver, path


def work(driver: VirtioScsi) -> None:
    driver.execute(0, 0, write_10(8, 2), data_out=DATA)
    driver.execute(0, 0, read_10(8, 2), data_in_length=2 * BLOCK)
    driver.execute(3, 2, BEYOND, data_in_length=BLOCK)
    driver.execute(3, 2, INQUIRY, data_in_length=255)
    driver.execute(9, 0, INQUIRY, data_in_length=36)


def memory_files() -> set[int]:
    """Inodes of open ones: each memory disk has one."""
    links = (os.path.join("/proc/self/fd", name) for name in os.listdir("/proc/self/fd"))
    found = set()
    for link in links:
        with suppress(FileNotFoundError):  # closed meanwhile
            if os.readlink(link).startswith("/memfd:"):
                found.add(os.stat(link).st_ino)
    return found


def collect(client: Client, count: int) -> list[TracedCommand]:
    found: list[TracedCommand] = []
    deadline = time.monotonic() + TIMEOUT
    while len(found) < count and time.monotonic() < deadline:
        more = client.next_trace(1.0)
        if more is not None:
            assert more[1] == 0
            found += more[0]
    return found


def test_every_command_is_recorded_as_it_ended(
    running: tuple[Server, Client, VirtioScsi, str],
) -> None:
    server, client, driver, _ = running
    client.trace_start(data_bytes=700)
    before = time.time_ns()
    work(driver)
    write, read, beyond, inquiry, absent = found = collect(client, 5)
    assert [command.lun for command in found] == [
        encode_lun(target, lun).hex() for target, lun in ((0, 0), (0, 0), (3, 2), (3, 2), (9, 0))
    ]
    assert {command.hba for command in found} == {server.hba.name}
    assert {command.queue for command in found} == {2}
    assert write.cdb.startswith(write_10(8, 2).hex())
    assert (write.data_out_length, write.data_out_moved) == (2 * BLOCK, 2 * BLOCK)
    assert write.data == read.data == DATA[:700].hex()
    assert (read.data_in_length, read.data_in_moved) == (2 * BLOCK, 2 * BLOCK)
    assert (beyond.status, beyond.data_in_moved, beyond.data) == (2, 0, "")
    assert "ILLEGAL_REQUEST 21/00 LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE" in str(beyond)
    assert (inquiry.data_in_length, inquiry.data_in_moved) == (255, 36)
    assert (absent.response, absent.outcome) == (3, "BAD_TARGET")
    times = [command.time for command in found]
    assert times == sorted(times)
    assert before < times[0] <= times[-1] < time.time_ns()
    assert all(0 < command.nanoseconds < TIMEOUT * 1e9 for command in found)
    assert len({command.tag for command in found}) == 5


@pytest.mark.parametrize(
    ("wanted", "cdbs"),
    [
        ({"lun": ["0:0"]}, ["2a", "28"]),
        ({"opcode": ["read"]}, ["28", "28"]),
        ({"opcode": ["INQUIRY", "0x2a"]}, ["2a", "12", "12"]),
        ({"errors": True}, ["28", "12"]),
        ({"errors": True, "lun": ["3:2"]}, ["28"]),
        ({"min_latency": 3600.0}, []),
    ],
)
def test_a_filter_leaves_what_it_names(
    running: tuple[Server, Client, VirtioScsi, str], wanted: dict[str, object], cdbs: list[str]
) -> None:
    _, client, driver, path = running
    with Client(path, timeout=TIMEOUT) as other:
        other.trace_start()
        client.trace_start(**wanted)  # type: ignore[arg-type]
        work(driver)
        collect(other, 5)
    # What the other one has seen is recorded here, too, if it is at all.
    found = collect(client, len(cdbs))
    assert [command.cdb[:2] for command in found] == cdbs
    assert client.next_trace(0.2) is None


def test_nothing_comes_after_the_end(running: tuple[Server, Client, VirtioScsi, str]) -> None:
    _, client, driver, _ = running
    client.trace_start()
    client.trace_stop()
    work(driver)
    assert client.next_trace(0.2) is None


@pytest.mark.parametrize(
    ("params", "parameter"),
    [
        ({"opcode": ["reed"]}, "opcode"),
        ({"lun": ["7:7"]}, "lun"),
        ({"data_bytes": 1 << 20}, "data_bytes"),
        ({"min_latency": -1.0}, "min_latency"),
    ],
)
def test_a_filter_that_means_nothing_is_refused(
    running: tuple[Server, Client, VirtioScsi, str], params: dict[str, object], parameter: str
) -> None:
    with pytest.raises(RpcError) as caught:
        running[1].trace_start(**params)  # type: ignore[arg-type]
    assert caught.value.parameter == parameter


def test_a_removed_unit_is_not_kept_by_a_trace(
    running: tuple[Server, Client, VirtioScsi, str],
) -> None:
    _, client, driver, _ = running
    # Of its own: disks of tests that are over may go at any time.
    before = memory_files()
    client.lun_add(luns=["3:4=mem:1M"])
    (own,) = memory_files() - before
    client.trace_start(lun=["3:4"], data_bytes=16)
    driver.execute(3, 4, INQUIRY, data_in_length=255)
    driver.execute(3, 4, bytes(6))
    client.lun_remove(lun=["3:4"], deadline=0.0, force=True)
    assert len(collect(client, 2)) == 2
    deadline = time.monotonic() + TIMEOUT
    while own in memory_files() and time.monotonic() < deadline:
        gc.collect()
    assert own not in memory_files()


def test_the_program_prints_and_writes(
    running: tuple[Server, Client, VirtioScsi, str], tmp_path: Path
) -> None:
    _, _, driver, path = running
    file = tmp_path / "out.pcapng"
    outputs = {}
    for name, more in (("text", []), ("json", ["--json"]), ("file", ["-w", str(file)])):
        # It ends by itself, with what it saw until then.
        outputs[name] = _while_working(driver, ["--monitor", path, "-c", "5", *more])
    lines = outputs["text"].splitlines()
    assert "0:0 WRITE(10) lba=8 blocks=2 → GOOD (1024 bytes, " in lines[0]
    assert "9:0 INQUIRY" in lines[4]
    assert [json.loads(line)["cdb"][:2] for line in outputs["json"].splitlines()] == [
        "2a",
        "28",
        "28",
        "12",
        "12",
    ]
    assert [command.cdb[:2] for command in read(file)] == ["2a", "28", "28", "12", "12"]
    assert read(file)[0].data == DATA.hex()


@tshark
def test_tshark_sees_what_a_driver_sent(
    running: tuple[Server, Client, VirtioScsi, str], tmp_path: Path
) -> None:
    _, client, driver, _ = running
    client.trace_start(data_bytes=4096)
    work(driver)
    path = tmp_path / "out.pcapng"
    with open(path, "wb") as file:
        CaptureWriter(file).write(collect(client, 5))
    assert dissect(path, "ip.dst", "scsi.lun", "scsi_sbc.opcode", only="iscsi.opcode == 0x01") == [
        ["10.1.0.0", "0x0000", "0x2a"],
        ["10.1.0.0", "0x0000", "0x28"],
        ["10.1.0.3", "0x0002", "0x28"],
        ["10.1.0.3", "0x0002", "0x12"],
        ["10.1.0.9", "0x0000", "0x12"],
    ]
    answers = ("iscsi.scsiresponse.status", "scsi.sns.key", "scsi.sns.ascascq")
    assert dissect(path, *answers, only="iscsi.opcode == 0x21") == [
        ["0x00", "", ""],
        ["0x00", "", ""],
        ["0x02", "0x05", "0x2100"],
        ["0x00", "", ""],
        ["0x00", "", ""],
    ]
    [[vendor]] = dissect(path, "scsi.inquiry.vendor_id", only="scsi.inquiry.vendor_id")
    assert vendor.strip() == "VSCSIEMU"


def _while_working(driver: VirtioScsi, arguments: list[str]) -> str:
    from threading import Thread

    results = []
    thread = Thread(target=lambda: results.append(CliRunner().invoke(trace, arguments)))
    thread.start()
    deadline = time.monotonic() + TIMEOUT
    time.sleep(0.3)
    while thread.is_alive() and time.monotonic() < deadline:
        work(driver)
        thread.join(0.3)
    [result] = results
    assert result.exit_code == 0, result.output
    return result.output


def test_the_last_commands_are_there_for_a_failure_report() -> None:
    config = from_arguments(["0:0=mem:1M"])
    with InProcess(config, workers=1) as machine, Recent(machine.service, keep=8) as recent:
        slot = machine.slots[0]
        allocator = DmaAllocator(0, 16 << 20)
        driver = VirtioScsi(VirtioMmioBus(slot, slot.base, allocator, MODERN), timeout=TIMEOUT)
        for lba in range(20):
            driver.execute(0, 0, read_10(lba, 1), data_in_length=BLOCK)
        last = recent(3)
    assert [describe_cdb(bytes.fromhex(command.cdb)) for command in last] == [
        f"READ(10) lba={lba} blocks=1" for lba in (17, 18, 19)
    ]
    assert len(recent(100)) == 8


@pytest.mark.parametrize(
    ("cdb", "text", "length"),
    [
        ("2a08000000050000010000000000", "WRITE(10) fua=1 lba=5 blocks=1", 10),
        ("1201b0040000", "INQUIRY evpd=1 page_code=176 allocation_length=1024", 6),
        ("000000000000", "TEST UNIT READY", 6),
        ("c1020304050607080900", "c1 02 03 04 05 06 07 08 09 00", 10),
        (
            "7f0000000000001800091800" + "00" * 7 + "07" + "ff" * 8 + "00000002",
            "READ(32) dpo=1 fua=1 lba=7 blocks=2",
            32,
        ),
        ("7f00000000000004ffff0102", "7f 00 00 00 00 00 00 04 ff ff 01 02", 12),
    ],
)
def test_cdbs_have_the_names_of_the_table(cdb: str, text: str, length: int) -> None:
    raw = bytes.fromhex(cdb).ljust(12, b"\0")
    assert (describe_cdb(raw), cdb_length(raw)) == (text, length)


@pytest.mark.parametrize(
    ("sense", "text"),
    [
        ("700006000000000a000000002900000000000000", "UNIT_ATTENTION 29/00"),
        ("7203110000000000", "MEDIUM_ERROR 11/00"),
        ("710003000000000a00000000030000000000", "deferred MEDIUM_ERROR 03/00"),
        ("7f", "7f"),
    ],
)
def test_sense_has_names(sense: str, text: str) -> None:
    assert describe_sense(bytes.fromhex(sense)) == text


def test_a_name_without_a_size_means_all_sizes() -> None:
    assert opcodes("read") == {0x08, 0x28, 0xA8, 0x88, 0x7F0009}
    assert opcodes("write same 16") == {0x93}
    assert opcodes("0x100") == set()
