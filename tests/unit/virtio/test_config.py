"""The configuration space, byte by byte."""

from __future__ import annotations

import struct

import pytest

from vscsi_emu.virtio import config
from vscsi_emu.virtio.config import ByteOrder, ScsiConfig

SAMPLE = ScsiConfig(
    num_queues=1,
    seg_max=2,
    max_sectors=3,
    cmd_per_lun=4,
    event_info_size=5,
    sense_size=6,
    cdb_size=7,
    max_channel=8,
    max_target=9,
    max_lun=10,
)
SENSE_SIZE, CDB_SIZE = 20, 24


@pytest.mark.normative("scsi.cfg.d6")
def test_little_endian_layout() -> None:
    packed = SAMPLE.pack()
    assert packed == struct.pack("<IIIIIIIHHI", *range(1, 11))
    assert len(packed) == config.SIZE == 36
    assert ScsiConfig.unpack(packed) == SAMPLE


@pytest.mark.normative("scsi.cfg.leg.d1")
def test_legacy_big_endian_layout() -> None:
    packed = SAMPLE.pack(">")
    assert packed == struct.pack(">IIIIIIIHHI", *range(1, 11))
    assert ScsiConfig.unpack(packed, ">") == SAMPLE


@pytest.mark.normative("scsi.cfg.d1", "scsi.cfg.d2", "scsi.cfg.d3", "scsi.cfg.d4", "scsi.cfg.d5")
def test_defaults() -> None:
    fresh = ScsiConfig()
    assert (fresh.sense_size, fresh.cdb_size) == (96, 32)
    assert (fresh.max_channel, fresh.max_target, fresh.max_lun) == (0, 255, 16383)


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_driver_writes_the_two_sizes(order: ByteOrder) -> None:
    fresh = ScsiConfig()
    written = fresh.written(SENSE_SIZE, struct.pack(order + "II", 252, 16), order)
    assert (written.sense_size, written.cdb_size) == (252, 16)
    assert (fresh.sense_size, fresh.cdb_size) == (96, 32)


@pytest.mark.normative("scsi.cfg.d11", "scsi.cfg.d12")
def test_reset_restores_the_sizes_and_nothing_else() -> None:
    written = ScsiConfig(num_queues=7).written(SENSE_SIZE, struct.pack("<II", 20, 260))
    assert written.after_reset() == ScsiConfig(num_queues=7)


def test_writing_back_what_is_there_is_taken() -> None:
    fresh = ScsiConfig()
    assert fresh.written(0, fresh.pack()) == fresh


@pytest.mark.normative("vu.cfg.b4")
@pytest.mark.parametrize("offset", [*range(20), *range(28, 36)])
def test_read_only_bytes(offset: int) -> None:
    fresh = ScsiConfig()
    changed = bytes([fresh.pack()[offset] ^ 0xFF])
    with pytest.raises(ValueError, match=f"byte {offset} is read-only"):
        fresh.written(offset, changed)


@pytest.mark.parametrize(
    ("offset", "value", "says"),
    [
        (SENSE_SIZE, 0, "sense_size 0"),
        (SENSE_SIZE, 17, "sense_size 17"),
        (SENSE_SIZE, 253, "sense_size 253"),
        (CDB_SIZE, 0, "cdb_size 0"),
        (CDB_SIZE, 15, "cdb_size 15"),
        (CDB_SIZE, 261, "cdb_size 261"),
        (CDB_SIZE, 0xFFFFFFFF, "cdb_size 4294967295"),
    ],
)
def test_unusable_sizes(offset: int, value: int, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ScsiConfig().written(offset, struct.pack("<I", value))


@pytest.mark.parametrize(("offset", "length"), [(33, 4), (36, 1), (-1, 1), (0xFFFFFFFF, 4)])
def test_writes_outside(offset: int, length: int) -> None:
    with pytest.raises(ValueError, match="outside"):
        ScsiConfig().written(offset, bytes(length))
