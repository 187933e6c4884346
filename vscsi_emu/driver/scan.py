"""Finding the logical units behind a device, as a SCSI midlayer does (SPC-6)."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from vscsi_emu.driver.host_byte import HostByte
from vscsi_emu.driver.request import Result
from vscsi_emu.driver.virtio_scsi import VirtioScsi

CHECK_CONDITION = 0x02
UNIT_ATTENTION = 0x06
INQUIRY_LENGTH = 36
REPORT_LUNS_LENGTH = 4096
_ATTENTIONS = 8
"""Unit attentions taken from a unit before it counts as dead; each is reported once."""


class ScanError(RuntimeError):
    """A unit that is there answers in a way that no unit may."""


@dataclass(frozen=True, slots=True)
class Found:
    """A logical unit and what its standard INQUIRY data say. `device_type` as in SPC-6."""

    target: int
    lun: int
    device_type: int
    vendor: str
    product: str
    revision: str


def scan(device: VirtioScsi, targets: range | None = None) -> Iterator[Found]:
    """All logical units of these targets (None: 0 to max_target), by target and LUN."""
    for target in range(device.config.max_target + 1) if targets is None else targets:
        for lun in report_luns(device, target):
            found = inquire(device, target, lun)
            if found is not None:
                yield found


def report_luns(device: VirtioScsi, target: int) -> list[int]:
    """LUNs of a target, by REPORT LUNS to its LUN 0; none for a target that is absent."""
    cdb = struct.pack(">B5xIxB", 0xA0, REPORT_LUNS_LENGTH, 0)
    result = retried(device, target, 0, cdb, REPORT_LUNS_LENGTH)
    if result.host_byte is HostByte.BAD_TARGET:
        return []
    _expect_good(result, f"REPORT LUNS to target {target}")
    (length,) = struct.unpack_from(">I", result.data)
    entries = result.data[8 : 8 + length]
    return sorted(decode_reported(entries[i : i + 8]) for i in range(0, len(entries), 8))


def decode_reported(field: bytes) -> int:
    """A single-level LUN from a REPORT LUNS entry: peripheral or flat addressing (SAM-6)."""
    level, rest = struct.unpack(">H6s", field)
    method = level >> 14
    if any(rest) or method > 1 or (method == 0 and level > 0xFF):
        raise ScanError(f"LUN {field.hex()} is not a single-level one")
    return int(level & 0x3FFF)


def inquire(device: VirtioScsi, target: int, lun: int) -> Found | None:
    """Standard INQUIRY data; None where no unit is (peripheral qualifier 011b)."""
    cdb = struct.pack(">BBBHB", 0x12, 0, 0, INQUIRY_LENGTH, 0)
    result = retried(device, target, lun, cdb, INQUIRY_LENGTH)
    if result.host_byte is HostByte.BAD_TARGET:
        return None
    _expect_good(result, f"INQUIRY to {target}:{lun}")
    if len(result.data) < INQUIRY_LENGTH:
        raise ScanError(f"{target}:{lun} gave {len(result.data)} bytes of INQUIRY data")
    if result.data[0] >> 5 == 0b011:
        return None
    vendor, product, revision = (
        result.data[start:end].decode("ascii", "replace").rstrip()
        for start, end in ((8, 16), (16, 32), (32, 36))
    )
    return Found(target, lun, result.data[0] & 0x1F, vendor, product, revision)


def retried(device: VirtioScsi, target: int, lun: int, cdb: bytes, length: int) -> Result:
    """A read-type command, repeated past the unit attentions that wait for its initiator."""
    for _ in range(_ATTENTIONS):
        result = device.execute(target, lun, cdb, data_in_length=length)
        if result.status != CHECK_CONDITION or sense_key(result.sense) != UNIT_ATTENTION:
            return result
    raise ScanError(f"{target}:{lun} reports nothing but unit attentions")


def sense_key(sense: bytes) -> int:
    """The sense key of fixed (70h, 71h) or descriptor (72h, 73h) format sense data, SPC-6."""
    if len(sense) < 3:
        return 0
    return sense[1 if sense[0] & 0x7F in (0x72, 0x73) else 2] & 0xF


def _expect_good(result: Result, what: str) -> None:
    if result.host_byte is not HostByte.OK or result.status:
        raise ScanError(
            f"{what}: response {result.response}, status {result.status:#04x}, "
            f"sense {result.sense.hex() or 'none'}"
        )
