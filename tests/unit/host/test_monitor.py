"""What has changed between two looks. Events of a real kernel are in tests/guest/test_host.py."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vscsi_emu.host.devices import Address, ScsiDevice, devices
from vscsi_emu.host.errors import HostError
from vscsi_emu.host.monitor import Monitor, compare

from .machine import Machine

HERE, THERE = Address(0, 0, 0, 0), Address(0, 0, 1, 0)


@pytest.fixture
def disk(machine: Machine) -> ScsiDevice:
    machine.device(str(HERE))
    return devices(machine.roots)[0]


def test_nothing(disk: ScsiDevice) -> None:
    assert compare({HERE: disk}, {HERE: replace(disk)}) == []


def test_added_and_removed(disk: ScsiDevice) -> None:
    other = replace(disk, address=THERE, serial="SN 2")
    changes = compare({HERE: disk}, {THERE: other})
    assert [(c.kind, c.device) for c in changes] == [("removed", disk), ("added", other)]


@pytest.mark.parametrize(
    ("what", "value"), [("size", 1 << 30), ("state", "offline"), ("block", None)]
)
def test_changed(disk: ScsiDevice, what: str, value: object) -> None:
    now = replace(disk, **{what: value})  # type: ignore[arg-type]
    (change,) = compare({HERE: disk}, {HERE: now})
    assert (change.kind, change.device, change.before) == ("changed", now, disk)
    assert change.changed == (what,)


@pytest.mark.parametrize("what", ["serial", "wwid", "model"])
def test_another_device_at_the_address(disk: ScsiDevice, what: str) -> None:
    other = replace(disk, **{what: "other"})  # type: ignore[arg-type]
    changes = compare({HERE: disk}, {HERE: other})
    assert [(c.kind, c.device) for c in changes] == [("removed", disk), ("added", other)]


def test_without_the_kernels_events_it_says_so(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("Could not create udev monitor")

    monkeypatch.setattr("pyudev.Monitor.from_netlink", refuse)
    with pytest.raises(HostError, match="events cannot be had: Could not create udev monitor"):
        Monitor(machine.roots)
