"""The filter, and the commands that a guest must not see as the device answers them."""

from __future__ import annotations

import struct

import pytest

from tests.unit.scsi.harness import Recorder, send
from vscsi_emu import _dataplane
from vscsi_emu.passthrough.device import Answer
from vscsi_emu.passthrough.table import PassthroughTable
from vscsi_emu.scsi import Asc, Identity, LogicalUnit, SenseKey, Target
from vscsi_emu.scsi.cdb import Route
from vscsi_emu.scsi.passing import Level, passing, rules
from vscsi_emu.scsi.sense import ScsiError

DISK, TAPE, CD, CHANGER, ENCLOSURE, ZONED = 0x00, 0x01, 0x05, 0x08, 0x0D, 0x14
TYPES = (DISK, TAPE, CD, CHANGER, ENCLOSURE, ZONED)
CHECK_CONDITION = 2
ILLEGAL_FIELD = _dataplane.build_sense(5, 0x24, 0)


class Device:
    """Answers each CDB, by its first bytes, as it was told to; anything else is unknown to it."""

    def __init__(self, **answers: bytes | Answer) -> None:
        self.answers = {bytes.fromhex(start.removeprefix("x")): a for start, a in answers.items()}
        self.cdbs: list[bytes] = []

    async def ask(self, cdb: bytes, length: int) -> Answer:
        self.cdbs.append(cdb)
        for start, answer in self.answers.items():
            if cdb.startswith(start):
                return answer if isinstance(answer, Answer) else Answer(0, 0, b"", answer[:length])
        return Answer(0, CHECK_CONDITION, ILLEGAL_FIELD, b"")


def table(
    level: Level = Level.SAFE, device_type: int = DISK, device: Device | None = None
) -> PassthroughTable:
    blocks = device_type in (DISK, CD, ZONED)
    return PassthroughTable(
        device_type,
        level,
        (device or Device()).ask,
        most_bytes=lambda: 64 << 10,
        most_blocks=(lambda: 128) if blocks else None,
    )


def unit(commands: PassthroughTable) -> Target:
    """Nothing pending."""
    engine = _dataplane.Engine.null(512)
    identity = Identity("1", bytes.fromhex("3000000000000001"))
    target = Target({0: LogicalUnit(engine, identity, commands=commands)})
    target.nexuses[0].take()
    return target


def refusal(commands: PassthroughTable, cdb: str) -> tuple[int, int, int | None, int | None] | None:
    """Sense key, ASC and ASCQ, field pointer; None: it passes."""
    try:
        found = commands.find(bytes.fromhex(cdb).ljust(32, b"\0"))
        found.parse(bytes.fromhex(cdb).ljust(32, b"\0"))
    except ScsiError as error:
        return (error.key, error.code, error.field, error.bit)
    return None


OPCODE = (SenseKey.ILLEGAL_REQUEST, Asc.INVALID_COMMAND_OPERATION_CODE, 0, None)
ACTION = (SenseKey.ILLEGAL_REQUEST, Asc.INVALID_FIELD_IN_CDB, 1, 4)
VARIABLE_ACTION = (SenseKey.ILLEGAL_REQUEST, Asc.INVALID_FIELD_IN_CDB, 8, 7)

DANGEROUS = {
    "FORMAT UNIT": "04",
    "SANITIZE": "4801",
    "SECURITY PROTOCOL OUT": "b5",
    "EXTENDED COPY": "83",
    "ATA PASS-THROUGH(12)": "a1",
    "ATA PASS-THROUGH(16)": "85",
    "vendor specific": "c1",
    "vendor specific, 6 bytes": "02",
}


@pytest.mark.parametrize("cdb", DANGEROUS.values(), ids=DANGEROUS.keys())
def test_what_is_not_safe_passes_at_all_only(cdb: str) -> None:
    assert refusal(table(Level.READONLY), cdb) == OPCODE
    assert refusal(table(Level.SAFE), cdb) == OPCODE
    assert refusal(table(Level.ALL), cdb) is None


