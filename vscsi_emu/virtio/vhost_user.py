"""The vhost-user wire: every message that a SCSI device can meet, for back end and front end.

A message is a 12-byte header (request, flags, payload size: 32 bits each), then its payload, both
in host byte order, with file descriptors in ancillary data. Each message is declared once below;
what a message may carry, whether it is answered and which protocol feature it needs follow from
its declaration. Clauses: "Message Specification" and "Message types" of the vhost-user protocol.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import IntEnum, IntFlag
from types import MappingProxyType
from typing import ClassVar, Final, Self

HEADER: Final = struct.Struct("=III")
VERSION: Final = 1
VERSION_MASK: Final = 0x3
FLAG_REPLY: Final = 1 << 2
FLAG_NEED_REPLY: Final = 1 << 3
_KNOWN_FLAGS: Final = VERSION_MASK | FLAG_REPLY | FLAG_NEED_REPLY

MAX_PAYLOAD: Final = 4096
"""Longest payload taken, in bytes; no message we know comes near it."""
MAX_FDS: Final = 8
"""Most descriptors in one message, either way."""
MAX_MEM_REGIONS: Final = 8
"""Most regions in one SET_MEM_TABLE."""
MAX_CONFIG: Final = 256
"""Longest device configuration space, in bytes."""

VRING_INDEX_MASK: Final = 0xFF
VRING_NO_FD: Final = 1 << 8
VRING_F_LOG: Final = 1 << 0
"""`VringAddr.flags`: used ring writes are logged."""

F_LOG_ALL: Final = 1 << 26
F_PROTOCOL_FEATURES: Final = 1 << 30
"""Virtio feature bits that belong to vhost-user itself."""


class ProtocolFeature(IntFlag):
    """Protocol feature bits (VHOST_USER_PROTOCOL_F_*)."""

    MQ = 1 << 0
    LOG_SHMFD = 1 << 1
    RARP = 1 << 2
    REPLY_ACK = 1 << 3
    NET_MTU = 1 << 4
    BACKEND_REQ = 1 << 5
    CROSS_ENDIAN = 1 << 6
    CRYPTO_SESSION = 1 << 7
    PAGEFAULT = 1 << 8
    CONFIG = 1 << 9
    BACKEND_SEND_FD = 1 << 10
    HOST_NOTIFIER = 1 << 11
    INFLIGHT_SHMFD = 1 << 12
    RESET_DEVICE = 1 << 13
    INBAND_NOTIFICATIONS = 1 << 14
    CONFIGURE_MEM_SLOTS = 1 << 15
    STATUS = 1 << 16
    XEN_MMAP = 1 << 17
    SHARED_OBJECT = 1 << 18
    DEVICE_STATE = 1 << 19
    GET_VRING_BASE_INFLIGHT = 1 << 20
    GPA_ADDRESSES = 1 << 21
    SHMEM = 1 << 22
    GET_VRING_BASE_SKIP_DRAIN = 1 << 23


PREREQUISITES: Final[Mapping[ProtocolFeature, ProtocolFeature]] = MappingProxyType(
    {
        ProtocolFeature.INBAND_NOTIFICATIONS: (
            ProtocolFeature.BACKEND_REQ | ProtocolFeature.REPLY_ACK
        ),
        ProtocolFeature.GET_VRING_BASE_SKIP_DRAIN: (
            ProtocolFeature.GET_VRING_BASE_INFLIGHT | ProtocolFeature.INFLIGHT_SHMFD
        ),
    }
)
"""What must be negotiated along with a protocol feature."""


class WireError(Exception):
    """A message that breaks the protocol; says which one and how."""


# ── Payloads ───────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Payload:
    """A fixed-size payload: one integer field per member of `STRUCT`, in its order."""

    STRUCT: ClassVar[struct.Struct] = struct.Struct("=")

    def pack(self) -> bytes:
        return self.STRUCT.pack(*(getattr(self, f.name) for f in fields(self)))

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Raises `ValueError` for any other length than the payload's."""
        if len(data) != cls.STRUCT.size:
            raise ValueError(f"payload of {len(data)} bytes instead of {cls.STRUCT.size}")
        return cls(*cls.STRUCT.unpack(data))


@dataclass(frozen=True, slots=True)
class Empty(Payload):
    """No payload."""


