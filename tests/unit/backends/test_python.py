"""Disks whose bytes a Python class keeps, driven over a real HBA."""

from __future__ import annotations

import errno
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from vscsi_emu import Hba, ScsiError, Storage
from vscsi_emu.backends import BackendError, SpecError, open_backend
from vscsi_emu.backends.uri import parse_uri, with_key
from vscsi_emu.disk import OperationError
from vscsi_emu.driver.disk import Disk, DiskError
from vscsi_emu.scsi.sense import Asc, SenseKey

HERE = f"python:{__name__}:"
SIZE = 4 << 20


class Plain(Storage):
    """Bytes in memory; notes its calls."""

    made: ClassVar[list[Plain]] = []
    size = SIZE

    def __init__(self) -> None:
        self.bytes = bytearray(self.size)
        self.calls: list[str] = []
        self.made.append(self)

    def read(self, offset: int, length: int) -> bytes:
        self.calls.append("read")
        return bytes(self.bytes[offset : offset + length])

    def write(self, offset: int, data: bytes) -> None:
        self.calls.append("write")
        self.bytes[offset : offset + len(data)] = data

    def flush(self) -> None:
        self.calls.append("flush")

    def close(self) -> None:
        self.calls.append("close")


class Thin(Plain):
    block_size = 4096

    def discard(self, offset: int, length: int) -> None:
        self.calls.append("discard")
        self.bytes[offset : offset + length] = bytes(length)


class Failing(Plain):
    """Each block fails in its own way."""

    def read(self, offset: int, length: int) -> bytes:
        match offset // 512:
            case 1:
                raise OSError(errno.EIO, "medium")
            case 2:
                raise ScsiError(SenseKey.NOT_READY, Asc.MEDIUM_NOT_PRESENT)
            case 3:
                raise KeyError("a bug")
            case 4:
                return b"short"
            case 5:
                raise OSError("without a number")
        return super().read(offset, length)

    def write(self, offset: int, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "full")


class Threaded(Plain):
    threads = 4
    barrier = threading.Barrier(4)

    def read(self, offset: int, length: int) -> bytes:
        self.barrier.wait(60)
        return super().read(offset, length)


class Growing(Plain):
    """Up to twice its size at first; does nothing for an odd number of MiB."""

    def resize(self, size: int) -> None:
        if size > 2 * SIZE:
            raise OSError(errno.ENOSPC, "full")
        if size >> 20 & 1:
            return
        self.bytes = self.bytes[:size].ljust(size, b"\0")
        self.size = size


class Odd(Plain):
    size = 1000


class Given(Plain):
    def __init__(self, text: str) -> None:
        if text != "a=b,c":
            raise ValueError(f"not {text}")
        super().__init__()


@pytest.fixture(autouse=True)
def made() -> Iterator[list[Plain]]:
    """The objects that a test's disks are."""
    Plain.made.clear()
    yield Plain.made
    Plain.made.clear()


def failure(disk: Disk, lba: int) -> str:
    with pytest.raises(DiskError) as caught:
        disk.read(lba, 1)
    return str(caught.value)


def test_what_is_written_is_read(made: list[Plain]) -> None:
    source = random.Random(1)
    model = bytearray(SIZE)
    with Hba(f"{HERE}Plain", queues=2) as hba, hba.driver() as guest:
        disk = guest.disks[0, 0]
        assert disk.blocks * disk.block_size == SIZE
        for _ in range(30):
            lba = source.randrange(disk.blocks)
            data = source.randbytes(512 * source.randint(1, min(3000, disk.blocks - lba)))
            disk.write(lba, data)
            model[lba * 512 : lba * 512 + len(data)] = data
        assert disk.read(0, disk.blocks) == model
        assert made[0].bytes == model
        disk.flush()
        assert made[0].calls[-1] == "flush"
    assert made[0].calls[-2:] == ["flush", "close"]
    assert not [thread for thread in threading.enumerate() if "storage" in thread.name]


