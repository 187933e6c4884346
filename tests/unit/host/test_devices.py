"""Devices as sysfs shows them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vscsi_emu.host.devices import Address, at, devices

from .machine import Machine


def test_a_machine_without_scsi_has_none(machine: Machine) -> None:
    assert devices(machine.roots) == []


def test_a_disk(machine: Machine) -> None:
    machine.device("2:0:3:4", block="sdb", sectors=4096, queue={"logical_block_size": 4096})
    (disk,) = devices(machine.roots)
    dev = machine.roots.dev
    assert (disk.address, str(disk.address)) == (Address(2, 0, 3, 4), "2:0:3:4")
    assert (disk.type_name, disk.vendor, disk.model, disk.revision) == (
        "disk",
        "ACME",
        "Disk 1",
        "0001",
    )
    assert (disk.serial, disk.wwn) == ("SN 1", "0x5000c500a1b2c3d4")
    assert (disk.sg, disk.block, disk.bsg) == (dev / "sg0", dev / "sdb", dev / "bsg" / "2:0:3:4")
    assert (disk.size, disk.block_size) == (4096 * 512, 4096)
    assert str(disk) == str(dev / "sg0")


def test_addresses_are_in_the_order_of_numbers(machine: Machine) -> None:
    for address in ("0:0:10:0", "0:0:2:0", "10:0:0:0", "2:0:0:0"):
        machine.device(address)
    (machine.roots.sysfs / "bus" / "scsi" / "devices" / "host0").mkdir()
    found = [str(device.address) for device in devices(machine.roots)]
    assert found == ["0:0:2:0", "0:0:10:0", "2:0:0:0", "10:0:0:0"]


def test_a_tape_has_no_blocks(machine: Machine) -> None:
    path = machine.device("0:0:0:0", type=1, block=None)
    machine.node(path / "scsi_tape" / "nst0", "nst0", "9:128")
    (tape,) = devices(machine.roots)
    assert (tape.type_name, tape.block, tape.size, tape.has_blocks) == ("tape", None, None, False)
    assert machine.roots.dev / "nst0" in tape.nodes


def test_without_drivers_and_names_it_is_its_address(machine: Machine) -> None:
    path = machine.device("0:0:0:0", type=0x1A, sg=None, block=None, naa=None, serial=None)
    (path / "bsg" / "0:0:0:0" / "uevent").unlink()
    (device,) = devices(machine.roots)
    assert (str(device), device.type_name) == ("0:0:0:0", "type 0x1a")
    assert (device.nodes, device.wwn, device.serial) == ((), None, None)


def test_one_that_went_away_is_none(machine: Machine) -> None:
    machine.device("0:0:0:0")
    assert at(Address(0, 0, 0, 0), machine.roots)
    assert at(Address(0, 0, 0, 1), machine.roots) is None


@pytest.mark.parametrize(
    ("parent", "name"),
    [
        ("pci0000:00/0000:00:17.0/ata1", "ata"),
        ("pci0000:00/usb1/1-2/1-2:1.0", "usb"),
        ("pci0000:00/host4/port-4:0/end_device-4:0", "sas"),
        ("pci0000:00/host7/rport-7:0-1", "fc"),
        ("platform/host3/session1", "iscsi"),
        ("pci0000:00/0000:00:04.0/virtio1", "virtio"),
        ("pseudo_0/adapter0", "mpt3sas"),
    ],
)
def test_the_transport_shows_in_the_path(machine: Machine, parent: str, name: str) -> None:
    machine.device("0:0:0:0", parent=parent)
    assert devices(machine.roots)[0].transport == name


def test_a_disk_is_there_when_its_queue_is(machine: Machine) -> None:
    path = machine.device("0:0:0:0")
    (path / "block" / "sda" / "queue" / "logical_block_size").unlink()
    (found,) = devices(machine.roots)
    assert (found.block, found.size, found.block_size) == (None, None, None)
    assert found.sg == machine.roots.dev / "sg0"


def test_a_device_that_comes_again_is_another_instance(machine: Machine) -> None:
    path = machine.device("0:0:0:0")
    (before,) = devices(machine.roots)
    path.rename(path.with_name("old"))
    (machine.roots.sysfs / "bus" / "scsi" / "devices" / "0:0:0:0").unlink()
    machine.device("0:0:0:0")
    (after,) = devices(machine.roots)
    assert before.instance != after.instance
    assert replace(before, instance=after.instance) == after


@pytest.mark.parametrize(
    ("state", "stays"), [("running", True), ("offline", True), ("cancel", False)]
)
def test_a_device_may_be_about_to_go(machine: Machine, state: str, stays: bool) -> None:
    machine.device("0:0:0:0", state=state)
    assert [found.stays for found in devices(machine.roots)] == [stays]
