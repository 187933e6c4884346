"""Asks a disk questions and puts it right after each. Runs in a guest too: no other imports."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from tests.conformance.differential.cdbs.medium import HEAD, TAIL, contents

_GOOD = 0x00
_NOT_READY, _ILLEGAL_REQUEST = 0x02, 0x05
_READY_SECONDS = 60.0
_POLL_SECONDS = 0.01

_TEST_UNIT_READY = bytes(6)
_START_UNIT = bytes.fromhex("1b0000000100")
_ALLOW_REMOVAL = bytes.fromhex("1e0000000000")
_RELEASE = bytes.fromhex("170000000000")


@dataclass(frozen=True)
class Question:
    """One command. `name` says what is special about its CDB; `room` is bytes for data-in."""

    name: str
    cdb: bytes
    data_out: bytes
    room: int
    harmless: bool
    """It changes nothing that a later question could see."""


@dataclass(frozen=True)
class Reply:
    """`residual` None: it is not known. `refused`: what became of a command that the transport did
    not carry out; else empty."""

    status: int
    sense: bytes = b""
    residual: int | None = 0
    data: bytes = b""
    refused: str = ""


@dataclass(frozen=True)
class Answer:
    """A reply and what the question left on the medium: "kept", or what tells contents apart."""

    reply: Reply
    medium: str


Send = Callable[[bytes, bytes, int], Reply]
"""CDB, data-out, bytes of room for data-in."""


def answers(send: Send, questions: Iterable[Question]) -> Iterator[Answer]:
    """One a question. Raises `RuntimeError` for a disk that cannot be put right again."""
    _settle(send)
    _look(send)
    for question in questions:
        reply = send(question.cdb, question.data_out, question.room)
        if question.harmless:
            yield Answer(reply, "kept")
            continue
        try:
            if _key(reply) != _ILLEGAL_REQUEST:
                _settle(send)
            yield Answer(reply, _look(send))
        except RuntimeError as error:
            raise RuntimeError(f"after {question.name} ({question.cdb.hex()}): {error}") from error


def _key(reply: Reply) -> int:
    """The sense key; 0 without sense data."""
    return reply.sense[2] & 0xF if reply.sense else 0


def _settle(send: Send) -> None:
    """Nothing reserved, nothing prevented, started, no unit attention."""
    for cdb in (_RELEASE, _ALLOW_REMOVAL, _START_UNIT):
        send(cdb, b"", 0)
    deadline = time.monotonic() + _READY_SECONDS
    while (reply := send(_TEST_UNIT_READY, b"", 0)).status != _GOOD:
        if time.monotonic() > deadline:
            raise RuntimeError(f"TEST UNIT READY still ends with {reply}")
        if _key(reply) == _NOT_READY:
            time.sleep(_POLL_SECONDS)


def _look(send: Send) -> str:
    """What is at both ends of the medium; writes them anew if that is not what should be there."""
    found = hashlib.sha256()
    kept = True
    for area in (HEAD, TAIL):
        wanted = contents(area.start, len(area))
        reply = send(_transfer(0x28, area), b"", len(wanted))
        readable = reply.status == _GOOD
        found.update(reply.data if readable else b"unreadable")
        if readable and reply.data == wanted:
            continue
        kept = False
        reply = send(_transfer(0x2A, area), wanted, 0)
        if reply.status != _GOOD or reply.refused:
            raise RuntimeError(f"WRITE(10) ends with {reply}")
    return "kept" if kept else found.hexdigest()[:8]


def _transfer(opcode: int, area: range) -> bytes:
    """READ(10) or WRITE(10)."""
    return bytes([opcode, 0, *area.start.to_bytes(4), 0, *len(area).to_bytes(2), 0])
