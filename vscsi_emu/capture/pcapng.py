"""pcapng blocks (draft-ietf-opsawg-pcapng): as much as a capture of ours has."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, Final

SECTION: Final = 0x0A0D0D0A
INTERFACE: Final = 1
PACKET: Final = 6

LINKTYPE_IPV4: Final = 228

OPT_COMMENT: Final = 1
OPT_USERAPPL: Final = 4
"""Of a section header."""
OPT_NAME: Final = 2
"""Of an interface."""
OPT_TSRESOL: Final = 9
_BYTE_ORDER: Final = 0x1A2B3C4D
_NANOSECONDS: Final = bytes([9])
MAX_BLOCK: Final = 1 << 20
"""Bytes of a block, when reading: far more than a packet of ours."""

Options = dict[int, bytes]


class FormatError(ValueError):
    """What was read is no pcapng."""


@dataclass(frozen=True, slots=True)
class Block:
    """Header fields by block type are in `body`."""

    type: int
    body: bytes
    options: Options = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Packet:
    """An enhanced packet block. `time`: nanoseconds since the epoch."""

    interface: int
    time: int
    data: bytes
    comment: str = ""


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _block(kind: int, body: bytes, options: Options) -> bytes:
    packed = b"".join(
        struct.pack("<HH", code, len(value)) + _padded(value) for code, value in options.items()
    )
    content = _padded(body) + (packed + bytes(4) if packed else b"")
    length = len(content) + 12
    return struct.pack("<II", kind, length) + content + struct.pack("<I", length)


def section(application: str) -> bytes:
    """The header block of a file."""
    body = struct.pack("<IHHq", _BYTE_ORDER, 1, 0, -1)
    return _block(SECTION, body, {OPT_USERAPPL: application.encode()})


def interface(name: str) -> bytes:
    """The next interface, with times in nanoseconds."""
    options = {OPT_NAME: name.encode("utf-8", "replace"), OPT_TSRESOL: _NANOSECONDS}
    return _block(INTERFACE, struct.pack("<HHI", LINKTYPE_IPV4, 0, 0), options)


def packet(item: Packet) -> bytes:
    """A whole packet."""
    high, low = divmod(item.time, 1 << 32)
    size = len(item.data)
    body = struct.pack("<IIIII", item.interface, high, low, size, size) + item.data
    return _block(PACKET, body, {OPT_COMMENT: item.comment.encode()} if item.comment else {})


def blocks(file: BinaryIO) -> Iterator[Block]:
    """The blocks of a file in our byte order. `FormatError`; a block that is cut off ends it: who
    wrote it was interrupted."""
    head = file.read(8)
    if head and head[:4] != struct.pack("<I", SECTION):
        raise FormatError("it does not begin with a section header")
    while len(head) == 8:
        kind, length = struct.unpack("<II", head)
        if length < 12 or length % 4 or length > MAX_BLOCK:
            raise FormatError(f"a block of {length} bytes")
        rest = file.read(length - 8)
        if len(rest) < length - 8:
            return
        yield _parsed(kind, rest[:-4])
        head = file.read(8)


def _parsed(kind: int, content: bytes) -> Block:
    fixed = {SECTION: 16, INTERFACE: 8, PACKET: 20}.get(kind)
    if fixed is None:
        return Block(kind, content)
    if len(content) < fixed:
        raise FormatError(f"block type {kind:#x} of {len(content)} bytes")
    if kind == SECTION and content[:4] != struct.pack("<I", _BYTE_ORDER):
        raise FormatError("it was not written here: its byte order is another")
    end = fixed
    if kind == PACKET:
        size = int.from_bytes(content[12:16], "little")
        end += size + -size % 4
    return Block(kind, content[:end], _options(content[end:]))


def _options(data: bytes) -> Options:
    found: Options = {}
    while len(data) >= 4:
        code, size = struct.unpack_from("<HH", data)
        if code == 0:
            break
        found[code] = data[4 : 4 + size]
        data = data[4 + size + -size % 4 :]
    return found


def parse_packet(block: Block) -> Packet:
    """What a packet block holds."""
    interface, high, low, size, _ = struct.unpack_from("<IIIII", block.body)
    comment = block.options.get(OPT_COMMENT, b"").decode("utf-8", "replace")
    return Packet(interface, high << 32 | low, block.body[20 : 20 + size], comment)
