"""Devices that come, go and change, as the kernel tells."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Final, Literal

from vscsi_emu.host.devices import Address, ScsiDevice, at, devices
from vscsi_emu.host.errors import HostError
from vscsi_emu.host.roots import THIS_MACHINE, Roots

Kind = Literal["added", "removed", "changed", "attention"]

_SUBSYSTEMS: Final = ("scsi", "block", "scsi_generic", "bsg", "scsi_tape", "scsi_changer")


@dataclass(frozen=True, slots=True)
class Change:
    """What happened to a device."""

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
    return device.type, device.vendor, device.model, device.wwid, device.serial


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
        events = self._events()
        if events is not None and not events:
            return []
        changes, kept = [], dict(self.known)
        for event in events or ():
            address = Address.parse(event.sys_name)
            if address is None or event.get("DEVTYPE") != "scsi_device" or address not in kept:
                continue
            if event.action == "remove":
                # It may be back by now.
                changes.append(Change("removed", kept.pop(address)))
            elif attention := event.get("SDEV_UA"):
                device = at(address, self._roots) or kept[address]
                changes.append(Change("attention", device, attention=attention))
        now = _by_address(devices(self._roots))
        changes += compare(kept, now)
        self.known = now
        return changes

    async def __aiter__(self) -> AsyncIterator[Change]:
        """Changes as they come, without end."""
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        loop.add_reader(self.fileno(), ready.set)
        try:
            while True:
                await ready.wait()
                ready.clear()
                for change in self.poll():
                    yield change
        finally:
            loop.remove_reader(self.fileno())

    def _events(self) -> list[Any] | None:
        """Those that wait to be read; None where some were lost."""
        events = []
        try:
            while (event := self._monitor.poll(timeout=0)) is not None:
                events.append(event)
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            return None
        return events


def _by_address(found: Iterable[ScsiDevice]) -> dict[Address, ScsiDevice]:
    return {device.address: device for device in found}
