"""``vscsi-emu devices`` and ``vscsi-emu probe``, on a machine in a directory."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from click.testing import CliRunner, Result

from tests.unit.host.machine import Machine
from vscsi_emu.cli import main
from vscsi_emu.host import devices as devices_module
from vscsi_emu.host import find as find_module
from vscsi_emu.host.devices import ScsiDevice
from vscsi_emu.host.monitor import Change


@pytest.fixture
def machine(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """The one that the commands find."""
    made = Machine(tmp_path_factory.mktemp("m") / "m")
    every, find = devices_module.devices, find_module.find
    monkeypatch.setattr(devices_module, "devices", lambda: every(made.roots))
    monkeypatch.setattr(find_module, "find", lambda name: find(name, made.roots))
    return made


def run(*arguments: str) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(main, arguments)


def test_without_scsi_devices_says_so(machine: Machine) -> None:
    done = run("devices")
    assert (done.exit_code, done.output) == (0, "This machine has no SCSI devices.\n")
    done = run("devices", "--json")
    assert (done.exit_code, json.loads(done.output)) == (0, [])


def test_without_scsi_probe_fails_in_one_line(machine: Machine) -> None:
    done = run("probe", "/dev/sg0")
    assert done.exit_code == 1
    assert done.output == "Error: /dev/sg0: this machine has no SCSI devices\n"


def test_devices_are_a_table(machine: Machine) -> None:
    machine.device("0:0:0:0", sectors=(3 << 40) // 512)
    machine.device("0:0:1:0", type=1, block=None, sg="sg1", naa=None)
    head, disk, tape = run("devices").output.splitlines()
    assert head.split()[:4] == ["address", "nodes", "type", "device"]
    assert "ACME Disk 1 0001" in disk
    assert "3 TiB" in disk
    assert " tape " in tape


def test_devices_as_json(machine: Machine) -> None:
    path = machine.device("0:0:0:0")
    machine.holder(path / "block" / "sda", "dm-0", "253:0")
    (found,) = json.loads(run("devices", "--json").output)
    assert (found["address"], found["wwn"]) == ("0:0:0:0", "0x5000c500a1b2c3d4")
    assert found["block"] == str(machine.roots.dev / "sda")
    assert (found["use"]["holders"], found["use"]["taken"]) == (["dm-0"], True)


class Watched:
    """Stands for the monitor: a disk grows, then the user interrupts."""

    def __init__(self, disk: ScsiDevice) -> None:
        self.known = {disk.address: disk}
        grown = replace(disk, size=2 << 30)
        self.changes = [
            Change("attention", disk, attention="CAPACITY_DATA_HAS_CHANGED"),
            Change("changed", grown, disk),
            Change("removed", grown),
        ]

    async def __aiter__(self) -> AsyncIterator[Change]:
        for change in self.changes:
            yield change
        raise KeyboardInterrupt


@pytest.fixture
def watched(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.device("0:0:0:0", sectors=2048)
    (disk,) = devices_module.devices()
    monkeypatch.setattr("vscsi_emu.host.monitor.Monitor", lambda: Watched(disk))


@pytest.mark.usefixtures("watched")
def test_watch_goes_on_after_the_table() -> None:
    done = run("devices", "--watch")
    assert done.exit_code == 0
    _, disk, attention, changed, removed = done.output.splitlines()
    assert "1 MiB" in disk
    assert attention.endswith("CAPACITY_DATA_HAS_CHANGED")
    assert changed.endswith("size: 1048576 → 2147483648")
    assert removed.startswith("removed  0:0:0:0")
    assert removed.endswith("2 GiB")


@pytest.mark.usefixtures("watched")
def test_watch_as_json_is_an_object_a_line() -> None:
    output = run("devices", "--watch", "--json").output
    events = [json.loads(line) for line in output.splitlines()]
    assert [event["event"] for event in events] == ["present", "attention", "changed", "removed"]
    assert events[2]["changed"] == ["size"]


def test_a_probe_shows_every_candidate_and_marks_the_one_that_won(machine: Machine) -> None:
    machine.device("0:0:0:0", queue={"max_sectors_kb": 32}, queue_depth=5)
    output = run("probe", "0:0:0:0").output
    won = [line.split() for line in output.splitlines() if "←" in line]
    assert ["max_sectors", "of", "512", "bytes", "64", "queue/max_sectors_kb", "←"] in won
    assert ["cmd_per_lun", "5", "0:0:0:0/queue_depth", "←"] in won
    assert len(won) == 8
    assert "host0/cmd_per_lun (does not bind)" in output
    assert "in use   no" in output
    assert "max_sectors=64,cmd_per_lun=5" in output
    assert "    00  00 b0 00 3c 00 00 00 00 00 00 00 40 00 00 00 00" in output


def test_a_probe_as_json(machine: Machine) -> None:
    machine.device("0:0:0:0", queue={"max_sectors_kb": 32})
    found = json.loads(run("probe", "by-id/wwn-0x5000c500a1b2c3d4", "--json").output)
    assert found["limits"]["max_sectors"]["value"] == found["config"]["max_sectors"] == 64
    assert bytes.fromhex(found["block_limits"])[8:12] == (64).to_bytes(4, "big")
    assert found["way"]["node"] == str(machine.roots.dev / "sda")
    assert found["access"]["raw_io"] is False