@dataclass(frozen=True, slots=True)
class U64(Payload):
    """A 64-bit number: feature bits, an acknowledgement, a size."""

    STRUCT: ClassVar[struct.Struct] = struct.Struct("=Q")
    value: int


@dataclass(frozen=True, slots=True)
class VringFd(Payload):
    """Bits 0-7: ring index; bit 8: no descriptor comes with the message."""

    STRUCT: ClassVar[struct.Struct] = struct.Struct("=Q")
    value: int

    @classmethod
    def of(cls, index: int, *, has_fd: bool = True) -> Self:
        return cls(index | (0 if has_fd else VRING_NO_FD))

    @property
    def index(self) -> int:
        return self.value & VRING_INDEX_MASK

    @property
    def has_fd(self) -> bool:
        return not self.value & VRING_NO_FD


@dataclass(frozen=True, slots=True)
class VringState(Payload):
    """A ring's index and a number: its size, base index, enable or byte order."""

    STRUCT: ClassVar[struct.Struct] = struct.Struct("=II")
    index: int
    num: int


@dataclass(frozen=True, slots=True)
class VringAddr(Payload):
    """Where a ring's parts are: user addresses, unless GPA_ADDRESSES was negotiated."""

    STRUCT: ClassVar[struct.Struct] = struct.Struct("=IIQQQQ")
    index: int
    flags: int
    descriptor: int
    used: int
    available: int
    log: int


@dataclass(frozen=True, slots=True)
class MemoryRegion(Payload):
    """A region of guest memory; its descriptor comes beside it. Sizes and offsets in bytes."""

    STRUCT: ClassVar[struct.Struct] = struct.Struct("=QQQQ")
    guest_address: int
    size: int
    user_address: int
    mmap_offset: int


@dataclass(frozen=True, slots=True)
class SingleRegion(Payload):
    """One region, after 8 bytes of padding (ADD_MEM_REG, REM_MEM_REG)."""

    STRUCT: ClassVar[struct.Struct] = struct.Struct("=8xQQQQ")
    guest_address: int
    size: int
    user_address: int
    mmap_offset: int


@dataclass(frozen=True, slots=True)
class MemoryTable(Payload):
    """The whole memory table: a count, padding, then 1 to 8 regions."""

    STRUCT: ClassVar[struct.Struct] = struct.Struct("=I4x")
    regions: tuple[MemoryRegion, ...]

    def pack(self) -> bytes:
        return self.STRUCT.pack(len(self.regions)) + b"".join(r.pack() for r in self.regions)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        if len(data) < cls.STRUCT.size:
            raise ValueError(f"payload of {len(data)} bytes has no room for the region count")
        (count,) = cls.STRUCT.unpack_from(data)
        if not 1 <= count <= MAX_MEM_REGIONS:
            raise ValueError(f"{count} memory regions instead of 1 to {MAX_MEM_REGIONS}")
        body = data[cls.STRUCT.size :]
        step = MemoryRegion.STRUCT.size
        # A front end may send room for all eight regions, whatever the count says.
        if len(body) < count * step:
            raise ValueError(f"{len(body)} bytes hold no {count} memory regions of {step} bytes")
        return cls(
            tuple(MemoryRegion.unpack(body[i * step : (i + 1) * step]) for i in range(count))
        )


@dataclass(frozen=True, slots=True)
class ConfigSpace(Payload):
    """A piece of the device configuration space (GET_CONFIG, SET_CONFIG).

    `flags`: 0 for a driver's write, 1 for live migration. A back end refuses GET_CONFIG by an
    `Empty` reply, which `MessageType.decode_reply` raises as an error.
    """

    STRUCT: ClassVar[struct.Struct] = struct.Struct("=III")
    offset: int
    flags: int
    data: bytes

    def pack(self) -> bytes:
        return self.STRUCT.pack(self.offset, len(self.data), self.flags) + self.data

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        if len(data) < cls.STRUCT.size:
            raise ValueError(f"payload of {len(data)} bytes has no room for offset, size and flags")
        offset, size, flags = cls.STRUCT.unpack_from(data)
        body = data[cls.STRUCT.size :]
        if size > MAX_CONFIG:
            raise ValueError(f"config size {size} is above {MAX_CONFIG} bytes")
        if size != len(body):
            raise ValueError(f"config size {size} but {len(body)} bytes of it in the payload")
        return cls(offset, flags, body)


