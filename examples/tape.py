"""A tape drive (SSC), in memory: records of any length, and filemarks.

vscsi-emu serve --socket-path hba.sock --lun python:examples/tape.py:Tape,argument=64M

A Linux guest loads `st`, and then `tar -cf /dev/st0 …`, `mt -f /dev/nst0 …` work.
"""

import struct

from vscsi_emu import Device, ScsiError
from vscsi_emu.backends.uri import parse_size
from vscsi_emu.scsi.cdb import Allowed, Field, bit
from vscsi_emu.scsi.device import device_command
from vscsi_emu.scsi.peripheral import Peripheral
from vscsi_emu.scsi.request import Request
from vscsi_emu.scsi.sense import DataOutTooShort, SenseKey, invalid_field_in_cdb

LONGEST = 1 << 20
FILEMARK_DETECTED, END_OF_MEDIUM, BEGINNING_OF_MEDIUM, END_OF_DATA = 0x0001, 0x0002, 0x0004, 0x0005
FILEMARK, EOM, ILI = 0x80, 0x40, 0x20
BLOCKS, FILEMARKS, TO_END = 0, 1, 3
_LENGTH = Field(2, 3)
_FIXED = bit(1, 0)
_IMMED = bit(1, 0)


class TapeSense(ScsiError):
    """With the bits that only sequential devices have; `left`: of what was asked for."""

    def __init__(
        self, key: SenseKey, code: int, flags: int = 0, *, left: int = 0, data: bytes = b""
    ) -> None:
        super().__init__(key, code, information=left & 0xFFFF_FFFF, data=data)
        self.flags = flags

    def sense(self, *, descriptor: bool) -> bytes:
        fixed = bytearray(super().sense(descriptor=False))
        fixed[2] |= self.flags
        return bytes(fixed)


