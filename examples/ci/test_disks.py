"""Tests of a project that uses the fixtures of vscsi-emu's pytest plugin."""

import pytest


@pytest.mark.parametrize("block_size", [512, 4096])
def test_what_was_written_is_read(scsi_disk, builtin_guest, block_size):
    disk = scsi_disk(size="8M", block_size=block_size)
    found = builtin_guest().disks[disk.address]
    data = bytes(range(256)) * (block_size // 256)
    found.write(found.blocks - 1, data)
    found.flush()
    assert found.read(found.blocks - 1, 1) == data


def test_a_disk_that_grows_is_noticed(scsi_disk, builtin_guest):
    disk = scsi_disk(size="1M")
    guest = builtin_guest()
    disk.resize("2M")
    (change,) = guest.next_changes(timeout=5)
    assert change.address == disk.address
    assert guest.disks[disk.address].blocks * 512 == 2 << 20


@pytest.mark.parametrize("kind", ["uml"])
def test_linux_makes_a_file_system(scsi_disk, linux_guest, kind):
    disk = scsi_disk(size="64M", block_size=4096)
    script = f"mkfs.ext4 -q $(disk {disk}) && e2fsck -fn $(disk {disk})"
    linux_guest(kind).run(script, timeout=60).check()
