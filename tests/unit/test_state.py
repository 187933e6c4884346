"""The state file: old or new, never half of it, and never a surprise."""

import asyncio
import json
import os
from pathlib import Path

import pytest

from vscsi_emu.state import StateError, StateFile


def save(path: Path, section: str, value: object) -> None:
    asyncio.run(StateFile(str(path)).save(section, value))


def test_sections_are_kept_apart(tmp_path: Path) -> None:
    path = tmp_path / "unit.state"
    save(path, "one", [1, None, "x"])
    save(path, "two", {"a": 2})
    kept = StateFile(str(path))
    assert kept.load("one") == [1, None, "x"]
    assert kept.load("two") == {"a": 2}
    assert kept.load("three") is None


def test_the_file_is_there_while_there_is_something_to_keep(tmp_path: Path) -> None:
    path = tmp_path / "unit.state"
    StateFile(str(path))
    assert not path.exists()
    save(path, "one", 1)
    save(path, "two", 2)
    save(path, "one", None)
    assert StateFile(str(path)).load("two") == 2
    save(path, "two", None)
    assert os.listdir(tmp_path) == []


def test_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save(Path("here"), "one", 1)
    assert StateFile("here").load("one") == 1


def test_concurrent_saves_lose_nothing(tmp_path: Path) -> None:
    async def both(file: StateFile) -> None:
        await asyncio.gather(*(file.save(str(n), n) for n in range(20)))

    path = tmp_path / "unit.state"
    asyncio.run(both(StateFile(str(path))))
    kept = StateFile(str(path))
    assert [kept.load(str(n)) for n in range(20)] == list(range(20))


def test_a_write_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "unit.state"
    file = StateFile(str(path))
    asyncio.run(file.save("one", 1))
    before = path.read_bytes()

    def full(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        asyncio.run(file.save("one", 2))
    assert path.read_bytes() == before
    assert file.load("one") == 1


def test_data_is_durable_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(fd: int) -> None:
        order.append(os.readlink(f"/proc/self/fd/{fd}"))
        real_fsync(fd)

    def replace(old: str, new: str) -> None:
        order.append("replace")
        real_replace(old, new)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    path = tmp_path / "unit.state"
    save(path, "one", 1)
    assert order == [f"{path}.new", "replace", str(tmp_path)]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\xff\x00", "is no state file"),
        (b"{", "is no state file"),
        (b"[]", "another version"),
        (b'{"format": 99, "sections": {}}', "another version"),
        (b'{"format": 1, "sections": []}', "is damaged"),
        (b'"' + b"a" * (2 << 20) + b'"', "is no state file"),
    ],
)
def test_a_file_that_is_not_ours(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "unit.state"
    path.write_bytes(content)
    with pytest.raises(StateError, match=f"unit.state {says}|unit.state.*{says}") as error:
        StateFile(str(path))
    assert "state=" in str(error.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="Is a directory; name another"):
        StateFile(str(tmp_path))


def test_the_form_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "unit.state"
    save(path, "one", 1)
    assert json.loads(path.read_text()) == {"format": 1, "sections": {"one": 1}}
