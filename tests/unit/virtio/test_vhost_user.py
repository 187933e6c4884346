"""The vhost-user wire codec: bytes as the specification draws them."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass

import pytest

from vscsi_emu.virtio import vhost_user as vu


@dataclass(frozen=True)
class Case:
    message: vu.MessageType
    payload: vu.Payload
    body: bytes
    fds: int = 0


REGION = struct.pack("=QQQQ", 0x1000, 0x2000, 0x7F0000001000, 0x3000)

CASES = [
    Case(vu.GET_FEATURES, vu.Empty(), b""),
    Case(vu.SET_FEATURES, vu.U64(1 << 32 | 4), struct.pack("=Q", 1 << 32 | 4)),
    Case(vu.SET_OWNER, vu.Empty(), b""),
    Case(vu.RESET_OWNER, vu.Empty(), b""),
    Case(
        vu.SET_MEM_TABLE,
        vu.MemoryTable((vu.MemoryRegion(0x1000, 0x2000, 0x7F0000001000, 0x3000),) * 2),
        struct.pack("=II", 2, 0) + REGION * 2,
        fds=2,
    ),
    Case(vu.SET_VRING_NUM, vu.VringState(3, 256), struct.pack("=II", 3, 256)),
    Case(
        vu.SET_VRING_ADDR,
        vu.VringAddr(3, 1, descriptor=0x10, used=0x20, available=0x30, log=0x40),
        struct.pack("=IIQQQQ", 3, 1, 0x10, 0x20, 0x30, 0x40),
    ),
    Case(vu.SET_VRING_BASE, vu.VringState(3, 7), struct.pack("=II", 3, 7)),
    Case(vu.GET_VRING_BASE, vu.VringState(3, 0), struct.pack("=II", 3, 0)),
    Case(vu.SET_VRING_KICK, vu.VringFd.of(3), struct.pack("=Q", 3), fds=1),
    Case(vu.SET_VRING_KICK, vu.VringFd.of(3, has_fd=False), struct.pack("=Q", 0x103)),
    Case(vu.SET_VRING_CALL, vu.VringFd.of(255), struct.pack("=Q", 255), fds=1),
    Case(vu.SET_VRING_ERR, vu.VringFd.of(0), struct.pack("=Q", 0), fds=1),
    Case(vu.GET_PROTOCOL_FEATURES, vu.Empty(), b""),
    Case(vu.SET_PROTOCOL_FEATURES, vu.U64(9), struct.pack("=Q", 9)),
    Case(vu.GET_QUEUE_NUM, vu.Empty(), b""),
    Case(vu.SET_VRING_ENABLE, vu.VringState(2, 1), struct.pack("=II", 2, 1)),
    Case(vu.SET_BACKEND_REQ_FD, vu.Empty(), b"", fds=1),
    Case(
        vu.IOTLB_MSG,
        vu.IotlbMessage(0x1000, 0x2000, 0x3000, permissions=3, type=2),
        struct.pack("=QQQBB6x", 0x1000, 0x2000, 0x3000, 3, 2),
    ),
    Case(vu.SET_VRING_ENDIAN, vu.VringState(2, 1), struct.pack("=II", 2, 1)),
    Case(
        vu.GET_CONFIG,
        vu.ConfigSpace(4, 0, b"\0" * 8),
        struct.pack("=III", 4, 8, 0) + b"\0" * 8,
    ),
    Case(vu.SET_CONFIG, vu.ConfigSpace(20, 1, b"abcd"), struct.pack("=III", 20, 4, 1) + b"abcd"),
    Case(vu.RESET_DEVICE, vu.Empty(), b""),
    Case(vu.VRING_KICK, vu.VringState(5, 0), struct.pack("=II", 5, 0)),
    Case(vu.GET_MAX_MEM_SLOTS, vu.Empty(), b""),
    Case(
        vu.ADD_MEM_REG,
        vu.SingleRegion(0x1000, 0x2000, 0x7F0000001000, 0x3000),
        b"\0" * 8 + REGION,
        fds=1,
    ),
    Case(
        vu.REM_MEM_REG,
        vu.SingleRegion(0x1000, 0x2000, 0x7F0000001000, 0x3000),
        b"\0" * 8 + REGION,
    ),
    Case(vu.SET_STATUS, vu.U64(15), struct.pack("=Q", 15)),
    Case(vu.GET_STATUS, vu.Empty(), b""),
    Case(vu.BACKEND_CONFIG_CHANGE_MSG, vu.Empty(), b""),
    Case(vu.BACKEND_VRING_CALL, vu.VringState(2, 0), struct.pack("=II", 2, 0)),
    Case(vu.BACKEND_VRING_ERR, vu.VringState(2, 0), struct.pack("=II", 2, 0)),
    Case(
        vu.BACKEND_IOTLB_MSG,
        vu.IotlbMessage(0x1000, 0, 0, permissions=1, type=1),
        struct.pack("=QQQBB6x", 0x1000, 0, 0, 1, 1),
    ),
]


def pipes(count: int) -> list[int]:
    """`count` descriptors of our own."""
    return [os.open("/dev/null", os.O_RDONLY) for _ in range(count)]


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def test_every_declared_message_has_a_case() -> None:
    tested = {case.message.name for case in CASES}
    declared = {m.name for m in (*vu.FRONTEND.values(), *vu.BACKEND.values())}
    assert tested == declared


@pytest.mark.normative("vu.msg.b1", "vu.msg.b2", "vu.msg.f1", "vu.vring.b11")
@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case.message))
@pytest.mark.parametrize("need_reply", [False, True])
def test_round_trip_is_byte_exact(case: Case, need_reply: bool) -> None:
    wire = case.message.encode(case.payload, need_reply=need_reply)
    flags = 0x1 | (0x8 if need_reply else 0)
    assert wire == struct.pack("=III", case.message.number, flags, len(case.body)) + case.body
    fds = pipes(case.fds)
    packet = vu.Assembler().feed(wire, fds)
    assert packet is not None
    assert packet.need_reply == need_reply
    assert case.message.decode(packet) == case.payload
    assert packet.take_fds() == fds
    vu.close_fds(fds)


@pytest.mark.normative("vu.msg.b3", "vu.msg.b4")
def test_reply_has_version_one_and_the_reply_flag() -> None:
    wire = vu.GET_FEATURES.encode_reply(vu.U64(5))
    assert wire == struct.pack("=IIIQ", 1, 0x5, 8, 5)
    packet = vu.Assembler().feed(wire)
    assert packet is not None
    assert vu.GET_FEATURES.decode_reply(packet) == vu.U64(5)


def test_a_refused_get_config_is_an_error_for_the_front_end() -> None:
    packet = vu.Assembler().feed(vu.GET_CONFIG.encode_reply(vu.Empty()))
    assert packet is not None
    with pytest.raises(vu.WireError, match="GET_CONFIG"):
        vu.GET_CONFIG.decode_reply(packet)


def test_the_reply_to_another_request_is_refused() -> None:
    packet = vu.Assembler().feed(vu.GET_STATUS.encode_reply(vu.U64(0)))
    assert packet is not None
    with pytest.raises(vu.WireError, match="GET_FEATURES"):
        vu.GET_FEATURES.decode_reply(packet)


def test_messages_split_at_every_byte_arrive_whole() -> None:
    wire = vu.SET_VRING_ADDR.encode(vu.VringAddr(1, 0, 2, 3, 4, 5))
    assembler = vu.Assembler()
    fed = 0
    packet = None
    while packet is None:
        assert 1 <= assembler.wanted <= len(wire) - fed
        packet = assembler.feed(wire[fed : fed + 1])
        fed += 1
        assert assembler.midway == (packet is None)
    assert fed == len(wire)
    assert vu.SET_VRING_ADDR.decode(packet) == vu.VringAddr(1, 0, 2, 3, 4, 5)


@pytest.mark.parametrize(
    ("header", "says"),
    [
        (struct.pack("=III", 1, 0, 0), "version 0"),
        (struct.pack("=III", 1, 2, 0), "version 2"),
        (struct.pack("=III", 1, 0x11, 0), "flags 0x10"),
        (struct.pack("=III", 1, 1, vu.MAX_PAYLOAD + 1), f"{vu.MAX_PAYLOAD + 1} bytes"),
        (struct.pack("=III", 1, 1, 0xFFFFFFFF), "4294967295 bytes"),
    ],
)
def test_hostile_headers(header: bytes, says: str) -> None:
    with pytest.raises(vu.WireError, match=says):
        vu.Assembler().feed(header)


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case.message))
def test_payloads_one_byte_off_are_refused(case: Case) -> None:
    for body in (case.body[:-1], case.body + b"\0"):
        if body == case.body:
            continue
        if case.message is vu.SET_MEM_TABLE and len(body) > len(case.body):
            continue  # room for all eight regions may follow
        with pytest.raises(vu.WireError, match=case.message.name):
            case.message.decode(vu.Packet(case.message.number, 1, body))


@pytest.mark.parametrize("count", [0, 9, 0xFFFFFFFF])
def test_memory_table_region_counts(count: int) -> None:
    body = struct.pack("=II", count, 0) + REGION * 9
    with pytest.raises(vu.WireError, match=f"{count} memory regions"):
        vu.SET_MEM_TABLE.decode(vu.Packet(5, 1, body))


def test_config_longer_than_any_config_space() -> None:
    body = struct.pack("=III", 0, 257, 0) + bytes(257)
    with pytest.raises(vu.WireError, match="257"):
        vu.SET_CONFIG.decode(vu.Packet(vu.SET_CONFIG.number, 1, body))


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case.message))
def test_wrong_number_of_descriptors(case: Case) -> None:
    most = max(case.fds, case.message.fds[1] if case.message.fds_of is None else case.fds)
    packet = vu.Packet(case.message.number, 1, case.body, pipes(most + 1))
    try:
        with pytest.raises(vu.WireError, match="file descriptors"):
            case.message.decode(packet)
    finally:
        packet.close()
    if case.fds:
        with pytest.raises(vu.WireError, match="0 file descriptors"):
            case.message.decode(vu.Packet(case.message.number, 1, case.body))


def test_too_many_descriptors_in_one_message_and_none_leaks() -> None:
    assembler, fds = vu.Assembler(), pipes(vu.MAX_FDS + 1)
    with pytest.raises(vu.WireError, match="9 file descriptors"):
        assembler.feed(b"\0", fds)
    assembler.close()
    assert not any(is_open(fd) for fd in fds)


def test_an_unfinished_message_gives_its_descriptors_back() -> None:
    assembler, fds = vu.Assembler(), pipes(2)
    assembler.feed(vu.SET_MEM_TABLE.encode(CASES[4].payload)[:20], fds)
    assembler.close()
    assert not any(is_open(fd) for fd in fds)


def test_encoding_the_wrong_payload_is_a_programming_error() -> None:
    with pytest.raises(TypeError, match="SET_FEATURES carries U64"):
        vu.SET_FEATURES.encode(vu.Empty())
