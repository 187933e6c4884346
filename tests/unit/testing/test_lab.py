"""The surroundings of a test, without pytest's fixtures."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest

from vscsi_emu.disk import OperationError
from vscsi_emu.driver.disk import DiskError
from vscsi_emu.driver.host import Change, Kind
from vscsi_emu.testing import Lab


def test_disks_are_what_was_asked_for() -> None:
    with Lab() as lab:
        first = lab.scsi_disk("8M")
        second = lab.scsi_disk(1 << 20, block_size=4096, at="3:2", serial="a,b", ro=True)
        assert (str(first), str(second)) == ("0:0", "3:2")
        guest = lab.builtin_guest()
        assert {at: disk.block_size for at, disk in guest.disks.items()} == {
            first.address: 512,
            second.address: 4096,
        }
        assert (first.size, second.size) == (8 << 20, 1 << 20)
        states = {lun.id: lun for lun in lab.hba.control.hba_query().luns}
        assert (states[second.id].serial, states[second.id].read_only) == ("a,b", True)


def test_guests_see_disks_change_and_go() -> None:
    with Lab("mem:1M") as lab:
        guest = lab.builtin_guest()
        disk = lab.scsi_disk("1M", at="0:1")
        assert guest.next_changes(5.0) == [Change(Kind.ADDED, disk.address)]
        disk.resize("2M")
        assert guest.next_changes(5.0) == [Change(Kind.CHANGED, disk.address)]
        assert guest.disks[disk.address].blocks == 4096
        disk.remove()
        assert guest.next_changes(5.0) == [Change(Kind.REMOVED, disk.address)]


def test_a_disk_that_cannot_be_had_says_why() -> None:
    with Lab() as lab:
        with pytest.raises(OperationError, match="unknown key 'blok-size'"):
            lab.scsi_disk(blok_size=512)
        with pytest.raises(ValueError, match="use 'uml' or 'qemu'"):
            lab.linux_guest("vmware")  # type: ignore[arg-type]


def test_an_image_may_have_commas_in_its_name(tmp_path: Path) -> None:
    image = tmp_path / "a,b.img"
    image.write_bytes(b"here".ljust(4096, b"\0"))
    with Lab() as lab:
        lab.scsi_disk(uri=str(image))
        assert lab.builtin_guest().disks[0, 0].read(0, 1).startswith(b"here")


def test_disks_are_broken_on_purpose() -> None:
    with Lab() as lab:
        disk = lab.scsi_disk("1M", faults=[{"kind": "medium-error", "lba": 7, "blocks": 2}])
        seen = lab.builtin_guest().disks[disk.address]
        assert seen.read(0, 7) == bytes(7 * 512)
        with pytest.raises(DiskError):
            seen.read(6, 4)
        with disk.injected("write-error") as fault:
            with pytest.raises(DiskError):
                seen.write(0, b"x" * 512)
            assert fault.hits == 1
        seen.write(0, b"x" * 512)


def fail() -> None:
    with Lab("3:1=mem:1M,ro") as lab:
        lab.builtin_guest()
        raise AssertionError("it went wrong")


def test_a_failure_carries_what_happened() -> None:
    with pytest.raises(AssertionError, match="it went wrong") as failure:
        fail()
    (note,) = failure.value.__notes__
    assert "3:1 disk-3-1: mem:" in note
    assert "read-only" in note
    assert "session.connected" in note


def test_nothing_stays() -> None:
    threads = threading.active_count()
    with Lab("mem:1M") as lab:
        directory, path = lab.socket.parent, lab.socket
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
        assert list(directory.iterdir()) == [path]
    assert not directory.exists()
    assert threading.active_count() == threads


def test_a_failure_shows_the_last_commands_decoded() -> None:
    with Lab() as lab:
        lab.scsi_disk(size="1M")
        guest = lab.builtin_guest()
        guest.device.execute(0, 0, bytes.fromhex("28000000000700000100"), data_in_length=512)
        assert "0:0 READ(10) lba=7 blocks=1 → GOOD (512 bytes, " in lab.report()
