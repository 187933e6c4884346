"""What has changed between two looks. Events of a real kernel are in tests/guest/test_host.py."""

from __future__ import annotations

import errno
import socket
from dataclasses import replace
from unittest import mock

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


@pytest.mark.parametrize(
    ("what", "value"), [("serial", "2"), ("wwid", "naa.2"), ("model", "2"), ("instance", 0)]
)
def test_another_device_at_the_address(disk: ScsiDevice, what: str, value: object) -> None:
    """Also the same one, if it was away meanwhile."""
    other = replace(disk, **{what: value})  # type: ignore[arg-type]
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


class Kernel:
    """Stands for pyudev's monitor."""

    def __init__(self, *outcomes: OSError | None) -> None:
        self._outcomes = list(outcomes)
        self._socket = socket.socket()

    def filter_by(self, subsystem: str) -> None:
        pass

    def start(self) -> None:
        pass

    def fileno(self) -> int:
        return self._socket.fileno()

    def poll(self, timeout: float) -> None:
        if outcome := self._outcomes.pop(0):
            raise outcome


def monitored(machine: Machine, *outcomes: OSError | None) -> Monitor:
    machine.device(str(HERE))
    with mock.patch("pyudev.Monitor.from_netlink", return_value=Kernel(*outcomes)):
        return Monitor(machine.roots)


@pytest.mark.parametrize(
    ("error", "of_the_socket"),
    [
        (OSError(errno.ENOBUFS, "No buffer space"), 0),
        (OSError("Error while polling"), errno.ENOBUFS),
    ],
)
def test_events_that_the_kernel_had_no_room_for_are_missed(
    machine: Machine, error: OSError, of_the_socket: int
) -> None:
    monitor = monitored(machine, error, None)
    machine.device(str(THERE), serial="SN 2", sg="sg1", block="sdb")
    with mock.patch.object(socket.socket, "getsockopt", return_value=of_the_socket):
        changes = monitor.poll()
    assert [(change.kind, change.device.address) for change in changes] == [
        ("added", THERE),
        ("missed", HERE),
        ("missed", THERE),
    ]


def test_another_error_is_the_end(machine: Machine) -> None:
    monitor = monitored(machine, OSError(errno.EBADF, "Bad file descriptor"))
    with pytest.raises(HostError, match="device events end: Bad file descriptor"):
        monitor.poll()
