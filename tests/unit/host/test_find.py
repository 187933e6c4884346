"""From names to devices."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vscsi_emu.host.errors import HostError
from vscsi_emu.host.find import find

from .machine import Machine


@pytest.fixture
def two_disks(machine: Machine) -> Machine:
    machine.device("0:0:0:0")
    machine.device("0:0:1:0", sg="sg1", block="sdb", number="8:16", naa="6" + "0f" * 15 + "1")
    return machine


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("0:0:1:0", "0:0:1:0"),
        ("wwn-0x5000c500a1b2c3d4", "0:0:0:0"),
        ("wwn-0x5000C500A1B2C3D4", "0:0:0:0"),
        ("0x60f0f0f0f0f0f0f0f0f0f0f0f0f0f0f1", "0:0:1:0"),
        ("by-id/wwn-0x5000c500a1b2c3d4", "0:0:0:0"),
        ("by-id/scsi-35000c500a1b2c3d4", "0:0:0:0"),
        ("by-id/acme-disk", "0:0:1:0"),
        ("{dev}/disk/by-id/acme-disk", "0:0:1:0"),
        ("{dev}/sg1", "0:0:1:0"),
        ("{dev}/sdb", "0:0:1:0"),
        ("{dev}/bsg/0:0:0:0", "0:0:0:0"),
    ],
)
def test_every_name_leads_there(two_disks: Machine, name: str, address: str) -> None:
    by_id = two_disks.roots.dev / "disk" / "by-id"
    by_id.mkdir(parents=True)
    (by_id / "acme-disk").symlink_to("../../sdb")
    found = find(name.format(dev=two_disks.roots.dev), two_disks.roots)
    assert str(found.address) == address


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("0:0:2:0", "0:0:2:0: no such SCSI device"),
        ("wwn-0x5000c500a1b2c3d5", "no such SCSI device"),
        ("by-id/nothing", "by-id/nothing: no such SCSI device"),
        ("{dev}/sdz", "/sdz: no such SCSI device; see `vscsi-emu devices`"),
        ("{dev}", "is no device node"),
        ("/dev/null", "/dev/null is no SCSI device"),
    ],
)
def test_what_is_not_there_is_named(two_disks: Machine, name: str, complaint: str) -> None:
    with pytest.raises(HostError, match=re.escape(complaint)):
        find(name.format(dev=two_disks.roots.dev), two_disks.roots)


def test_another_node_of_a_device_leads_to_it(two_disks: Machine) -> None:
    """The kernel's numbers count, not the name. Here the disk has those of /dev/null."""
    link_null(two_disks, two_disks.device("3:0:0:0", sg="sg3", block="sdd") / "block" / "sdd")
    assert str(find("/dev/null", two_disks.roots).address) == "3:0:0:0"


def test_a_partition_is_refused(two_disks: Machine) -> None:
    disk = two_disks.device("3:0:0:0", sg="sg3", block="sdd") / "block" / "sdd"
    link_null(two_disks, two_disks.partition(disk, "sdd1", "8:49"))
    with pytest.raises(HostError, match=r"/dev/null is a partition; .* name \S+/sg3"):
        find("/dev/null", two_disks.roots)


def test_what_lies_on_disks_says_on_which(two_disks: Machine) -> None:
    mapped = two_disks.roots.sysfs / "class" / "block" / "dm-0"
    for disk in ("sda", "sdb"):
        (mapped / "slaves" / disk).mkdir(parents=True)
    link_null(two_disks, mapped)
    with pytest.raises(HostError, match="is no SCSI device, it lies on sda, sdb"):
        find("/dev/null", two_disks.roots)


def link_null(machine: Machine, path: Path) -> None:
    """Gives the class device at `path` the numbers of /dev/null."""
    numbers = machine.roots.sysfs / "dev" / "char"
    numbers.mkdir(parents=True)
    (numbers / "1:3").symlink_to(path)


def test_a_machine_without_scsi_is_told_so(machine: Machine) -> None:
    with pytest.raises(HostError, match="this machine has no SCSI devices"):
        find("/dev/sg0", machine.roots)


def test_a_name_with_two_paths_is_refused(two_disks: Machine) -> None:
    two_disks.device("1:0:0:0", sg="sg2", block="sdc")
    with pytest.raises(HostError, match=r"reached on 2 paths: \S+/sg0 \(0:0:0:0\), \S+/sg2 \(1:"):
        find("wwn-0x5000c500a1b2c3d4", two_disks.roots)
