"""What each of two hosts runs that share a disk: an HBA that passes commands to it, and our driver
as the guest of that. ``python -m tests.guest.reserving first|second``.

They find each other by what is registered and reserved, which both can read.
"""

from __future__ import annotations

import struct
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from tests.guest.passthrough import (
    BLOCK,
    MEMORY,
    MIB,
    SECONDS,
    Machine,
    attach,
    memory,
    passing_to,
    run,
    show,
)
from vscsi_emu.config import from_arguments
from vscsi_emu.driver.request import Result
from vscsi_emu.driver.virtio_scsi import Options
from vscsi_emu.inprocess import InProcess
from vscsi_emu.passthrough import PassthroughUnit

GOOD, CHECK_CONDITION, RESERVATION_CONFLICT = 0x00, 0x02, 0x18
UNIT_ATTENTION: Final = 0x06
FIRST, SECOND, TOGETHER = 0xA1, 0xB2, 0xC3
"""Reservation keys."""
READ_KEYS, READ_RESERVATION = 0x00, 0x01
REGISTER, RESERVE, PREEMPT, CLEAR = 0x00, 0x01, 0x04, 0x03
EXCLUSIVE_ACCESS: Final = 0x03
READ: Final = struct.pack(">BBIBHB", 0x28, 0, 0, 0, 1, 0)
WRITE: Final = struct.pack(">BBIBHB", 0x2A, 0, 0, 0, 1, 0)


def ask(machine: Machine, cdb: bytes, data_out: bytes = b"", data_in_length: int = 0) -> Result:
    """Again after each unit attention: what one host does, the other hears of."""
    while True:
        result = machine.command(cdb, data_out, data_in_length)
        if result.status != CHECK_CONDITION or result.sense[2] & 0x0F != UNIT_ATTENTION:
            assert result.response == 0, show(result)
            return result


def reserve_out(machine: Machine, action: int, key: int, new: int = 0) -> int:
    parameters = struct.pack(">QQ4xB3x", key, new, 0)
    cdb = struct.pack(">BBBxxIx", 0x5F, action, EXCLUSIVE_ACCESS, len(parameters))
    return ask(machine, cdb, parameters).status


def reserve_in(machine: Machine, action: int) -> set[int]:
    """The keys that are registered, or the one that holds the reservation."""
    result = ask(machine, struct.pack(">BBxxxxxHx", 0x5E, action, 256), b"", 256)
    assert not result.status, show(result)
    length = int.from_bytes(result.data[4:8])
    size = 8 if action == READ_KEYS else 16
    return {int.from_bytes(result.data[at : at + 8]) for at in range(8, 8 + length, size)}


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "the other host did not do it"
        time.sleep(0.05)


def may(machine: Machine) -> tuple[int, int]:
    """Status of READ and of WRITE."""
    read = ask(machine, READ, b"", BLOCK).status
    return read, ask(machine, WRITE, bytes(BLOCK)).status


def together() -> None:
    """Two guests of one host are one initiator to the disk: neither keeps the other one out."""
    config = from_arguments(["0:0=sg:/dev/sda"])
    (hba,) = config.hbas
    both = replace(config, hbas=(hba, replace(hba, initiator="3000000000000009")))
    half = MEMORY // 2
    with InProcess(both, memory=memory()) as server:
        units = [next(iter(slot.hba.luns.values())) for slot in server.slots]
        assert units[0] is units[1]
        assert isinstance(units[0], PassthroughUnit)
        drivers = (
            attach(slot, Options(), ram, at)
            for slot, ram, at in zip(server.slots, (half, MEMORY), (MIB, half), strict=True)
        )
        one, other = (Machine(driver, units[0], server) for driver in drivers)
        assert reserve_out(one, REGISTER, 0, TOGETHER) == GOOD
        assert reserve_out(one, RESERVE, TOGETHER) == GOOD
        for machine in (one, other):
            assert reserve_in(machine, READ_RESERVATION) == {TOGETHER}
            assert may(machine) == (GOOD, GOOD)
        assert reserve_out(other, CLEAR, TOGETHER) == GOOD
        assert not reserve_in(one, READ_KEYS)


def first() -> None:
    """Reserves, until the other one takes it away."""
    with passing_to("sg:/dev/sda") as machine:
        assert reserve_out(machine, REGISTER, 0, FIRST) == GOOD
        assert reserve_out(machine, RESERVE, FIRST) == GOOD
        assert may(machine) == (GOOD, GOOD)
        until(lambda: reserve_in(machine, READ_RESERVATION) == {SECOND})
        assert may(machine) == (RESERVATION_CONFLICT, RESERVATION_CONFLICT)
        assert reserve_out(machine, REGISTER, 0, FIRST) == GOOD
        until(lambda: not reserve_in(machine, READ_KEYS))
        assert may(machine) == (GOOD, GOOD)


def second() -> None:
    """Is kept out, takes the reservation, keeps the other one out."""
    with passing_to("sg:/dev/sda") as machine:
        until(lambda: reserve_in(machine, READ_RESERVATION) == {FIRST})
        assert may(machine) == (RESERVATION_CONFLICT, RESERVATION_CONFLICT)
        assert reserve_out(machine, RESERVE, SECOND) == RESERVATION_CONFLICT
        assert reserve_out(machine, REGISTER, 0, SECOND) == GOOD
        assert reserve_out(machine, PREEMPT, SECOND, FIRST) == GOOD
        assert may(machine) == (GOOD, GOOD)
        # The other one has found out, and registers again.
        until(lambda: FIRST in reserve_in(machine, READ_KEYS))
        assert reserve_out(machine, CLEAR, SECOND) == GOOD


def main() -> None:
    which = sys.argv[1]
    run({"second": second} if which == "second" else {"together": together, "first": first})


if __name__ == "__main__":
    main()
