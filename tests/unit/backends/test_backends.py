"""Opening storage, and refusing to."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vscsi_emu.backends import Backend, BackendError, SpecError, backend_class, open_backend
from vscsi_emu.backends.uri import LunSpec, parse_lun


def opened(text: str, name: str = "0:0") -> Backend:
    return open_backend(parse_lun(text)[1], name=name)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    with path.open("wb") as file:
        file.truncate(1 << 20)
    return path


def test_every_scheme_is_found_through_its_entry_point() -> None:
    assert {s: backend_class(s).__name__ for s in ("file", "mem", "null")} == {
        "file": "FileBackend",
        "mem": "MemBackend",
        "null": "NullBackend",
    }


def test_an_image(image: Path) -> None:
    backend = opened(f"{image},block-size=4096")
    assert (backend.engine.size, backend.block_size, backend.blocks) == (1 << 20, 4096, 256)
    backend.flush()
    backend.close()


def test_a_3_tib_image_is_sparse(tmp_path: Path) -> None:
    path = tmp_path / "big.img"
    with path.open("wb") as file:
        file.truncate(3 << 40)
    backend = opened(str(path))
    assert backend.blocks == (3 << 40) // 512
    backend.close()


@pytest.mark.parametrize(
    ("keys", "exponent"),
    [("", 0), (",physical-block-size=4096", 3), (",block-size=4096", 0)],
)
def test_physical_blocks(keys: str, exponent: int) -> None:
    backend = opened(f"mem:1M{keys}")
    assert backend.physical_block_exponent == exponent
    backend.close()


def test_physical_blocks_are_not_smaller_than_logical_ones() -> None:
    with pytest.raises(SpecError, match="physical-block-size 512 is below the block size 4096"):
        opened("mem:1M,physical-block-size=512,block-size=4096")


@pytest.mark.parametrize("scheme", ["mem", "null"])
def test_sized_storage(scheme: str) -> None:
    backend = opened(f"{scheme}:1M,block-size=4096")
    assert (backend.engine.size, backend.blocks) == (1 << 20, 256)
    backend.close()
    with pytest.raises(SpecError, match="1000 bytes are not a multiple of the block size 512"):
        opened(f"{scheme}:1000")
    with pytest.raises(SpecError, match="'much' is not a size"):
        opened(f"{scheme}:much")


# ── Identity ────────────────────────────────────────────────────────────────────────────────────


def test_an_image_keeps_its_name_whatever_path_leads_to_it(image: Path) -> None:
    link = image.parent / "link.img"
    link.symlink_to(image)
    names = []
    for path in (image, link, Path(os.path.relpath(image))):
        backend = opened(f"{path},ro")
        names.append(backend.naa)
        backend.close()
    assert len(set(names)) == 1
    assert names[0][0] == "3"
    assert len(bytes.fromhex(names[0])) == 8


def test_memory_disks_differ_and_are_stable() -> None:
    def name(text: str, at: str) -> str:
        return opened(text, at).naa

    assert name("mem:1M", "0:0") == name("mem:1M", "0:0")
    assert len({name("mem:1M", "0:0"), name("mem:1M", "0:1"), name("null:1M", "0:0")}) == 3


def test_a_given_name_wins() -> None:
    backend = opened("mem:1M,wwn=5000c50015ea71ac,serial=S1")
    assert (backend.naa, backend.serial) == ("5000c50015ea71ac", "S1")


# ── Bad input ───────────────────────────────────────────────────────────────────────────────────


def test_missing_image(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"gone\.img: no such file; make one.*truncate -s 1G"):
        opened(str(tmp_path / "gone.img"))


def test_empty_image(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with pytest.raises(SpecError, match="empty is empty; resize it"):
        opened(str(tmp_path / "empty"))


def test_not_a_multiple_of_the_block_size(image: Path) -> None:
    os.truncate(image, 5120)
    with pytest.raises(SpecError, match="5120 bytes are not a multiple of the block size 4096"):
        opened(f"{image},block-size=4096")


@pytest.mark.parametrize(
    ("path", "kind"), [("/", "a directory"), ("/dev/null", "a character device")]
)
def test_not_a_file(path: str, kind: str) -> None:
    with pytest.raises(BackendError, match=f"is {kind}, not an image file or a block device"):
        opened(path)


def test_a_pipe_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BackendError, match="is a pipe"):
        opened(f"{tmp_path / 'pipe'},ro")


def test_a_file_that_nobody_may_write() -> None:
    """Fails for root too."""
    with pytest.raises(BackendError, match=r"uevent_seqnum.*add ,ro"):
        opened("/sys/kernel/uevent_seqnum")


def test_a_bad_value_of_direct(image: Path) -> None:
    with pytest.raises(SpecError, match="direct: 'maybe' is neither on nor off"):
        opened(f"{image},direct=maybe")


def test_failing_to_open_leaks_nothing(image: Path) -> None:
    before = os.listdir("/proc/self/fd")
    os.truncate(image, 513)
    with pytest.raises(SpecError):
        opened(str(image))
    assert os.listdir("/proc/self/fd") == before


# ── One writer ──────────────────────────────────────────────────────────────────────────────────


def test_two_writers_are_refused(image: Path) -> None:
    first = opened(str(image))
    with pytest.raises(BackendError, match="in use by another logical unit of this server"):
        opened(str(image))
    with pytest.raises(BackendError, match="in use"):
        opened(f"{image},ro")
    first.close()
    del first
    opened(str(image)).close()


def test_two_readers_are_served(image: Path) -> None:
    first, second = opened(f"{image},ro"), opened(f"{image},ro")
    first.close()
    second.close()


def test_the_other_program_is_named(image: Path) -> None:
    hold = (
        "import sys; from vscsi_emu.backends import open_backend; "
        "from vscsi_emu.backends.uri import LunSpec; "
        "b = open_backend(LunSpec('file', sys.argv[1]), name='0:0'); print('held', flush=True); "
        "sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(image)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(BackendError, match=rf"in use by .*\(pid {holder.pid}\)"):
            opened(str(image))
        holder.communicate(timeout=60)
    opened(str(image)).close()


def test_lun_spec_says_what_was_asked_for() -> None:
    assert str(LunSpec("file", "/a b")) == "/a b"
    assert str(LunSpec("mem", "1M")) == "mem:1M"