class Tape(Device):
    peripheral, product, removable = Peripheral.SEQUENTIAL_ACCESS, "Virtual tape", True

    def __init__(self, capacity: str = "256M") -> None:
        self.capacity = parse_size(capacity)
        self.marks: list[bytes | None] = []
        """Records, and None for a filemark."""
        self.at = 0

    def reset(self) -> None:
        self.at = 0

    # ── Data ───────────────────────────────────────────────────────────────────────────────────

    @device_command("READ(6)", 0x08, 6, sili=bit(1, 1), fixed=_FIXED, transfer_length=_LENGTH)
    def read(self, request: Request) -> bytes:
        length = self._variable(request)
        if not length:
            return b""
        if self.at == len(self.marks):
            raise TapeSense(SenseKey.BLANK_CHECK, END_OF_DATA, left=length)
        record = self.marks[self.at]
        self.at += 1
        if record is None:
            raise TapeSense(SenseKey.NO_SENSE, FILEMARK_DETECTED, FILEMARK, left=length)
        data, left = record[:length], length - len(record)
        if left and not request.cdb["sili"]:
            raise TapeSense(SenseKey.NO_SENSE, 0, ILI, left=left, data=data)
        return data

    @device_command("WRITE(6)", 0x0A, 6, fixed=_FIXED, transfer_length=_LENGTH)
    def write(self, request: Request) -> bytes:
        length = self._variable(request)
        data = request.data_out[:length]
        if len(data) < length:
            raise DataOutTooShort(f"TRANSFER LENGTH {length}, data-out {len(data)} bytes")
        if length:
            self._append(data, left=length)
        return b""

    @device_command("WRITE FILEMARKS(6)", 0x10, 6, immed=_IMMED, count=_LENGTH)
    def write_filemarks(self, request: Request) -> bytes:
        for left in range(request.cdb["count"], 0, -1):
            self._append(None, left=left)
        return b""

    @device_command("ERASE(6)", 0x19, 6, immed=bit(1, 1), long=bit(1, 0))
    def erase(self, request: Request) -> bytes:
        del self.marks[self.at :]
        return b""

    def _append(self, mark: bytes | None, *, left: int) -> None:
        """What was behind it is gone, as on a tape."""
        del self.marks[self.at :]
        used = sum(len(record or b"") for record in self.marks)
        if used + len(mark or b"") > self.capacity or len(self.marks) > LONGEST:
            raise TapeSense(SenseKey.VOLUME_OVERFLOW, END_OF_MEDIUM, EOM, left=left)
        self.marks.append(mark)
        self.at += 1

    def _variable(self, request: Request) -> int:
        """Blocks of a fixed length are never set, so no command may be about them."""
        if request.cdb["fixed"]:
            raise invalid_field_in_cdb(1, 0)
        if request.cdb["transfer_length"] > LONGEST:
            raise invalid_field_in_cdb(2, 7)
        return request.cdb["transfer_length"]

    # ── Position ───────────────────────────────────────────────────────────────────────────────

    @device_command("REWIND", 0x01, 6, immed=_IMMED)
    def rewind(self, request: Request) -> bytes:
        self.at = 0
        return b""

    @device_command("LOAD UNLOAD", 0x1B, 6, immed=_IMMED, reten=bit(4, 1), load=bit(4, 0))
    def load_unload(self, request: Request) -> bytes:
        """It never leaves the drive."""
        self.at = 0
        return b""

    @device_command("SPACE(6)", 0x11, 6, code=Field(1, high=3), count=_LENGTH)
    def space(self, request: Request) -> bytes:
        code, count = request.cdb["code"], request.cdb["count"]
        if code == TO_END:
            self.at = len(self.marks)
            return b""
        if code not in (BLOCKS, FILEMARKS):
            raise invalid_field_in_cdb(1, 3)
        count -= (count & 0x80_0000) << 1  # 24 bits, signed
        step, left = (1 if count > 0 else -1), abs(count)
        while left:
            mark = self._pass(step, left)
            if (mark is None) == (code == FILEMARKS):
                left -= 1
            elif mark is None:
                raise TapeSense(SenseKey.NO_SENSE, FILEMARK_DETECTED, FILEMARK, left=left)
        return b""

    def _pass(self, step: int, left: int) -> bytes | None:
        """The record or filemark that is passed on the way."""
        if step > 0 and self.at == len(self.marks):
            raise TapeSense(SenseKey.BLANK_CHECK, END_OF_DATA, left=left)
        if step < 0 and self.at == 0:
            raise TapeSense(SenseKey.NO_SENSE, BEGINNING_OF_MEDIUM, EOM, left=left)
        passed = self.marks[self.at if step > 0 else self.at - 1]
        self.at += step
        return passed

    @device_command(
        "READ POSITION",
        0x34,
        10,
        service_action_field=Field(1, high=4),
        extended=Field(7, 2, ignored=True),
    )
    def read_position(self, request: Request) -> bytes:
        if request.cdb["service_action_field"]:
            raise invalid_field_in_cdb(1, 4)
        beginning = 0x80 if self.at == 0 else 0
        return struct.pack(">B3xII8x", beginning, self.at, self.at)

    # ── What it is like ────────────────────────────────────────────────────────────────────────

    @device_command("READ BLOCK LIMITS", 0x05, 6)
    def read_block_limits(self, request: Request) -> bytes:
        return struct.pack(">IH", LONGEST, 1)

    @device_command(
        "MODE SENSE(6)",
        0x1A,
        6,
        allowed=Allowed.WRITE_EXCLUSIVE,
        dbd=bit(1, 3),
        page_control=Field(2, high=7, low=6),
        page_code=Field(2, high=5),
        subpage_code=Field(3),
        allocation_length=Field(4),
    )
    def mode_sense(self, request: Request) -> bytes:
        """Buffered mode, one block descriptor of variable length, no pages."""
        if request.cdb["page_code"] not in (0x00, 0x3F):
            raise invalid_field_in_cdb(2, 5)
        descriptor = b"" if request.cdb["dbd"] else bytes(8)
        return bytes([3 + len(descriptor), 0, 0x10, len(descriptor)]) + descriptor

    @device_command("MODE SELECT(6)", 0x15, 6, pf=bit(1, 4), parameter_list_length=Field(4))
    def mode_select(self, request: Request) -> bytes:
        """Only what is there already can be asked for: blocks of variable length."""
        data = request.parameter_list()
        if len(data) > 4 and any(data[9:12]):
            raise ScsiError(SenseKey.ILLEGAL_REQUEST, 0x2600, field=9, in_cdb=False)
        return b""
