"""Captures: what is written is read back, and Wireshark sees SCSI."""

from __future__ import annotations

import random
import struct
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.capture.wireshark import dissect, tshark
from vscsi_emu.capture import CaptureError, CaptureWriter, pcapng, read
from vscsi_emu.capture.iscsi import Command, Data, Response, Stream, pack, unpack
from vscsi_emu.control.trace import TracedCommand
from vscsi_emu.virtio.scsi import encode_lun

EPOCH = 1_700_000_000_000_000_000

GOOD_READ = TracedCommand(
    time=EPOCH + 250_000,
    nanoseconds=250_000,
    hba="/tmp/hba.sock",
    queue=2,
    lun=encode_lun(0, 5).hex(),
    tag=0xFFFF_8888_0000_1234,
    task_attribute=0,
    cdb=struct.pack(">BBIBHB", 0x28, 0, 8, 0, 8, 0).ljust(32, b"\0").hex(),
    data_out_length=0,
    data_in_length=4096,
    data_out_moved=0,
    data_in_moved=4096,
    status=0,
    response=0,
    sense="",
    data=bytes(range(256)).hex(),
)
SENSE = bytes.fromhex("700005000000000a00000000210000000000")
COMMANDS = [
    GOOD_READ,
    replace(
        GOOD_READ,
        time=EPOCH + 900_000,
        nanoseconds=100_000,
        lun=encode_lun(3, 0x102).hex(),
        cdb=struct.pack(">BBQIBB", 0x8A, 8, 1 << 40, 128, 0, 0).ljust(32, b"\0").hex(),
        task_attribute=1,
        data_out_length=65536,
        data_in_length=0,
        data_out_moved=65536,
        data_in_moved=0,
        data=random.Random(6).randbytes(65536).hex(),
    ),
    replace(
        GOOD_READ,
        time=EPOCH + 1_000_000,
        status=2,
        sense=SENSE.hex(),
        data_in_moved=0,
        data="",
        hba="other",
    ),
    replace(
        GOOD_READ,
        time=EPOCH + 2_000_000,
        lun=encode_lun(9, 0).hex(),
        response=3,
        data_in_moved=0,
        data="",
    ),
    replace(
        GOOD_READ,
        time=EPOCH + 3_000_000,
        cdb=struct.pack(">B6xBHBxQ8xI", 0x7F, 0x18, 9, 0, 7, 1).ljust(32, b"\0").hex(),
        data_in_length=512,
        data_in_moved=512,
        data="",
    ),
]


def capture(path: Path, commands: list[TracedCommand]) -> Path:
    with open(path, "wb") as file:
        CaptureWriter(file).write(commands)
    return path


def trimmed(command: TracedCommand) -> TracedCommand:
    """Without the padding of its CDB."""
    length = {0x28: 10, 0x8A: 16, 0x7F: 32}[bytes.fromhex(command.cdb)[0]]
    raw = bytes.fromhex(command.cdb)[:length].ljust(16, b"\0")
    return replace(command, cdb=raw.hex())


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    begun = sorted(COMMANDS, key=lambda command: command.time - command.nanoseconds)
    assert read(capture(tmp_path / "a.pcapng", COMMANDS)) == [trimmed(c) for c in begun]


def test_a_file_that_was_cut_off_holds_what_came_before(tmp_path: Path) -> None:
    path = capture(tmp_path / "a.pcapng", COMMANDS)
    path.write_bytes(path.read_bytes()[:-30])
    assert len(read(path)) == len(COMMANDS) - 1


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", None),
        (b"\x7fELF" + bytes(60), "section header"),
        (pcapng.section("dumpcap"), "another program"),
        (
            pcapng.section("vscsi-emu 1") + pcapng.packet(pcapng.Packet(0, 0, bytes(60))),
            "interface 0",
        ),
        (
            pcapng.section("vscsi-emu 1")
            + pcapng.interface("x")
            + pcapng.packet(pcapng.Packet(0, 0, bytes(60))),
            "no iSCSI",
        ),
    ],
)
def test_another_file_is_refused(tmp_path: Path, content: bytes, text: str | None) -> None:
    path = tmp_path / "x"
    path.write_bytes(content)
    if text is None:
        assert read(path) == []
        return
    with pytest.raises(CaptureError, match=text):
        read(path)


