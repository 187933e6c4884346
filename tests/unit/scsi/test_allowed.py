"""What each command declares of reservations, against the standards' tables (SPC-4 table 65, SBC-4
table 13)."""

from typing import Final

import pytest

from vscsi_emu.scsi.cdb import Allowed, CommandType
from vscsi_emu.scsi.commands import ALL

BOTH: Final = (
    *("INQUIRY", "LOG SENSE", "PERSISTENT RESERVE", "READ CAPACITY", "READ MEDIA SERIAL NUMBER"),
    *("RECEIVE COPY", "RECEIVE ROD TOKEN INFORMATION", "REPORT ALL ROD TOKENS"),
    *("REPORT IDENTIFYING INFORMATION", "REPORT LUNS", "REPORT PRIORITY"),
    *("REPORT TARGET PORT GROUPS", "REPORT TIMESTAMP", "REQUEST SENSE", "TEST UNIT READY"),
    # Whom they conflict with depends on registrations (SPC-4 5.13.3).
    *("RESERVE", "RELEASE"),
)
WRITE_EXCLUSIVE_ONLY: Final = (
    *("GET LBA STATUS", "MODE SENSE", "POPULATE TOKEN", "PRE-FETCH", "READ BUFFER"),
    *("READ DEFECT DATA", "READ(", "RECEIVE DIAGNOSTIC RESULTS", "SECURITY PROTOCOL IN"),
    *("REPORT SUPPORTED OPERATION CODES", "REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS", "VERIFY("),
)
NEITHER: Final = (
    *("BACKGROUND CONTROL", "COMPARE AND WRITE", "COPY OPERATION ABORT", "EXTENDED COPY"),
    *("FORMAT UNIT", "LOG SELECT", "MODE SELECT", "ORWRITE", "REASSIGN BLOCKS", "SANITIZE"),
    *("SEND DIAGNOSTIC", "SET", "SYNCHRONIZE CACHE", "UNMAP", "WRITE"),
)
DEPENDS: Final = ("PREVENT ALLOW MEDIUM REMOVAL", "START STOP UNIT")
"""On their CDBs."""


def row(name: str) -> Allowed | None:
    """None: it depends on the CDB."""
    rows = [
        *((prefix, Allowed.PERSISTENT) for prefix in BOTH),
        *((prefix, Allowed.WRITE_EXCLUSIVE) for prefix in WRITE_EXCLUSIVE_ONLY),
        *((prefix, Allowed.NONE) for prefix in NEITHER),
        *((prefix, None) for prefix in DEPENDS),
    ]
    (found,) = (allowed for prefix, allowed in rows if name.startswith(prefix))
    return found


@pytest.mark.parametrize("command", ALL, ids=lambda command: command.name)
def test_as_the_standard_has_it(command: CommandType) -> None:
    expected = row(command.name)
    if expected is None:
        assert callable(command.allowed)
        return
    assert isinstance(command.allowed, Allowed)
    assert command.allowed & Allowed.PERSISTENT == expected
