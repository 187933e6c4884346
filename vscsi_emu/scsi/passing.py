"""Which commands pass to a device of the host: the one table of the pass-through filter, and of
how long commands may take, which our own disks report.

By peripheral device type, since types give one operation code different meanings. What is not
here passes at `Level.ALL` only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from types import MappingProxyType
from typing import Final

from vscsi_emu.scsi.cdb import VARIABLE_LENGTH, service_action_field

MAINTENANCE_IN: Final = 0xA3
INQUIRY: Final = 0x12
REPORT_LUNS: Final = 0xA0

MULTIMEDIA: Final = 0x05
"""Peripheral device type of CD/DVD devices."""

_MINUTE: Final = 60
"""Of what comes to an end by itself: Linux's sd gives a read or write 30 s, and a disk may be
spinning up or in error recovery."""
_LONG: Final = 15 * _MINUTE
"""Of what a device may have to move or to flush first: 100 GB of cache at 100 MB/s."""
_HOURS: Final = 14400
"""Of what one CDB may have go over much of the medium: 2 TB at 150 MB/s."""
_DAY: Final = 86400
"""Of what always goes over the whole medium: 24 TB at 280 MB/s."""


class Level(IntEnum):
    """What a guest may do; each level includes the one before."""

    READONLY = 0
    """Nothing that changes what is on the medium or how the device works."""
    SAFE = 1
    """What a guest needs on a device of its own: no firmware, no FORMAT UNIT, SANITIZE, third-party
    copies or security protocols, no commands of vendors or of other standards (ATA)."""
    ALL = 2


@dataclass(frozen=True, slots=True)
class Passing:
    """An operation code that passes from `level` on."""

    opcode: int
    level: Level
    timeout: int = _MINUTE
    """Seconds until the host gives it up."""
    blocks: bool = False
    """Its CDB is laid out as SBC-5 says: it may be split."""
    length: tuple[int, int] = (0, 0)
    """First byte and size of the CDB's field for the length of the data; size 0 where that is not
    in bytes, (0, 0) where it is as usual for CDBs of that size, or there is none."""
    actions: frozenset[int] | None = None
    """Only with these service actions, or modes, in bits 4 to 0 of byte 1; None: with any."""

    def covers(self, cdb: bytes) -> bool:
        return self.actions is None or _action(cdb) in self.actions


def _action(cdb: bytes) -> int:
    return service_action_field(cdb[0]).extract(cdb)


def _of(*values: int) -> frozenset[int]:
    return frozenset(values)


_RO, _SAFE = Level.READONLY, Level.SAFE
_LENGTH_6: Final = (4, 1)
_LENGTH_10: Final = (7, 2)
_LENGTH_12: Final = (6, 4)
_LENGTH_16: Final = (10, 4)
_LENGTH_TAPE: Final = (2, 0)
"""Of 6-byte CDBs: bytes, or blocks of a size that is a mode of the device."""

_WRITE_BUFFER_DATA: Final = _of(0x00, 0x02, 0x0A)
"""Modes of WRITE BUFFER that write to the buffer only; others load or activate firmware."""

# SPC-6; LOG, MODE and reservation commands, and what all devices have.
_PRIMARY: Final = (
    Passing(0x00, _RO),  # TEST UNIT READY
    Passing(0x03, _RO, length=_LENGTH_6),  # REQUEST SENSE
    Passing(INQUIRY, _RO, length=(3, 2)),
    Passing(0x15, _SAFE, length=_LENGTH_6),  # MODE SELECT(6)
    Passing(0x16, _SAFE),  # RESERVE(6)
    Passing(0x17, _SAFE),  # RELEASE(6)
    Passing(0x1A, _RO, length=_LENGTH_6),  # MODE SENSE(6)
    Passing(0x1C, _RO, length=(3, 2)),  # RECEIVE DIAGNOSTIC RESULTS
    Passing(0x1D, _SAFE, timeout=_HOURS, length=(3, 2)),  # SEND DIAGNOSTIC
    Passing(0x1E, _SAFE),  # PREVENT ALLOW MEDIUM REMOVAL
    Passing(0x3B, _SAFE, length=(6, 3), actions=_WRITE_BUFFER_DATA),  # WRITE BUFFER
    Passing(0x3C, _RO, length=(6, 3)),  # READ BUFFER(10)
    Passing(0x4C, _SAFE, length=_LENGTH_10),  # LOG SELECT
    Passing(0x4D, _RO, length=_LENGTH_10),  # LOG SENSE
    Passing(0x55, _SAFE, length=_LENGTH_10),  # MODE SELECT(10)
    Passing(0x56, _SAFE),  # RESERVE(10)
    Passing(0x57, _SAFE),  # RELEASE(10)
    Passing(0x5A, _RO, length=_LENGTH_10),  # MODE SENSE(10)
    Passing(0x5E, _RO, length=_LENGTH_10),  # PERSISTENT RESERVE IN
    Passing(0x5F, _SAFE, length=(5, 4)),  # PERSISTENT RESERVE OUT
    Passing(0x83, Level.ALL, timeout=_HOURS, length=_LENGTH_16),  # EXTENDED COPY, WRITE USING TOKEN
    Passing(0x84, _RO, length=_LENGTH_16),  # RECEIVE COPY RESULTS
    Passing(0x8C, _RO, length=_LENGTH_16),  # READ ATTRIBUTE
    Passing(0x8D, _SAFE, length=_LENGTH_16),  # WRITE ATTRIBUTE
    Passing(0x9B, _RO, length=_LENGTH_16),  # READ BUFFER(16)
    Passing(0xA2, _RO),  # SECURITY PROTOCOL IN
    Passing(MAINTENANCE_IN, _RO, length=_LENGTH_12),
    Passing(0xA4, _SAFE, length=_LENGTH_12, actions=_of(0x06)),  # SET IDENTIFYING INFORMATION
    Passing(0xAB, _RO, length=_LENGTH_12),  # SERVICE ACTION IN(12)
)

# SBC-5.
_BLOCK: Final = (
    Passing(0x04, Level.ALL, timeout=_DAY),  # FORMAT UNIT
    Passing(0x08, _RO, blocks=True),  # READ(6)
    Passing(0x0A, _SAFE, blocks=True),  # WRITE(6)
    Passing(0x07, _SAFE, timeout=_LONG),  # REASSIGN BLOCKS
    Passing(0x1B, _SAFE, timeout=_LONG),  # START STOP UNIT
    Passing(0x25, _RO),  # READ CAPACITY(10)
    Passing(0x28, _RO, blocks=True),  # READ(10)
    Passing(0x2A, _SAFE, blocks=True),  # WRITE(10)
    Passing(0x2B, _RO),  # SEEK(10)
    Passing(0x2E, _SAFE, blocks=True),  # WRITE AND VERIFY(10)
    Passing(0x2F, _RO, timeout=_HOURS, blocks=True),  # VERIFY(10)
    Passing(0x34, _RO, blocks=True),  # PRE-FETCH(10)
    Passing(0x35, _RO, timeout=_LONG, blocks=True),  # SYNCHRONIZE CACHE(10)
    Passing(0x37, _RO, length=_LENGTH_10),  # READ DEFECT DATA(10)
    Passing(0x3F, _SAFE, length=_LENGTH_10),  # WRITE LONG(10)
    Passing(0x41, _SAFE, timeout=_HOURS, blocks=True),  # WRITE SAME(10)
    Passing(0x42, _SAFE, timeout=_LONG, blocks=True),  # UNMAP
    Passing(0x48, Level.ALL, timeout=_DAY, length=_LENGTH_10),  # SANITIZE
    Passing(0x88, _RO, blocks=True),  # READ(16)
    Passing(0x89, _SAFE, blocks=True),  # COMPARE AND WRITE
    Passing(0x8A, _SAFE, blocks=True),  # WRITE(16)
    Passing(0x8B, _SAFE, blocks=True),  # ORWRITE(16)
    Passing(0x8E, _SAFE, blocks=True),  # WRITE AND VERIFY(16)
    Passing(0x8F, _RO, timeout=_HOURS, blocks=True),  # VERIFY(16)
    Passing(0x90, _RO, blocks=True),  # PRE-FETCH(16)
    Passing(0x91, _RO, timeout=_LONG, blocks=True),  # SYNCHRONIZE CACHE(16)
    Passing(0x93, _SAFE, timeout=_HOURS, blocks=True),  # WRITE SAME(16)
    Passing(0x9A, _SAFE),  # WRITE STREAM(16)
    Passing(0x9C, _SAFE, blocks=True),  # WRITE ATOMIC(16)
    Passing(0x9E, _RO, length=_LENGTH_16),  # SERVICE ACTION IN(16): READ CAPACITY(16) …
    Passing(0x9F, _SAFE, actions=_of(0x11)),  # WRITE LONG(16)
    Passing(0xA8, _RO, blocks=True),  # READ(12)
    Passing(0xAA, _SAFE, blocks=True),  # WRITE(12)
    Passing(0xAE, _SAFE, blocks=True),  # WRITE AND VERIFY(12)
    Passing(0xAF, _RO, timeout=_HOURS, blocks=True),  # VERIFY(12)
    Passing(0xB7, _RO, length=_LENGTH_12),  # READ DEFECT DATA(12)
    Passing(VARIABLE_LENGTH, _RO, blocks=True, actions=_of(0x09)),  # READ(32)
    # VERIFY(32)
    Passing(VARIABLE_LENGTH, _RO, timeout=_HOURS, blocks=True, actions=_of(0x0A)),
    # WRITE(32), WRITE AND VERIFY(32), ORWRITE(32), WRITE ATOMIC(32)
    Passing(VARIABLE_LENGTH, _SAFE, blocks=True, actions=_of(0x0B, 0x0C, 0x0E, 0x0F)),
    # WRITE SAME(32)
    Passing(VARIABLE_LENGTH, _SAFE, timeout=_HOURS, blocks=True, actions=_of(0x0D)),
)

# ZBC-2: zones of a disk that is recorded in one go.
_ZONED: Final = (
    Passing(0x94, _SAFE, timeout=_LONG),  # ZBC OUT
    Passing(0x95, _RO, length=_LENGTH_16),  # ZBC IN
)

# MMC-6.
_MULTIMEDIA: Final = (
    Passing(0x1B, _SAFE, timeout=_LONG),  # START STOP UNIT
    Passing(0x23, _RO, length=_LENGTH_10),  # READ FORMAT CAPACITIES
    Passing(0x25, _RO),  # READ CAPACITY
    Passing(0x28, _RO, timeout=_LONG, blocks=True),  # READ(10)
    Passing(0x2A, _SAFE, timeout=_LONG, blocks=True),  # WRITE(10)
    Passing(0x2B, _RO),  # SEEK(10)
    Passing(0x2E, _SAFE, timeout=_LONG, blocks=True),  # WRITE AND VERIFY(10)
    Passing(0x2F, _RO, timeout=_HOURS, blocks=True),  # VERIFY(10)
    Passing(0x35, _RO, timeout=_LONG, blocks=True),  # SYNCHRONIZE CACHE
    Passing(0x42, _RO, length=_LENGTH_10),  # READ SUB-CHANNEL
    Passing(0x43, _RO, length=_LENGTH_10),  # READ TOC/PMA/ATIP
    Passing(0x45, _SAFE),  # PLAY AUDIO(10)
    Passing(0x46, _RO, length=_LENGTH_10),  # GET CONFIGURATION
    Passing(0x47, _SAFE),  # PLAY AUDIO MSF
    Passing(0x4A, _RO, length=_LENGTH_10),  # GET EVENT STATUS NOTIFICATION
    Passing(0x4B, _SAFE),  # PAUSE/RESUME
    Passing(0x4E, _SAFE),  # STOP PLAY/SCAN
    Passing(0x51, _RO, length=_LENGTH_10),  # READ DISC INFORMATION
    Passing(0x52, _RO, length=_LENGTH_10),  # READ TRACK INFORMATION
    Passing(0x53, _SAFE),  # RESERVE TRACK
    Passing(0x54, _SAFE, timeout=_LONG),  # SEND OPC INFORMATION
    Passing(0x5B, _SAFE, timeout=_LONG),  # CLOSE TRACK SESSION
    Passing(0x5C, _RO, length=_LENGTH_10),  # READ BUFFER CAPACITY
    Passing(0x5D, _SAFE),  # SEND CUE SHEET
    Passing(0xA1, _SAFE, timeout=_HOURS),  # BLANK
    Passing(0xA3, _SAFE),  # SEND KEY
    Passing(0xA4, _RO),  # REPORT KEY
    Passing(0xA6, _SAFE, timeout=_LONG),  # LOAD/UNLOAD MEDIUM
    Passing(0xA8, _RO, timeout=_LONG, blocks=True),  # READ(12)
    Passing(0xAA, _SAFE, timeout=_LONG, blocks=True),  # WRITE(12)
    Passing(0xAC, _RO),  # GET PERFORMANCE
    Passing(0xAD, _RO),  # READ DISC STRUCTURE
    Passing(0xB6, _SAFE),  # SET STREAMING
    Passing(0xB9, _RO, timeout=_LONG),  # READ CD MSF
    Passing(0xBB, _SAFE),  # SET CD SPEED
    Passing(0xBD, _RO),  # MECHANISM STATUS
    Passing(0xBE, _RO, timeout=_LONG),  # READ CD
    Passing(0xBF, _SAFE),  # SEND DISC STRUCTURE
)

# SSC-5.
_STREAM: Final = (
    Passing(0x01, _RO, timeout=_HOURS),  # REWIND
    Passing(0x05, _RO),  # READ BLOCK LIMITS
    Passing(0x08, _RO, timeout=_LONG, length=_LENGTH_TAPE),  # READ(6)
    Passing(0x0A, _SAFE, timeout=_LONG, length=_LENGTH_TAPE),  # WRITE(6)
    Passing(0x0B, _SAFE, timeout=_LONG),  # SET CAPACITY
    Passing(0x0F, _RO, timeout=_LONG, length=_LENGTH_TAPE),  # READ REVERSE(6)
    Passing(0x10, _SAFE, timeout=_LONG),  # WRITE FILEMARKS(6)
    Passing(0x11, _RO, timeout=_HOURS),  # SPACE(6)
    Passing(0x13, _RO, timeout=_HOURS),  # VERIFY(6)
    Passing(0x14, _RO, timeout=_LONG),  # RECOVER BUFFERED DATA
    Passing(0x19, _SAFE, timeout=_HOURS),  # ERASE(6)
    Passing(0x1B, _SAFE, timeout=_HOURS),  # LOAD UNLOAD
    Passing(0x2B, _RO, timeout=_HOURS),  # LOCATE(10)
    Passing(0x34, _RO, length=_LENGTH_10),  # READ POSITION
    Passing(0x44, _RO, length=_LENGTH_10),  # REPORT DENSITY SUPPORT
    Passing(0x80, _SAFE, timeout=_LONG),  # WRITE FILEMARKS(16)
    Passing(0x81, _RO, timeout=_LONG),  # READ REVERSE(16)
    Passing(0x82, _SAFE),  # ALLOW OVERWRITE
    Passing(0x88, _RO, timeout=_LONG),  # READ(16)
    Passing(0x8A, _SAFE, timeout=_LONG),  # WRITE(16)
    Passing(0x8F, _RO, timeout=_HOURS),  # VERIFY(16)
    Passing(0x91, _RO, timeout=_HOURS),  # SPACE(16)
    Passing(0x92, _RO, timeout=_HOURS),  # LOCATE(16)
    Passing(0x93, _SAFE, timeout=_HOURS),  # ERASE(16)
)

# SMC-3.
_CHANGER: Final = (
    Passing(0x07, _RO, timeout=_HOURS),  # INITIALIZE ELEMENT STATUS
    Passing(0x2B, _SAFE, timeout=_LONG),  # POSITION TO ELEMENT
    Passing(0x37, _RO, timeout=_HOURS),  # INITIALIZE ELEMENT STATUS WITH RANGE
    Passing(0xA5, _SAFE, timeout=_LONG),  # MOVE MEDIUM
    Passing(0xA6, _SAFE, timeout=_LONG),  # EXCHANGE MEDIUM
    Passing(0xB5, _RO),  # REQUEST VOLUME ELEMENT ADDRESS
    Passing(0xB6, _SAFE),  # SEND VOLUME TAG
    Passing(0xB8, _RO, timeout=_LONG),  # READ ELEMENT STATUS
)

_BY_TYPE: Final[Mapping[int, tuple[Passing, ...]]] = MappingProxyType(
    {
        0x00: _BLOCK,
        0x01: _STREAM,
        0x04: _BLOCK,
        MULTIMEDIA: _MULTIMEDIA,
        0x07: _BLOCK,
        0x08: _CHANGER,
        0x0E: _BLOCK,
        0x14: _BLOCK + _ZONED,
    }
)


def passing(device_type: int) -> Mapping[int, tuple[Passing, ...]]:
    """The rows of a PERIPHERAL DEVICE TYPE, by operation code. What its own standard says goes
    before what SPC says."""
    own = _BY_TYPE.get(device_type, ())
    taken = {row.opcode for row in own}
    return _grouped([*own, *(row for row in _PRIMARY if row.opcode not in taken)])


def timeout(device_type: int, cdb: bytes) -> int:
    """Seconds after which a command may be given up, for a PERIPHERAL DEVICE TYPE."""
    rows = passing(device_type).get(cdb[0], ())
    return next((row.timeout for row in rows if row.covers(cdb)), _MINUTE)


def rules(device_type: int) -> dict[int, tuple[int, bool, int, int]]:
    """The same as `_dataplane.Passthrough` takes it."""
    return {
        opcode: (max(row.timeout for row in rows), rows[0].blocks, *rows[0].length)
        for opcode, rows in passing(device_type).items()
    }


def _grouped(rows: Iterable[Passing]) -> Mapping[int, tuple[Passing, ...]]:
    grouped: dict[int, tuple[Passing, ...]] = {}
    for row in rows:
        grouped[row.opcode] = (*grouped.get(row.opcode, ()), row)
    return MappingProxyType(grouped)
