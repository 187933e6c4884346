"""iSCSI PDUs (RFC 7143) in TCP segments over IPv4, one a packet: both ways between them and bytes.

Only what a capture of ours needs. Sequence numbers are those of a session where each command is
answered, checksums of TCP are left out, as where a network card computes them.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

BHS: Final = 48
"""Bytes of a basic header segment."""
SCSI_COMMAND: Final = 0x01
DATA_OUT: Final = 0x05
SCSI_RESPONSE: Final = 0x21
DATA_IN: Final = 0x25
FINAL: Final = 0x80
_READ, _WRITE = 0x40, 0x20
_UNDERFLOW = 0x02
_TARGET_FAILURE = 0x80
"""Responses from here on are vendor specific: ours are the virtio response with this bit."""
_EXTENDED_CDB = 1

MAX_DATA: Final = 32768
"""Bytes of data in a PDU: an IPv4 packet holds less than 64 KiB."""

INITIATOR_PORT: Final = 49152
TARGET_PORT: Final = 3260
_IP_HEADER: Final = 20
_TCP_HEADER: Final = 20
HEADERS: Final = _IP_HEADER + _TCP_HEADER


@dataclass(frozen=True, slots=True)
class Command:
    """A SCSI Command PDU. `length`: expected data transfer length."""

    itt: int
    lun: bytes
    """Eight bytes, SAM-6's own."""
    attribute: int
    """virtio's task attribute."""
    cdb: bytes
    read: bool
    write: bool
    length: int
    number: int
    """CmdSN."""
    expected: int
    """ExpStatSN."""


@dataclass(frozen=True, slots=True)
class Data:
    """A Data-Out or Data-In PDU."""

    itt: int
    lun: bytes
    incoming: bool
    offset: int
    data: bytes
    final: bool
    number: int
    """DataSN."""


@dataclass(frozen=True, slots=True)
class Response:
    """A SCSI Response PDU."""

    itt: int
    response: int
    """``VIRTIO_SCSI_S_*``."""
    status: int
    residual: int
    sense: bytes
    number: int
    """StatSN."""


Pdu = Command | Data | Response


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def pack(pdu: Pdu) -> bytes:
    """The bytes of a PDU, without digests."""
    match pdu:
        case Command():
            return _pack_command(pdu)
        case Data():
            return _pack_data(pdu)
        case Response():
            return _pack_response(pdu)


def _bhs(
    opcode: int, flags: int, specific: bytes, lengths: int, lun: bytes, itt: int, rest: bytes
) -> bytes:
    return struct.pack(
        ">BB2sI8sI28s", opcode, flags, specific, lengths, lun, itt & 0xFFFF_FFFF, rest
    )