class IotlbType(IntEnum):
    """`IotlbMessage.type` (VHOST_IOTLB_*)."""

    MISS = 1
    UPDATE = 2
    INVALIDATE = 3
    ACCESS_FAIL = 4


@dataclass(frozen=True, slots=True)
class IotlbMessage(Payload):
    """struct vhost_iotlb_msg of linux/vhost_types.h, padded to 32 bytes. `permissions`: 1 read,
    2 write, 3 both. A miss and an access failure have no size."""

    STRUCT: ClassVar[struct.Struct] = struct.Struct("=QQQBB6x")
    iova: int
    size: int
    user_address: int
    permissions: int
    type: int


# ── Messages ───────────────────────────────────────────────────────────────────────────────────


def _one_fd(payload: Payload) -> int:
    return 1 if isinstance(payload, VringFd) and payload.has_fd else 0


def _fd_each(payload: Payload) -> int:
    return len(payload.regions) if isinstance(payload, MemoryTable) else 0


_NONE: Final = ProtocolFeature(0)


@dataclass(frozen=True, slots=True)
class MessageType:
    """The declaration of one message.

    `reply` is the payload of its own answer, None where it has none (an acknowledgement by
    REPLY_ACK is not one). `fds` gives the fewest and most descriptors; `fds_of` narrows that to
    what the payload says. `needs` is to be negotiated, or with `offer_suffices` only offered.
    """

    number: int
    name: str
    payload: type[Payload] = Empty
    reply: type[Payload] | None = None
    fds: tuple[int, int] = (0, 0)
    fds_of: Callable[[Payload], int] | None = None
    needs: ProtocolFeature = _NONE
    offer_suffices: bool = False

    def __str__(self) -> str:
        return self.name

    def decode(self, packet: Packet) -> Payload:
        """The packet's payload, its length and number of descriptors checked."""
        try:
            payload = self.payload.unpack(packet.payload)
        except ValueError as error:
            raise WireError(f"{self}: {error}") from None
        self.check_fds(payload, len(packet.fds))
        return payload

    def check_fds(self, payload: Payload, count: int) -> None:
        """`WireError` if not so many descriptors come with this payload."""
        low, high = self.fds
        if self.fds_of is not None:
            low = high = self.fds_of(payload)
        if not low <= count <= high:
            wanted = str(low) if low == high else f"{low} to {high}"
            raise WireError(f"{self}: {count} file descriptors instead of {wanted}")

    def decode_reply(self, packet: Packet) -> Payload:
        """The payload of this message's own reply, or the `U64` of its acknowledgement."""
        if packet.request != self.number or not packet.flags & FLAG_REPLY:
            raise WireError(f"{self}: request {packet.request} came instead of its reply")
        try:
            return (self.reply or U64).unpack(packet.payload)
        except ValueError as error:
            raise WireError(f"reply to {self}: {error}") from None

    def encode(self, payload: Payload | None = None, *, need_reply: bool = False) -> bytes:
        """The request's bytes; its descriptors go beside them."""
        payload = Empty() if payload is None else payload
        if type(payload) is not self.payload:
            raise TypeError(f"{self} carries {self.payload.__name__}, not {type(payload).__name__}")
        return encode(self.number, payload.pack(), FLAG_NEED_REPLY if need_reply else 0)

    def encode_reply(self, payload: Payload) -> bytes:
        """The reply's bytes, or those of its acknowledgement."""
        return encode(self.number, payload.pack(), FLAG_REPLY)


def encode(number: int, payload: bytes, flags: int) -> bytes:
    """Header (version 1) and payload."""
    return HEADER.pack(number, VERSION | flags, len(payload)) + payload


_P = ProtocolFeature