def test_a_damaged_file_is_an_error_and_nothing_worse(tmp_path: Path) -> None:
    whole = capture(tmp_path / "a.pcapng", COMMANDS[:1] + COMMANDS[2:]).read_bytes()
    draw = random.Random(1)
    path = tmp_path / "b.pcapng"
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(4):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        path.write_bytes(damaged)
        try:
            read(path)
        except CaptureError:
            continue


@pytest.mark.parametrize(
    "pdu",
    [
        Command(7, bytes([0x41, 2, 0, 0, 0, 0, 0, 0]), 2, bytes(range(32)), True, False, 9, 7, 3),
        Data(7, bytes([0, 5, 0, 0, 0, 0, 0, 0]), False, 32768, b"abc", True, 1),
        Data(7, bytes(8), True, 0, b"abcd", False, 0),
        Response(7, 0, 2, 12, SENSE, 7),
        Response(8, 9, 0, 0, b"", 8),
    ],
)
def test_pdus_are_what_they_were(pdu: Command | Data | Response) -> None:
    assert len(pack(pdu)) % 4 == 0
    assert unpack(pack(pdu)) == pdu


def test_an_ip_header_has_its_checksum() -> None:
    packet = Stream(bytes([10, 0, 0, 1]), bytes([10, 1, 0, 3])).segment(b"x" * 9, incoming=True)
    assert len(packet) == int.from_bytes(packet[2:4]) == 49
    total = sum(struct.unpack(">10H", packet[:20]))
    assert (total & 0xFFFF) + (total >> 16) == 0xFFFF
    assert packet[12:16] == bytes([10, 1, 0, 3])


# ── Wireshark ──────────────────────────────────────────────────────────────────────────────────


@tshark
def test_tshark_sees_commands_luns_and_times(tmp_path: Path) -> None:
    path = capture(tmp_path / "a.pcapng", COMMANDS)
    fields = ("scsi.lun", "scsi_sbc.opcode", "ip.dst", "frame.interface_name", "frame.time_epoch")
    seen = dissect(path, *fields, only="iscsi.opcode == 0x01")
    assert seen == [
        ["0x0005", "0x28", "10.1.0.0", "/tmp/hba.sock", "1700000000.000000000"],
        ["0x0005", "0x28", "10.1.1.0", "other", "1700000000.000750000"],
        ["0x0102", "0x8a", "10.1.0.3", "/tmp/hba.sock", "1700000000.000800000"],
        ["0x0000", "0x28", "10.1.0.9", "/tmp/hba.sock", "1700000000.001750000"],
        ["0x0005", "0x7f", "10.1.0.0", "/tmp/hba.sock", "1700000000.002750000"],
    ]
    tags = dissect(path, "frame.comment", only="iscsi.opcode == 0x01")
    assert {tag for [tag] in tags} == {"tag 0xffff888800001234, queue 2"}
    assert dissect(path, "scsi_sbc.rdwr10.lba", only="scsi_sbc.opcode == 0x28")[0] == ["8"]


@tshark
def test_tshark_sees_status_sense_residual_and_latency(tmp_path: Path) -> None:
    path = capture(tmp_path / "a.pcapng", COMMANDS)
    fields = (
        "scsi.lun",
        "iscsi.scsiresponse.status",
        "scsi.sns.key",
        "scsi.sns.ascascq",
        "iscsi.scsiresponse.residualcount",
        "iscsi.time",
    )
    assert dissect(path, *fields, only="iscsi.opcode == 0x21") == [
        ["0x0005", "0x00", "", "", "0", "0.000250000"],
        ["0x0102", "0x00", "", "", "0", "0.000100000"],
        ["0x0005", "0x02", "0x05", "0x2100", "4096", "0.000250000"],
        ["0x0000", "0x00", "", "", "4096", "0.000250000"],
        ["0x0005", "0x00", "", "", "0", "0.000250000"],
    ]


@tshark
def test_tshark_sees_data_and_nothing_odd(tmp_path: Path) -> None:
    path = capture(tmp_path / "a.pcapng", COMMANDS)
    header = 2 * 48
    [[read]] = dissect(path, "tcp.payload", only="iscsi.opcode == 0x25")
    assert read[header:] == GOOD_READ.data
    written = dissect(path, "scsi.lun", "tcp.payload", only="iscsi.opcode == 0x05")
    assert {lun for lun, _ in written} == {"0x0102"}
    assert "".join(payload[header:] for _, payload in written) == COMMANDS[1].data
    assert dissect(path, "frame.number", only="tcp.analysis.flags || _ws.malformed") == []