def test_a_class_that_discards_is_thin(made: list[Plain]) -> None:
    with Hba(f"{HERE}Thin", f"{HERE}Plain") as hba, hba.driver() as guest:
        assert [lun.thin for lun in hba.control.hba_query().luns] == [True, False]
        disk = guest.disks[0, 0]
        assert disk.block_size == 4096
        disk.write(8, b"x" * 8192)
        # WRITE SAME (16) with UNMAP and NDOB of two blocks.
        cdb = bytes([0x93, 0x09, *(8).to_bytes(8), *(2).to_bytes(4), 0, 0])
        result = guest.device.execute(0, 0, cdb)
        assert (result.response, result.status) == (0, 0)
        assert "discard" in made[0].calls
        assert disk.read(8, 2) == bytes(8192)


def test_errors_become_sense(caplog: pytest.LogCaptureFixture) -> None:
    with Hba(f"{HERE}Failing") as hba, hba.driver() as guest:
        disk = guest.disks[0, 0]
        assert disk.read(0, 1) == bytes(512)
        # In fixed format: VALID with the LBA in bytes 3 to 6; ASC and ASCQ in bytes 12 and 13.
        assert "sense f0000300000001" in failure(disk, 1)
        for lba, key, code in ((2, "02", "3a00"), (3, "04", "4400"), (4, "04", "4400")):
            text = failure(disk, lba).partition("sense ")[2]
            assert (text[4:6], text[24:28]) == (key, code), lba
        assert "a bug" in caplog.text
        assert "read gave 5 bytes instead of 512" in caplog.text
        assert "sense f0000300000005" in failure(disk, 5)
        with pytest.raises(DiskError) as caught:
            disk.write(0, bytes(512))
        text = str(caught.value).partition("sense ")[2]
        assert (text[4:6], text[24:28]) == ("07", "2707")


def test_a_class_says_how_many_run_at_a_time() -> None:
    with Hba(f"{HERE}Threaded") as hba, hba.driver() as guest:
        cdb = bytes([0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0])
        while guest.device.execute(0, 0, bytes(6)).status:
            pass
        # Each waits for the other three.
        items = [guest.device.submit(0, 0, cdb, data_in_length=512) for _ in range(4)]
        assert [result.status for result in guest.device.wait_all(items)] == [0] * 4