GET_FEATURES: Final = MessageType(1, "GET_FEATURES", reply=U64)
SET_FEATURES: Final = MessageType(2, "SET_FEATURES", U64)
SET_OWNER: Final = MessageType(3, "SET_OWNER")
RESET_OWNER: Final = MessageType(4, "RESET_OWNER")
SET_MEM_TABLE: Final = MessageType(
    5, "SET_MEM_TABLE", MemoryTable, fds=(1, MAX_MEM_REGIONS), fds_of=_fd_each
)
SET_VRING_NUM: Final = MessageType(8, "SET_VRING_NUM", VringState)
SET_VRING_ADDR: Final = MessageType(9, "SET_VRING_ADDR", VringAddr)
SET_VRING_BASE: Final = MessageType(10, "SET_VRING_BASE", VringState)
GET_VRING_BASE: Final = MessageType(11, "GET_VRING_BASE", VringState, reply=VringState)
SET_VRING_KICK: Final = MessageType(12, "SET_VRING_KICK", VringFd, fds=(0, 1), fds_of=_one_fd)
SET_VRING_CALL: Final = MessageType(13, "SET_VRING_CALL", VringFd, fds=(0, 1), fds_of=_one_fd)
SET_VRING_ERR: Final = MessageType(14, "SET_VRING_ERR", VringFd, fds=(0, 1), fds_of=_one_fd)
GET_PROTOCOL_FEATURES: Final = MessageType(15, "GET_PROTOCOL_FEATURES", reply=U64)
SET_PROTOCOL_FEATURES: Final = MessageType(16, "SET_PROTOCOL_FEATURES", U64)
GET_QUEUE_NUM: Final = MessageType(17, "GET_QUEUE_NUM", reply=U64, needs=_P.MQ, offer_suffices=True)
SET_VRING_ENABLE: Final = MessageType(18, "SET_VRING_ENABLE", VringState)
SET_BACKEND_REQ_FD: Final = MessageType(
    21, "SET_BACKEND_REQ_FD", fds=(1, 1), needs=_P.BACKEND_REQ, offer_suffices=True
)
IOTLB_MSG: Final = MessageType(22, "IOTLB_MSG", IotlbMessage, reply=U64)
SET_VRING_ENDIAN: Final = MessageType(23, "SET_VRING_ENDIAN", VringState, needs=_P.CROSS_ENDIAN)
GET_CONFIG: Final = MessageType(24, "GET_CONFIG", ConfigSpace, reply=ConfigSpace, needs=_P.CONFIG)
SET_CONFIG: Final = MessageType(25, "SET_CONFIG", ConfigSpace, needs=_P.CONFIG)
RESET_DEVICE: Final = MessageType(34, "RESET_DEVICE", needs=_P.RESET_DEVICE, offer_suffices=True)
VRING_KICK: Final = MessageType(35, "VRING_KICK", VringState, needs=_P.INBAND_NOTIFICATIONS)
GET_MAX_MEM_SLOTS: Final = MessageType(
    36, "GET_MAX_MEM_SLOTS", reply=U64, needs=_P.CONFIGURE_MEM_SLOTS
)
ADD_MEM_REG: Final = MessageType(
    37, "ADD_MEM_REG", SingleRegion, fds=(1, 1), needs=_P.CONFIGURE_MEM_SLOTS
)
# A stray descriptor may come with REM_MEM_REG (old front ends); it is closed, not used.
REM_MEM_REG: Final = MessageType(
    38, "REM_MEM_REG", SingleRegion, fds=(0, 1), needs=_P.CONFIGURE_MEM_SLOTS
)
SET_STATUS: Final = MessageType(39, "SET_STATUS", U64, needs=_P.STATUS)
GET_STATUS: Final = MessageType(40, "GET_STATUS", reply=U64, needs=_P.STATUS)

BACKEND_IOTLB_MSG: Final = MessageType(1, "BACKEND_IOTLB_MSG", IotlbMessage)
BACKEND_CONFIG_CHANGE_MSG: Final = MessageType(2, "BACKEND_CONFIG_CHANGE_MSG", needs=_P.CONFIG)
BACKEND_VRING_CALL: Final = MessageType(
    4, "BACKEND_VRING_CALL", VringState, needs=_P.INBAND_NOTIFICATIONS
)
BACKEND_VRING_ERR: Final = MessageType(
    5, "BACKEND_VRING_ERR", VringState, needs=_P.INBAND_NOTIFICATIONS
)


def _table(*messages: MessageType) -> Mapping[int, MessageType]:
    return MappingProxyType({message.number: message for message in messages})


FRONTEND: Final = _table(
    GET_FEATURES, SET_FEATURES, SET_OWNER, RESET_OWNER, SET_MEM_TABLE,
    SET_VRING_NUM, SET_VRING_ADDR, SET_VRING_BASE, GET_VRING_BASE,
    SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR,
    GET_PROTOCOL_FEATURES, SET_PROTOCOL_FEATURES, GET_QUEUE_NUM, SET_VRING_ENABLE,
    SET_BACKEND_REQ_FD, IOTLB_MSG, SET_VRING_ENDIAN, GET_CONFIG, SET_CONFIG,
    RESET_DEVICE, VRING_KICK, GET_MAX_MEM_SLOTS, ADD_MEM_REG, REM_MEM_REG,
    SET_STATUS, GET_STATUS,
)  # fmt: skip
"""What a front end asks, by request number."""

