"""Which way, and what is missing for it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from vscsi_emu.host.access import access, has_raw_io, missing_right
from vscsi_emu.host.devices import ScsiDevice, devices
from vscsi_emu.host.way import way

from .machine import Machine

DISK_GROUP = 6


def status(mode: int, gid: int) -> os.stat_result:
    return os.stat_result((mode, 0, 0, 1, 0, gid, 0, 0, 0, 0))


@pytest.fixture
def disk(machine: Machine) -> ScsiDevice:
    machine.device("0:0:0:0")
    return devices(machine.roots)[0]


def forbid(monkeypatch: pytest.MonkeyPatch, *nodes: Path | None) -> None:
    for module in ("way", "access"):
        monkeypatch.setattr(f"vscsi_emu.host.{module}.permitted", lambda node: node not in nodes)


def test_blocks_before_sg_before_bsg(disk: ScsiDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    ways = []
    for forbidden in ((), (disk.block,), (disk.block, disk.sg)):
        forbid(monkeypatch, *forbidden)
        ways.append(way(disk))
    assert [found and found.interface for found in ways] == ["block", "sg", "bsg"]
    assert [found and found.node for found in ways] == [disk.block, disk.sg, disk.bsg]
    assert ways[1]
    assert ways[1].reason.startswith(f"{disk.block} may not be used; asynchronous")


def test_without_rights_it_is_the_best_that_rights_would_give(
    disk: ScsiDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid(monkeypatch, *disk.nodes)
    found = way(disk)
    assert found
    assert found.node == disk.block


def test_a_tape_goes_through_sg(machine: Machine) -> None:
    machine.device("0:0:0:0", type=1, block=None)
    found = way(devices(machine.roots)[0])
    assert found
    assert (found.interface, found.reason.split(";")[0]) == ("sg", "no block node (tape)")


def test_no_node_no_way(machine: Machine) -> None:
    path = machine.device("0:0:0:0", sg=None, block=None)
    (path / "bsg" / "0:0:0:0" / "uevent").unlink()
    assert way(devices(machine.roots)[0]) is None


@pytest.mark.parametrize(
    ("effective", "there"), [("0000000000020000", True), ("000001fffffdffff", False)]
)
def test_raw_io_is_read_from_the_effective_set(
    machine: Machine, effective: str, there: bool
) -> None:
    text = f"Name:\tx\nCapPrm:\t000001ffffffffff\nCapEff:\t{effective}"
    machine.write(machine.roots.proc / "self", status=text)
    assert has_raw_io(machine.roots) == there


def test_all_rights(machine: Machine, disk: ScsiDevice) -> None:
    machine.write(machine.roots.proc / "self", status="CapEff:\tffffffffffffffff")
    assert disk.block
    assert access(disk, disk.block).missing == ()
    assert access(disk, disk.block).granted


def test_a_missing_node_and_a_missing_capability_are_both_named(disk: ScsiDevice) -> None:
    assert disk.sg
    disk.sg.unlink()
    found = access(disk, disk.sg)
    assert (found.granted, found.raw_io) == (False, False)
    assert [missing.split(":")[0] for missing in found.missing] == [
        f"node {disk.sg}",
        "CAP_SYS_RAWIO",
    ]
    assert "it is not here; a container must be given it" in found.missing[0]


@pytest.mark.parametrize(
    ("mode", "gid", "name", "fix"),
    [
        (0o660, DISK_GROUP, "group disk: ", "usermod -aG disk USER"),
        (0o640, DISK_GROUP, "a udev rule: ", 'GROUP="disk", MODE="0660"'),
        (0o600, 0, "a udev rule: ", 'ATTRS{wwid}=="naa.5000c500a1b2c3d4"'),
        (0o660, 0, "a udev rule: ", 'SUBSYSTEM=="scsi_generic"'),
        (0o660, 54321, "group 54321: ", "usermod -aG 54321 USER"),
    ],
)
def test_the_right_that_is_missing(
    disk: ScsiDevice, mode: int, gid: int, name: str, fix: str
) -> None:
    assert disk.sg
    text = missing_right(disk, disk.sg, status(stat.S_IFCHR | mode, gid))
    assert text.startswith(name)
    assert fix in text


def test_a_device_without_a_name_gets_a_rule_for_its_node(machine: Machine) -> None:
    machine.device("0:0:0:0", naa=None)
    (device,) = devices(machine.roots)
    assert device.block
    text = missing_right(device, device.block, status(stat.S_IFBLK | 0o600, 0))
    assert 'SUBSYSTEM=="block", ENV{DEVTYPE}=="disk", KERNEL=="sda"' in text
