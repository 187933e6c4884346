"""Devices that come, go and change, as the kernel tells."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Final, Literal

from vscsi_emu.host.devices import Address, ScsiDevice, devices
from vscsi_emu.host.errors import HostError
from vscsi_emu.host.roots import THIS_MACHINE, Roots

Kind = Literal["added", "removed", "changed", "attention", "missed"]

_SUBSYSTEMS: Final = ("scsi", "block", "scsi_generic", "bsg", "scsi_tape", "scsi_changer")


@dataclass(frozen=True, slots=True)
class Change:
    """What happened to a device; ``missed``: nobody knows, as the kernel had to drop events."""

    kind: Kind
    device: ScsiDevice
    """As it is now; as it was, where it was removed."""
    before: ScsiDevice | None = None
    """Of a change."""
    attention: str | None = None
    """What the kernel calls a unit attention condition that the device reported to the host,
    such as ``CAPACITY_DATA_HAS_CHANGED``. The host may read the new capacity later, or never."""

    @property
    def changed(self) -> tuple[str, ...]:
        """Names of the fields of `device` that differ from `before`."""
        if self.before is None:
            return ()
        names = (field.name for field in fields(self.device))
        return tuple(n for n in names if getattr(self.device, n) != getattr(self.before, n))


def compare(
    before: Mapping[Address, ScsiDevice], after: Mapping[Address, ScsiDevice]
) -> list[Change]:
    """What turns one set of devices into the other, removals first. Another device at the same
    address is a removal and an addition."""
    removed, rest = [], []
    for address, old in before.items():
        new = after.get(address)
        if new is None or _who(new) != _who(old):
            removed.append(Change("removed", old))
        elif new != old:
            rest.append(Change("changed", new, old))
    for address, new in after.items():
        known = before.get(address)
        if known is None or _who(known) != _who(new):
            rest.append(Change("added", new))
    return removed + rest


def _who(device: ScsiDevice) -> object:
    return device.instance, device.type, device.vendor, device.model, device.wwid, device.serial


class Monitor:
    """Follows the devices of this machine through the kernel's events, which need no udev daemon:
    so it works in containers and in guests without one.

    Iterate over it on an event loop, or watch `fileno` and call `poll` when that is readable.
    Raises `HostError` where the kernel's events cannot be had.
    """

    def __init__(self, roots: Roots = THIS_MACHINE) -> None:
        import pyudev

        self._roots = roots
        try:
            self._monitor = pyudev.Monitor.from_netlink(pyudev.Context(), source="kernel")
            for subsystem in _SUBSYSTEMS:
                self._monitor.filter_by(subsystem)
            self._monitor.start()
        except (ImportError, OSError) as error:
            raise HostError(f"the kernel's device events cannot be had: {error}") from None
        self.known = _by_address(devices(roots))
        """The devices at the last `poll`."""

    def fileno(self) -> int:
        descriptor: int = self._monitor.fileno()
        return descriptor

    def poll(self) -> list[Change]:
        """What has changed since the last call. Does not wait."""
        attentions, lost = self._attentions()
        now = _by_address(devices(self._roots))
        changes = compare(self.known, now)
        changes += [
            Change("attention", now[address], attention=attention)
            for address, attention in attentions
            if address in now
        ]
        if lost:
            changes += [Change("missed", device) for device in now.values()]
        self.known = now
        return changes

    async def __aiter__(self) -> AsyncIterator[Change]:
        """Changes as they come, without end."""
        while True:
            await self._readable()
            for change in self.poll():
                yield change

    async def _readable(self) -> None:
        # Not watched while changes are dealt with: it stays readable until it is read.
        loop, ready = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self.fileno(), ready.set)
        try:
            await ready.wait()
        finally:
            loop.remove_reader(self.fileno())

    def _attentions(self) -> tuple[list[tuple[Address, str]], bool]:
        """Unit attention conditions among the events that wait to be read, and whether the kernel
        had no room for some. What else they say `devices` says."""
        found: list[tuple[Address, str]] = []
        lost = False
        while True:
            try:
                event = self._monitor.poll(timeout=0)
            except OSError as failed:
                if (error := failed.errno or self._error()) not in (0, errno.ENOBUFS):
                    said = os.strerror(error)
                    raise HostError(f"the kernel's device events end: {said}") from None
                lost = True
                continue
            if event is None:
                return found, lost
            address = Address.parse(event.sys_name)
            attention = event.get("SDEV_UA")
            if address is not None and attention and event.get("DEVTYPE") == "scsi_device":
                found.append((address, attention))

    def _error(self) -> int:
        """Takes the error that the socket has: pyudev does not say which."""
        with socket.socket(fileno=os.dup(self.fileno())) as found:
            return found.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def _by_address(found: Iterable[ScsiDevice]) -> dict[Address, ScsiDevice]:
    return {device.address: device for device in found}