def test_the_medium_can_be_copied_and_filled(made: list[Plain]) -> None:
    """Work that the data plane does for Python goes through Python, and does not hang."""
    with Hba(f"{HERE}Plain") as hba, hba.driver() as guest:
        guest.disks[0, 0].write(0, b"x" * 512)
        # SANITIZE, overwrite: a pattern of one block.
        pattern = bytes([0x01, 0, 0x02, 0, *b"ab" * 256])
        cdb = bytes([0x48, 0x01, 0, 0, 0, 0, 0, *len(pattern).to_bytes(2), 0])
        result = guest.device.execute(0, 0, cdb, data_out=pattern)
        assert (result.response, result.status) == (0, 0), result.sense.hex()
        assert made[0].bytes == b"ab" * (SIZE // 2)


def test_an_argument_is_given() -> None:
    with Hba(f"{HERE}Given,argument=a=b,,c") as hba:
        assert list(hba.device.luns) == [(0, 0)]


@pytest.mark.parametrize(
    ("location", "argument", "error", "text"),
    [
        ("module", None, SpecError, "write python:MODULE:CLASS"),
        ("no.such.module:X", None, BackendError, "ModuleNotFoundError"),
        ("nowhere.py:X", None, BackendError, "FileNotFoundError"),
        (f"{__name__}:Nothing", None, BackendError, "no class Nothing"),
        (
            f"{__name__}:test_an_argument_is_given",
            None,
            BackendError,
            "no class .* a Storage or a Device",
        ),
        (f"{__name__}:Given", "other", BackendError, "Given: ValueError: not other"),
        (f"{__name__}:Odd", None, SpecError, "let size be a multiple of 512"),
        ("vscsi_emu:Storage", None, BackendError, "needs size"),
    ],
)
def test_what_cannot_be_served_is_said(
    location: str, argument: str | None, error: type[Exception], text: str
) -> None:
    spec = parse_uri(f"python:{location}")
    if argument is not None:
        spec = with_key(spec, "argument", argument)
    with pytest.raises(error, match=text):
        open_backend(spec, name="x")


def test_space_is_the_classs_own_business() -> None:
    spec = with_key(parse_uri(f"{HERE}Thin"), "thin", "1M")
    with pytest.raises(SpecError, match="leave out thin="):
        open_backend(spec, name="x")


def test_unflushed_writes_may_be_lost(made: list[Plain]) -> None:
    with Hba(f"0:0={HERE}Plain,volatile-cache") as hba, hba.driver() as guest:
        disk = guest.disks[0, 0]
        disk.write(0, b"a" * 512)
        disk.flush()
        disk.write(0, b"b" * 512)
        assert made[0].bytes[:512] == b"a" * 512
        seeds = iter(range(64))
        while not hba.control.power_fail(seed=next(seeds)).luns[0].lost:
            disk.write(0, b"b" * 512)
            disk.flush()
            disk.write(0, b"a" * 512)
        assert disk.read(0, 1) == bytes(made[0].bytes[:512])


def test_a_file_is_loaded_once(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(f"from {__name__} import Plain as Base\nclass Mine(Base): pass\n")
    with Hba(f"python:{file}:Mine", f"python:{file}:Mine"):
        first, second = Plain.made
        assert type(first) is type(second)


def test_a_file_that_fails_is_tried_again(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("1 / 0")
    spec = parse_uri(f"python:{file}:Mine")
    for _ in range(2):
        with pytest.raises(BackendError, match="ZeroDivisionError"):
            open_backend(spec, name="x")


def test_disks_come_and_go_while_it_runs(made: list[Plain]) -> None:
    with Hba() as hba:
        for _ in range(3):
            hba.control.lun_add(luns=[f"0:1={HERE}Plain"])
            hba.control.lun_remove(lun=["0:1"])
        assert [storage.calls[-1] for storage in made] == ["close"] * 3
        with pytest.raises(OperationError, match="no class Nothing"):
            hba.control.lun_add(luns=[f"0:1={HERE}Nothing"])


@pytest.mark.parametrize("options", ["", ",volatile-cache"])
def test_a_class_that_resizes_has_another_size(made: list[Plain], options: str) -> None:
    with Hba(f"0:0={HERE}Growing{options}") as hba, hba.driver() as guest:
        guest.disks[0, 0].write(0, b"a" * SIZE)
        for size, kept in ((2 * SIZE, SIZE), (SIZE // 2, SIZE // 2), (SIZE, SIZE // 2)):
            state = hba.control.lun_resize(lun="0:0", size=size)
            assert state.size == made[0].size == size
            disk = guest.disks[0, 0]
            disk.refresh()
            assert disk.blocks * disk.block_size == size
            assert disk.read(0, disk.blocks) == (b"a" * kept).ljust(size, b"\0")


def test_a_size_that_cannot_be_is_said(made: list[Plain]) -> None:
    with Hba(f"0:0={HERE}Growing", f"0:1={HERE}Plain") as hba, hba.driver() as guest:
        for lun, size, text in (
            ("0:0", 4 * SIZE, "OSError: .* full"),
            ("0:0", 5 << 20, f"left size at {SIZE}, not {5 << 20}"),
            ("0:1", 2 * SIZE, "its class has no resize method"),
        ):
            with pytest.raises(OperationError, match=text) as caught:
                hba.control.lun_resize(lun=lun, size=size)
            assert caught.value.parameter == "lun"
        assert {lun.size for lun in hba.control.hba_query().luns} == {SIZE}
        disk = guest.disks[0, 0]
        disk.write(disk.blocks - 1, b"z" * 512)
        assert made[0].bytes[-512:] == b"z" * 512
