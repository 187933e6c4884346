"""ROD tokens: who shows one may have the blocks that it stands for (SPC-6 5.17.6, SBC-5 4.28).

They are of the type "point in time copy - change vulnerable": no copy of the blocks is kept, so a
token is cancelled as soon as one of them is changed.
"""

from __future__ import annotations

import secrets
import struct
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from vscsi_emu import _dataplane
from vscsi_emu.scsi.sense import Asc, ScsiError, SenseKey

if TYPE_CHECKING:
    from vscsi_emu.scsi.unit import LogicalUnit

TOKEN_SIZE: Final = 512
LENGTH_FIELD: Final = TOKEN_SIZE - 8
POINT_IN_TIME_ANY: Final = 0x0080_FFFF
CHANGE_VULNERABLE: Final = 0x0080_0001
ZERO: Final = 0xFFFF_0001
"""ROD types (SPC-6 5.17.6.2); `ZERO` is SBC-5's block device zero ROD token."""

DEFAULT_TIMEOUT: Final = 60
MAX_TIMEOUT: Final = 3600
"""Seconds without use after which a token is forgotten."""
MAX_TOKENS: Final = 1024
"""Of one process, those remembered to say why they are none any more included."""

_HEAD: Final = struct.Struct(">I2xHQ32s16s32xI28x")
"""ROD TYPE, ROD TOKEN LENGTH, COPY MANAGER ROD TOKEN IDENTIFIER, CREATOR LOGICAL UNIT DESCRIPTOR,
NUMBER OF BYTES REPRESENTED, the block length; 128 bytes."""
_CREATOR: Final = struct.Struct(">B7x24s")
_IDENTIFICATION: Final = 0xE4


@dataclass(frozen=True, slots=True)
class Range:
    """Of logical blocks."""

    lba: int
    blocks: int


@dataclass(slots=True)
class Token:
    """`raw`: what the initiator has. `ended`: why it is of no use any more."""

    raw: bytes
    unit: LogicalUnit
    ranges: Sequence[Range]
    watch: _dataplane.Watch | None
    timeout: int
    used: float
    """When it was made or last used, in seconds of a monotonic clock."""
    ended: Asc | None = None
    users: int = field(default=0)
    """Copies that use it now: it does not expire meanwhile."""

    @property
    def size(self) -> int:
        """Bytes that it stands for."""
        return sum(extent.blocks for extent in self.ranges) * self.unit.block_size


class Tokens:
    """The copy manager's: one for all units that tokens may be carried between."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._tokens: OrderedDict[int, Token] = OrderedDict()
        """By identifier, oldest first."""

    def make(
        self, unit: LogicalUnit, ranges: Sequence[Range], timeout: int, designator: bytes
    ) -> Token:
        """A token for blocks of `unit` as they are once what runs there now is over.
        `designator`: what `unit` is called, as VPD page 83h has it."""
        block = unit.block_size
        watch = _dataplane.Watch(
            unit.data_plane, [(extent.lba * block, extent.blocks * block) for extent in ranges]
        )
        identifier = secrets.randbits(64)
        creator = _CREATOR.pack(_IDENTIFICATION, b"")[:4] + designator.ljust(28, b"\0")
        size = sum(extent.blocks for extent in ranges) * block
        head = _HEAD.pack(
            CHANGE_VULNERABLE, LENGTH_FIELD, identifier, creator, size.to_bytes(16), block
        )
        # TARGET DEVICE DESCRIPTOR, then data of our own that nobody guesses.
        target = designator.ljust(128, b"\0")
        raw = head + target + secrets.token_bytes(TOKEN_SIZE - len(head) - len(target))
        token = Token(raw, unit, tuple(ranges), watch, timeout, self._clock())
        while len(self._tokens) >= MAX_TOKENS:
            self._forget_one()
        self._tokens[identifier] = token
        return token

    def _forget_one(self) -> None:
        """The oldest that is of no use any more, else the oldest."""
        ended = (key for key, token in self._tokens.items() if self._ended(token) is not None)
        del self._tokens[next(ended, next(iter(self._tokens)))]

    def find(self, raw: bytes) -> Token:
        """The token that an initiator shows. `ScsiError` for one that is none, or none any more."""
        if int.from_bytes(raw[6:8]) != LENGTH_FIELD:
            raise _invalid(Asc.INVALID_TOKEN_LENGTH)
        token = self._tokens.get(int.from_bytes(raw[8:16]))
        if token is None:
            raise _invalid(Asc.TOKEN_UNKNOWN)
        if not secrets.compare_digest(token.raw, raw):
            raise _invalid(Asc.TOKEN_CORRUPT)
        if (reason := self._ended(token)) is not None:
            raise _invalid(reason)
        return token

    def use(self, token: Token) -> None:
        """A copy that uses it begins; its inactivity ends."""
        token.users += 1

    def release(self, token: Token, *, delete: bool) -> None:
        """That copy is over."""
        token.users -= 1
        token.used = self._clock()
        if delete and token.ended is None:
            self._end(token, Asc.TOKEN_DELETED)

    def cancel(self, unit: LogicalUnit) -> None:
        """All of a unit whose medium or capacity changes."""
        for token in self._tokens.values():
            if token.unit is unit and token.ended is None:
                self._end(token, Asc.TOKEN_CANCELLED)

    def forget(self, unit: LogicalUnit) -> None:
        """A unit that is gone: nobody can show its tokens to it any more."""
        for key in [key for key, token in self._tokens.items() if token.unit is unit]:
            del self._tokens[key]

    def _ended(self, token: Token) -> Asc | None:
        if token.ended is None:
            if token.watch is not None and token.watch.changed:
                self._end(token, Asc.TOKEN_CANCELLED)
            elif not token.users and self._clock() - token.used > token.timeout:
                self._end(token, Asc.TOKEN_EXPIRED)
        return token.ended

    @staticmethod
    def _end(token: Token, reason: Asc) -> None:
        token.ended = reason
        # Nobody needs to notice changes any more.
        token.watch = None


def is_zero(raw: bytes) -> bool:
    """Whether it is the block device zero ROD token, which is never made: everybody has it."""
    if int.from_bytes(raw[:4]) != ZERO:
        return False
    if int.from_bytes(raw[6:8]) != LENGTH_FIELD:
        raise _invalid(Asc.INVALID_TOKEN_LENGTH)
    return True


def changed() -> ScsiError:
    """The blocks of a token were changed while they were copied."""
    return _invalid(Asc.TOKEN_CANCELLED)


def _invalid(code: Asc) -> ScsiError:
    return ScsiError(SenseKey.ILLEGAL_REQUEST, code)
