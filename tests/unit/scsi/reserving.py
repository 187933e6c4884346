"""PERSISTENT RESERVE commands as an initiator sends them, byte by byte (SPC-6)."""

from __future__ import annotations

import struct
from typing import Any

from tests.unit.scsi.harness import Recorder, good, send
from vscsi_emu.scsi import Status, Target

REGISTER, RESERVE, RELEASE, CLEAR, PREEMPT, PREEMPT_AND_ABORT, REGISTER_AND_IGNORE = range(7)
REGISTER_AND_MOVE = 7
WE, EA, WERO, EARO, WEAR, EAAR = 1, 3, 5, 6, 7, 8
KINDS = (WE, EA, WERO, EARO, WEAR, EAAR)


def pr_out(
    target: Target,
    action: int,
    key: int = 0,
    action_key: int = 0,
    *,
    kind: int = 0,
    scope: int = 0,
    flags: int = 0,
    length: int = 24,
) -> Recorder:
    cdb = struct.pack(">BBB2xIB", 0x5F, action, scope << 4 | kind, length, 0)
    data = struct.pack(">QQIBxH", key, action_key, 0, flags, 0)
    return send(target, cdb, data_out=data)


def ok(command: Recorder) -> None:
    assert command.status == Status.GOOD, command.sense.hex()


def conflict(command: Recorder) -> None:
    assert command.status == Status.RESERVATION_CONFLICT
    assert not command.sense


def register(target: Target, key: int) -> None:
    ok(pr_out(target, REGISTER_AND_IGNORE, 0, key))


def pr_in(target: Target, action: int, length: int = 4096) -> bytes:
    return good(target, struct.pack(">BB5xHB", 0x5E, action, length, 0))


def keys(target: Target) -> tuple[int, list[int]]:
    """PRGENERATION and the keys, sorted."""
    data = pr_in(target, 0)
    generation, length = struct.unpack_from(">II", data)
    assert len(data) == 8 + length
    return generation, sorted(struct.unpack(f">{length // 8}Q", data[8:]))


def reservation(target: Target) -> tuple[int, int] | None:
    """Key and type of the reservation."""
    data = pr_in(target, 1)
    length = struct.unpack_from(">I", data, 4)[0]
    assert len(data) == 8 + length
    if not length:
        return None
    key, scope_type = struct.unpack(">Q4xxBxx", data[8:])
    return key, scope_type


class MemoryStore:
    """A `StateStore` that outlives a unit in a test; `fail` makes it a full disk."""

    def __init__(self) -> None:
        self.sections: dict[str, Any] = {}
        self.fail = False

    def load(self, section: str) -> Any:
        return self.sections.get(section)

    async def save(self, section: str, value: Any) -> None:
        if self.fail:
            raise OSError(28, "No space left on device")
        self.sections[section] = value