def _pack_command(pdu: Command) -> bytes:
    flags = FINAL | (_READ if pdu.read else 0) | (_WRITE if pdu.write else 0) | pdu.attribute + 1
    extra = pdu.cdb[16:]
    ahs = _padded(struct.pack(">HBx", len(extra) + 1, _EXTENDED_CDB) + extra) if extra else b""
    length = min(pdu.length, 0xFFFF_FFFF)
    rest = struct.pack(">III16s", length, pdu.number, pdu.expected, pdu.cdb[:16])
    return _bhs(SCSI_COMMAND, flags, bytes(2), len(ahs) // 4 << 24, pdu.lun, pdu.itt, rest) + ahs


def _pack_data(pdu: Data) -> bytes:
    opcode = DATA_IN if pdu.incoming else DATA_OUT
    rest = struct.pack(">I12xIII", 0xFFFF_FFFF, pdu.number, pdu.offset, 0)
    flags = FINAL if pdu.final else 0
    head = _bhs(opcode, flags, bytes(2), len(pdu.data), pdu.lun, pdu.itt, rest)
    return head + _padded(pdu.data)


def _pack_response(pdu: Response) -> bytes:
    flags = FINAL | (_UNDERFLOW if pdu.residual else 0)
    code = _TARGET_FAILURE | pdu.response if pdu.response else 0
    data = struct.pack(">H", len(pdu.sense)) + pdu.sense if pdu.sense else b""
    residual = min(pdu.residual, 0xFFFF_FFFF)
    expected = (pdu.itt + 1) & 0xFFFF_FFFF
    rest = struct.pack(">IIIIIII", 0, pdu.number, expected, expected + 63, 0, 0, residual)
    specific = bytes([code, pdu.status])
    head = _bhs(SCSI_RESPONSE, flags, specific, len(data), bytes(8), pdu.itt, rest)
    return head + _padded(data)


def unpack(data: bytes) -> Pdu | None:
    """The PDU in these bytes; None for one of another kind. `ValueError`: they are none."""
    if len(data) < BHS:
        raise ValueError(f"a PDU of {len(data)} bytes")
    opcode, flags, specific, lengths, lun, itt, rest = struct.unpack_from(">BB2sI8sI28s", data)
    opcode &= 0x3F
    ahs, size = lengths >> 24, lengths & 0xFF_FFFF
    payload = data[BHS + 4 * ahs :][:size]
    if len(payload) < size:
        raise ValueError(f"{len(payload)} bytes of {size} in a PDU")
    if opcode == SCSI_COMMAND:
        length, number, expected, cdb = struct.unpack(">III16s", rest)
        if ahs:
            extra = int.from_bytes(data[BHS : BHS + 2]) - 1
            cdb += data[BHS + 4 : BHS + 4 + extra]
        attribute = max((flags & 7) - 1, 0)
        read, write = bool(flags & _READ), bool(flags & _WRITE)
        return Command(itt, lun, attribute, cdb, read, write, length, number, expected)
    if opcode in (DATA_OUT, DATA_IN):
        number, offset = struct.unpack_from(">II", rest, 16)
        return Data(itt, lun, opcode == DATA_IN, offset, payload, bool(flags & FINAL), number)
    if opcode == SCSI_RESPONSE:
        sense = payload[2 : 2 + int.from_bytes(payload[:2])]
        (residual,) = struct.unpack_from(">I", rest, 24)
        number = struct.unpack_from(">I", rest, 4)[0]
        code = specific[0] & ~_TARGET_FAILURE
        return Response(itt, code, specific[1], residual, sense, number)
    return None


class Stream:
    """A TCP connection from an initiator to a target."""

    def __init__(self, initiator: bytes, target: bytes) -> None:
        """IPv4 addresses."""
        self._ends = (initiator, target)
        self._sequence = [1, 1]

    def segment(self, payload: bytes, *, incoming: bool) -> bytes:
        """The next packet of one direction; `incoming`: to the initiator."""
        own, other = (1, 0) if incoming else (0, 1)
        ports = (INITIATOR_PORT, TARGET_PORT)
        tcp = struct.pack(
            ">HHIIBBHHH",
            ports[own],
            ports[other],
            self._sequence[own],
            self._sequence[other],
            _TCP_HEADER // 4 << 4,
            0x18,  # PSH, ACK
            0xFFFF,
            0,
            0,
        )
        self._sequence[own] = (self._sequence[own] + len(payload)) & 0xFFFF_FFFF
        return _ip_header(self._ends[own], self._ends[other], len(payload)) + tcp + payload


def _ip_header(source: bytes, destination: bytes, payload: int) -> bytes:
    def header(checksum: int) -> bytes:
        return struct.pack(
            ">BBHHHBBH4s4s",
            0x45,
            0,
            HEADERS + payload,
            0,
            0x4000,  # do not fragment
            64,
            6,
            checksum,
            source,
            destination,
        )

    total = sum(struct.unpack(">10H", header(0)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return header(~total & 0xFFFF)


def addresses(packet: bytes) -> tuple[bytes, bytes]:
    """IPv4 source and destination. `ValueError` for a packet that is none of ours."""
    if len(packet) < HEADERS or packet[0] != 0x45 or packet[9] != 6:
        raise ValueError("a packet that is no iSCSI of ours")
    return packet[12:16], packet[16:20]