@pytest.mark.parametrize("mode", range(32))
def test_write_buffer_passes_unless_it_is_about_firmware(mode: int) -> None:
    allowed = mode in (0x00, 0x02, 0x0A)
    assert refusal(table(), f"3b{mode:02x}") == (None if allowed else ACTION)
    assert refusal(table(Level.ALL), f"3b{mode:02x}") is None


def test_32_byte_commands_are_told_apart_by_their_service_action() -> None:
    read, write, vendor = "7f00000000000018 0009", "7f00000000000018 000b", "7f00000000000018 c009"
    assert [refusal(table(Level.READONLY), cdb) for cdb in (read, write)] == [
        None,
        VARIABLE_ACTION,
    ]
    assert refusal(table(), write) is None
    assert refusal(table(), vendor) == VARIABLE_ACTION


@pytest.mark.parametrize("device_type", TYPES)
def test_read_only_is_less_than_safe_and_safe_less_than_all(device_type: int) -> None:
    opcodes = [{entry.opcode for entry in table(level, device_type)} for level in Level]
    assert opcodes[0] < opcodes[1] < opcodes[2] == set(range(256))
    assert all(0xA0 in level for level in opcodes), "REPORT LUNS"


def test_writes_do_not_pass_read_only() -> None:
    commands = table(Level.READONLY)
    for cdb in ("0a", "2a", "aa", "8a", "2e", "41", "93", "42", "89", "8b", "9c", "5f", "15", "55"):
        assert refusal(commands, cdb) == OPCODE, cdb
    for cdb in ("08", "28", "a8", "88", "2f", "25", "9e10", "1a", "5a", "5e", "12", "03", "00"):
        assert refusal(commands, cdb) is None, cdb


def test_types_give_operation_codes_their_own_meaning() -> None:
    def splits(device_type: int, opcode: int) -> bool:
        return rules(device_type).get(opcode, (0, False))[1]

    split = [
        (kind, opcode) for kind in TYPES for opcode in (0x08, 0x42, 0x28) if splits(kind, opcode)
    ]
    blocks = [(kind, opcode) for kind in (DISK, ZONED) for opcode in (0x08, 0x42, 0x28)]
    assert sorted(split) == sorted([*blocks, (CD, 0x28)])
    assert refusal(table(device_type=TAPE), "01") is None, "REWIND"
    assert refusal(table(device_type=DISK), "01") == OPCODE
    assert refusal(table(device_type=CD), "a1") is None, "BLANK"
    assert refusal(table(device_type=CHANGER), "a5") is None, "MOVE MEDIUM"
    assert refusal(table(device_type=ZONED), "9403") is None, "OPEN ZONE"
    assert refusal(table(device_type=DISK), "9403") == OPCODE


@pytest.mark.parametrize("device_type", TYPES)
def test_every_row_is_timed_and_no_operation_code_is_vague(device_type: int) -> None:
    for opcode, rows in passing(device_type).items():
        assert all(row.timeout > 0 for row in rows)
        if len(rows) > 1:
            actions = [row.actions for row in rows]
            assert None not in actions, f"{opcode:#x} is told apart by service actions"


def test_naca_is_refused_wherever_control_is() -> None:
    for cdb in ("00" + "00" * 4 + "04", "28" + "00" * 8 + "04", "88" + "00" * 14 + "04"):
        control = len(bytes.fromhex(cdb)) - 1
        assert refusal(table(), cdb) == (
            SenseKey.ILLEGAL_REQUEST,
            Asc.INVALID_FIELD_IN_CDB,
            control,
            2,
        )
        assert table().usage_maps[int(cdb[:2], 16)][control] & 0x04 == 0


def test_the_data_plane_is_left_to_what_it_may_pass() -> None:
    commands = table()
    routes = commands.routes
    for opcode in (0x00, 0x12, 0x28, 0x2A, 0x88, 0x5F):
        assert routes[opcode] == Route.MEDIA
    for opcode in (0x04, 0x3B, 0x7F, 0xA0, 0xA3, 0xC0):
        assert routes[opcode] == Route.PYTHON
    assert commands.usage_maps[0x12][1] & 1 == 0, "INQUIRY with EVPD comes to Python"
    assert table(Level.ALL).routes[0x3B] == Route.MEDIA


