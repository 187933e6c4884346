"""Who uses a device."""

from __future__ import annotations

from pathlib import Path

import pytest

from vscsi_emu.host.devices import devices
from vscsi_emu.host.use import Use, use

from .machine import Machine

MOUNT = "36 35 {number} / {at} rw,noatime shared:1 - {kind} {source} rw\n"


@pytest.fixture
def disk(machine: Machine) -> Path:
    """Directory in sysfs of the one disk, sda, with partition sda1."""
    path = machine.device("0:0:0:0") / "block" / "sda"
    machine.partition(path, "sda1", "8:1")
    return path


def used(machine: Machine) -> Use:
    return use(devices(machine.roots)[0])


def mount(machine: Machine, number: str, at: str, source: str = "none", process: str = "1") -> None:
    line = MOUNT.format(number=number, at=at, kind="ext4", source=source)
    machine.write(machine.roots.proc / process, mountinfo=line.rstrip())


def test_nobody(machine: Machine, disk: Path) -> None:
    mount(machine, "8:16", "/elsewhere", "/dev/sdb")
    machine.write(machine.roots.proc, swaps="Filename Type Size\n/dev/sdb2 partition 1 0 -2")
    assert used(machine) == Use()
    assert not used(machine).taken
    assert str(used(machine)) == ""


def test_a_mount_of_the_disk_or_its_partition(machine: Machine, disk: Path) -> None:
    mount(machine, "8:0", "/ganze\\040Größe", process="self")
    mount(machine, "8:1", "/first", process="1")
    assert used(machine).mounts == ("/ganze Größe", "/first")
    assert used(machine).taken


def test_a_mount_seen_twice_counts_once(machine: Machine, disk: Path) -> None:
    for process in ("self", "1"):
        mount(machine, "8:1", "/first", process=process)
    assert used(machine).mounts == ("/first",)


def test_a_mount_that_names_one_device_of_several(machine: Machine, disk: Path) -> None:
    mount(machine, "0:44", "/pool", str(machine.roots.dev / "sda1"))
    assert used(machine).mounts == ("/pool",)


def test_holders_and_what_is_mounted_on_them(machine: Machine, disk: Path) -> None:
    raid = machine.holder(disk / "sda1", "md0", "9:0")
    machine.holder(raid, "dm-3", "253:3")
    mount(machine, "253:3", "/data")
    assert used(machine).holders == ("dm-3", "md0")
    assert str(used(machine)) == "mounted on /data, held by dm-3, held by md0"


def test_swap(machine: Machine, disk: Path) -> None:
    swap = machine.roots.dev / "sda1"
    machine.write(machine.roots.proc, swaps=f"Filename Type Size\n{swap} partition 1 0 -2")
    assert used(machine).swaps == (str(swap),)
    assert used(machine).taken


def test_processes_take_nothing(machine: Machine, disk: Path) -> None:
    machine.process(41, "smartd", machine.roots.dev / "sg0")
    machine.process(7, "dd", machine.roots.dev / "null", machine.roots.dev / "sda1")
    machine.process(9, "sh", machine.roots.dev / "null")
    assert used(machine).processes == ("dd (pid 7)", "smartd (pid 41)")
    assert not used(machine).taken


def test_a_node_that_may_not_be_opened_is_unknown(machine: Machine, disk: Path) -> None:
    (machine.roots.dev / "sda").unlink()
    assert used(machine).exclusive is None
    assert not used(machine).taken
