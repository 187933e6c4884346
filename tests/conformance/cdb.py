"""CDBs (SPC-6, SBC-5) and a disk as the tests use it."""

import struct
from dataclasses import dataclass

from vscsi_emu.driver.request import Result
from vscsi_emu.driver.scan import retried, sense_key
from vscsi_emu.driver.virtio_scsi import REQUEST_QUEUE, VirtioScsi

GOOD = 0x00
CHECK_CONDITION = 0x02
ILLEGAL_REQUEST = 0x05
UNIT_ATTENTION = 0x06
DATA_PROTECT = 0x07


def test_unit_ready() -> bytes:
    return bytes(6)


test_unit_ready.__test__ = False  # type: ignore[attr-defined]


def inquiry(length: int, page: int | None = None) -> bytes:
    return struct.pack(">BBBHB", 0x12, int(page is not None), page or 0, length, 0)


def report_luns(length: int) -> bytes:
    return struct.pack(">B5xIxB", 0xA0, length, 0)


def read_capacity_16(length: int) -> bytes:
    return struct.pack(">BBQIBB", 0x9E, 0x10, 0, length, 0, 0)


def read_6(lba: int, blocks: int) -> bytes:
    return struct.pack(">IBB", 0x08 << 24 | lba, blocks & 0xFF, 0)


def write_6(lba: int, blocks: int) -> bytes:
    return struct.pack(">IBB", 0x0A << 24 | lba, blocks & 0xFF, 0)


def read_10(lba: int, blocks: int, *, flags: int = 0) -> bytes:
    return struct.pack(">BBIBHB", 0x28, flags, lba, 0, blocks, 0)


def write_10(lba: int, blocks: int, *, flags: int = 0) -> bytes:
    return struct.pack(">BBIBHB", 0x2A, flags, lba, 0, blocks, 0)


def read_12(lba: int, blocks: int) -> bytes:
    return struct.pack(">BBIIBB", 0xA8, 0, lba, blocks, 0, 0)


def write_12(lba: int, blocks: int) -> bytes:
    return struct.pack(">BBIIBB", 0xAA, 0, lba, blocks, 0, 0)


def read_16(lba: int, blocks: int, *, flags: int = 0) -> bytes:
    return struct.pack(">BBQIBB", 0x88, flags, lba, blocks, 0, 0)


def write_16(lba: int, blocks: int, *, flags: int = 0) -> bytes:
    return struct.pack(">BBQIBB", 0x8A, flags, lba, blocks, 0, 0)


def cdb_32(action: int, lba: int, blocks: int, *, flags: int = 0, tags: int = 0) -> bytes:
    """A variable-length CDB of SBC with this service action."""
    head = struct.pack(">BB4xBBH", 0x7F, 0, 0, 0x18, action)
    return head + struct.pack(">BxQQI", flags, lba, tags, blocks)


def verify_10(lba: int, blocks: int) -> bytes:
    return struct.pack(">BBIBHB", 0x2F, 0, lba, 0, blocks, 0)


def synchronize_cache_10() -> bytes:
    return struct.pack(">BBIBHB", 0x35, 0, 0, 0, 0, 0)


def unmap(length: int) -> bytes:
    return struct.pack(">BB4xBHB", 0x42, 0, 0, length, 0)


def mode_sense_10(length: int) -> bytes:
    return struct.pack(">BBBB3xHB", 0x5A, 8, 0x3F, 0, length, 0)


@dataclass(frozen=True, slots=True)
class Disk:
    """A unit of a server under test, past its power-on unit attention."""

    device: VirtioScsi
    target: int
    lun: int
    block: int = 512

    def ready(self) -> "Disk":
        result = retried(self.device, self.target, self.lun, test_unit_ready(), 0)
        assert (result.response, result.status) == (0, GOOD)
        return self

    def run(
        self,
        cdb: bytes,
        *,
        data_out: bytes = b"",
        data_in_length: int = 0,
        queue: int = REQUEST_QUEUE,
    ) -> Result:
        return self.device.execute(
            self.target,
            self.lun,
            cdb,
            data_out=data_out,
            data_in_length=data_in_length,
            queue=queue,
        )

    def write(self, lba: int, data: bytes, *, queue: int = REQUEST_QUEUE) -> None:
        expect_good(self.run(write_16(lba, len(data) // self.block), data_out=data, queue=queue))

    def read(self, lba: int, blocks: int, *, queue: int = REQUEST_QUEUE) -> bytes:
        length = blocks * self.block
        result = self.run(read_16(lba, blocks), data_in_length=length, queue=queue)
        expect_good(result)
        assert len(result.data) == length
        return result.data


def expect_good(result: Result, *, residual: int = 0) -> None:
    assert (result.response, result.status, result.sense) == (0, GOOD, b"")
    assert result.residual == residual


def expect_sense(result: Result, key: int, asc: int) -> None:
    """CHECK CONDITION with this key and additional sense code (asc << 8 | ascq)."""
    assert (result.response, result.status) == (0, CHECK_CONDITION)
    assert sense_key(result.sense) == key
    assert result.sense[12] << 8 | result.sense[13] == asc


def pattern(length: int, seed: int = 1) -> bytes:
    """Bytes that repeat with a prime period, so that a shifted copy differs."""
    period = bytes((i * 7 + seed) % 251 for i in range(251))
    return (period * (length // 251 + 1))[:length]