def test_refusals_are_counted() -> None:
    commands = table()
    for cdb in ("04", "04", "3b05", "28"):
        refusal(commands, cdb)
    assert commands.refused == {0x04: 2, 0x3B: 1}


def test_what_passes_is_handed_to_the_data_plane() -> None:
    target = unit(table())
    assert send(target, "28000000000000000100").executed
    assert send(target, "120180 00ff").executed, "VPD page 80h"
    assert not send(target, "04").executed


# ── Answers of our own ─────────────────────────────────────────────────────────────────────────


def vpd(code: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0, code, len(body)) + body


def inquire(device: Device, page: int) -> Recorder:
    return send(unit(table(device=device)), struct.pack(">BBBHB", 0x12, 1, page, 0xFF, 0))


def test_block_limits_are_lowered_to_the_hosts() -> None:
    body = bytearray(60)
    body[4:8] = (1000).to_bytes(4)  # MAXIMUM TRANSFER LENGTH
    body[8:12] = (200).to_bytes(4)  # OPTIMAL TRANSFER LENGTH
    body[16:20] = (77).to_bytes(4)  # MAXIMUM UNMAP LBA COUNT
    answer = inquire(Device(x1201b0=vpd(0xB0, bytes(body))), 0xB0).data_in
    assert struct.unpack_from(">II", answer, 8) == (128, 128)
    assert answer[20:24] == (77).to_bytes(4), "the rest is the device's"


def test_block_limits_are_made_where_there_are_none() -> None:
    answer = inquire(Device(), 0xB0).data_in
    assert (len(answer), answer[:4]) == (64, b"\x00\xb0\x00\x3c")
    assert struct.unpack_from(">I", answer, 8) == (128,)


def test_the_list_of_pages_names_block_limits() -> None:
    device = Device(x120100=vpd(0, bytes([0x00, 0x80, 0x83, 0xB1])))
    assert inquire(device, 0).data_in == vpd(0, bytes([0x00, 0x80, 0x83, 0xB0, 0xB1]))


def test_errors_of_the_device_are_relayed() -> None:
    sense = _dataplane.build_sense(6, 0x29, 0)
    device = Device(x1201b0=Answer(0, CHECK_CONDITION, sense, b""))
    recorder = inquire(device, 0xB0)
    assert (recorder.status, recorder.sense) == (CHECK_CONDITION, sense)
    assert inquire(Device(x1201b0=Answer(6, 0, b"", b"")), 0xB0).response == 6


def commands_of(data: bytes) -> list[int]:
    return [data[at] for at in range(4, 4 + int.from_bytes(data[:4]), 8)]


def report(device: Device, options: int, opcode: int = 0, action: int = 0) -> bytes:
    cdb = struct.pack(">BBBBHIBB", 0xA3, 0x0C, options, opcode, action, 4096, 0, 0)
    recorder = send(unit(table(device=device)), cdb)
    assert recorder.status == 0
    return recorder.data_in


def test_report_supported_operation_codes_leaves_out_what_does_not_pass() -> None:
    rows = [(0x04, None), (0x12, None), (0x28, None), (0x48, 3), (0x9E, 0x10), (0x7F, 0x09)]
    rows += [(0x7F, 0x8888), (0xA0, None), (0xC5, None)]
    body = b"".join(
        struct.pack(">BxHxBH", op, action or 0, 0 if action is None else 1, 10)
        for op, action in rows
    )
    device = Device(xa30c=struct.pack(">I", len(body)) + body)
    assert commands_of(report(device, 0)) == [0x12, 0x28, 0x9E, 0x7F, 0xA0]


def test_one_command_is_reported_as_the_device_does_unless_it_is_refused() -> None:
    answer = b"\x00\x03\x00\x06" + bytes(6)
    assert report(Device(xa30c=answer), 1, 0x12) == answer
    device = Device(xa30c=answer)
    assert report(device, 1, 0x04) == b"\x00\x01\x00\x00"
    assert report(device, 2, 0x7F, 0x8888) == b"\x00\x01\x00\x00"