REFUSED: Final[Mapping[int, str]] = MappingProxyType(
    {
        6: "SET_LOG_BASE",
        7: "SET_LOG_FD",
        19: "SEND_RARP",
        20: "NET_SET_MTU",
        26: "CREATE_CRYPTO_SESSION",
        27: "CLOSE_CRYPTO_SESSION",
        28: "POSTCOPY_ADVISE",
        29: "POSTCOPY_LISTEN",
        30: "POSTCOPY_END",
        31: "GET_INFLIGHT_FD",
        32: "SET_INFLIGHT_FD",
        33: "GPU_SET_SOCKET",
        41: "GET_SHARED_OBJECT",
        42: "SET_DEVICE_STATE_FD",
        43: "CHECK_DEVICE_STATE",
        44: "GET_SHMEM_CONFIG",
        45: "GET_VRING_BASE_SKIP_DRAIN",
    }
)
"""Defined requests of features that are not offered here, for the sake of error messages."""

BACKEND: Final = _table(
    BACKEND_IOTLB_MSG, BACKEND_CONFIG_CHANGE_MSG, BACKEND_VRING_CALL, BACKEND_VRING_ERR
)
"""What a back end asks over the descriptor of SET_BACKEND_REQ_FD, by request number."""


# ── Receiving ──────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class Packet:
    """A whole message as it came. Owns its descriptors until `take_fds` or `close`."""

    request: int
    flags: int
    payload: bytes = b""
    fds: list[int] = field(default_factory=list)

    @property
    def need_reply(self) -> bool:
        return bool(self.flags & FLAG_NEED_REPLY)

    @property
    def is_reply(self) -> bool:
        return bool(self.flags & FLAG_REPLY)

    def take_fds(self) -> list[int]:
        """The descriptors, now the caller's to close."""
        fds, self.fds = self.fds, []
        return fds

    def close(self) -> None:
        close_fds(self.take_fds())


class Assembler:
    """Puts messages together from whatever pieces a stream socket delivers.

    Read at most `wanted` bytes at a time and `feed` them with the descriptors that came along:
    a read then never crosses a message, and descriptors belong to the right one.
    """

    def __init__(self) -> None:
        self._data = bytearray()
        self._fds: list[int] = []
        self._total = HEADER.size

    @property
    def wanted(self) -> int:
        """Bytes missing from the header, or from the payload once the header is there."""
        return self._total - len(self._data)

    @property
    def midway(self) -> bool:
        """A message has begun and is not complete."""
        return bool(self._data)

    def feed(self, data: bytes, fds: Iterable[int] = ()) -> Packet | None:
        """The message that `data` completes, if it does. Raises `WireError`; owns `fds`."""
        self._fds += fds
        self._data += data
        if len(self._fds) > MAX_FDS:
            raise WireError(f"{len(self._fds)} file descriptors, above {MAX_FDS}")
        if len(self._data) < HEADER.size:
            return None
        request, flags, size = HEADER.unpack_from(self._data)
        if self._total == HEADER.size:
            self._check_header(request, flags, size)
            self._total += size
        if self.wanted:
            return None
        packet = Packet(request, flags, bytes(self._data[HEADER.size :]), self._fds)
        self._data, self._fds, self._total = bytearray(), [], HEADER.size
        return packet

    @staticmethod
    def _check_header(request: int, flags: int, size: int) -> None:
        if flags & VERSION_MASK != VERSION:
            raise WireError(f"request {request}: version {flags & VERSION_MASK} instead of 1")
        if flags & ~_KNOWN_FLAGS:
            raise WireError(f"request {request}: undefined flags {flags & ~_KNOWN_FLAGS:#x}")
        if size > MAX_PAYLOAD:
            raise WireError(f"request {request}: payload of {size} bytes, above {MAX_PAYLOAD}")

    def close(self) -> None:
        """Closes the descriptors of an unfinished message."""
        close_fds(self._fds)
        self._fds = []


def close_fds(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
