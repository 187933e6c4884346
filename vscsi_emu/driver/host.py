"""What the guest knows of the units behind a device, kept up to date by events (virtio 1.4,
5.6.6.3)."""

import time
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from vscsi_emu.driver.disk import Disk
from vscsi_emu.driver.scan import Found, inquire, scan
from vscsi_emu.driver.virtio_scsi import VirtioScsi
from vscsi_emu.virtio.scsi import EVENTS_MISSED, Event, EventType, ResetReason, decode_lun

Address = tuple[int, int]
"""(target, LUN)."""
_DISK: Final = 0x00
"""Peripheral device type of a direct access block device."""


class Kind(StrEnum):
    ADDED = "added"
    REMOVED = "removed"
    CHANGED = "changed"


@dataclass(frozen=True, slots=True)
class Change:
    """What became of a unit."""

    kind: Kind
    address: Address


class ScsiHost:
    """The units of one device. `units` and `disks` (those that are disks), by address."""

    def __init__(self, device: VirtioScsi) -> None:
        self.device = device
        self.units: dict[Address, Found] = {}
        self.disks: dict[Address, Disk] = {}

    def scan(self, targets: range | None = None) -> list[Change]:
        """Looks for all units of these targets (None: of every target)."""
        if targets is None:
            targets = range(self.device.config.max_target + 1)
        there = {(found.target, found.lun): found for found in scan(self.device, targets)}
        gone = [at for at in self.units if at[0] in targets and at not in there]
        new = [at for at in there if at not in self.units]
        return [self._remove(at) for at in gone] + [self._add(at, there[at]) for at in new]

    def next_changes(self, timeout: float = 0.0) -> list[Change]:
        """Handles events until one changed something; waits for it up to `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while event := self.device.next_event(max(deadline - time.monotonic(), 0.0)):
            if changes := self.handle(event):
                return changes
        return []

    def handle(self, event: Event) -> list[Change]:
        """What an event says, looked into."""
        if event.event & EVENTS_MISSED:
            # Whatever it was about: units may have come, gone and changed.
            return self.scan() + [self._change(at) for at in self.disks]
        address = decode_lun(event.lun)
        if address is None:
            return []
        match event.event:
            case EventType.TRANSPORT_RESET if event.reason != ResetReason.HARD:
                return self._rescan(address)
            case EventType.PARAM_CHANGE if address in self.units:
                return [self._change(address)]
        return []

    def _rescan(self, address: Address) -> list[Change]:
        target, lun = address
        if lun == 0:
            # It may be about the whole target (5.6.6.3.1).
            return self.scan(range(target, target + 1))
        found = inquire(self.device, target, lun)
        if found is None:
            return [self._remove(address)] if address in self.units else []
        return [] if address in self.units else [self._add(address, found)]

    def _add(self, address: Address, found: Found) -> Change:
        if found.device_type == _DISK:
            self.disks[address] = Disk(self.device, *address)
        self.units[address] = found
        return Change(Kind.ADDED, address)

    def _remove(self, address: Address) -> Change:
        del self.units[address]
        self.disks.pop(address, None)
        return Change(Kind.REMOVED, address)

    def _change(self, address: Address) -> Change:
        if address in self.disks:
            self.disks[address].refresh()
        return Change(Kind.CHANGED, address)
