"""What two disks answered differently, in words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from tests.conformance.differential.cdbs.asking import Answer, Reply
from tests.conformance.differential.differences import Found
from tests.conformance.differential.machine import UNTOUCHED

_STATUS: Final = {0x00: "GOOD", 0x02: "CHECK CONDITION", 0x08: "BUSY", 0x18: "conflict"}
_FIXED: Final = frozenset({0x70, 0x71})
_SKSV, _COMMAND, _BPV, _VALID = 0x80, 0x40, 0x08, 0x80


def differences(name: str, ours: Answer, theirs: Answer) -> Iterator[Found]:
    """How they end; where both end alike, the sense data or what was transferred, and what is left
    on the medium."""
    mine, other = outcome(ours.reply), outcome(theirs.reply)
    if mine != other:
        yield Found(f"{name}.outcome", mine, other)
        return
    aspects = [("medium", ours.medium, theirs.medium)]
    if ours.reply.sense:
        aspects.append(("field", _field(ours.reply), _field(theirs.reply)))
        aspects.append(("information", _information(ours.reply), _information(theirs.reply)))
    else:
        aspects.append(("data", _data(ours.reply), _data(theirs.reply)))
        if theirs.reply.residual is not None:
            aspects.append(("residual", str(ours.reply.residual), str(theirs.reply.residual)))
    for aspect, mine, other in aspects:
        if mine != other:
            yield Found(f"{name}.{aspect}", mine, other)


def outcome(reply: Reply) -> str:
    """Status, or sense key and additional sense code where there are any."""
    if reply.refused:
        return reply.refused
    if not reply.sense:
        return _STATUS.get(reply.status, f"status {reply.status:02X}h")
    _check(reply)
    return f"{reply.sense[2] & 0xF:X}/{reply.sense[12]:02X}/{reply.sense[13]:02X}"


def _field(reply: Reply) -> str:
    """The field pointer of ILLEGAL REQUEST (SPC-6, sense key specific data): byte and bit."""
    if len(reply.sense) < 18 or not reply.sense[15] & _SKSV:
        return "none"
    flags, byte = reply.sense[15], int.from_bytes(reply.sense[16:18])
    bit = f".{flags & 7}" if flags & _BPV else ""
    return f"{'CDB' if flags & _COMMAND else 'parameter'} {byte}{bit}"


def _information(reply: Reply) -> str:
    if not reply.sense or not reply.sense[0] & _VALID:
        return "none"
    return str(int.from_bytes(reply.sense[3:7]))


def _data(reply: Reply) -> str:
    """Without the zeros at its end; what was never written looks the same."""
    return reply.data.rstrip(bytes([0, UNTOUCHED])).hex() or "none"


def _check(reply: Reply) -> None:
    """None of the disks is set to descriptor format."""
    assert reply.sense[0] & 0x7F in _FIXED, reply
