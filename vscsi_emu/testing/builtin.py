"""The builtin guest: our own driver at the registers of an HBA in this process, and no kernel."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from rich.console import Console
from rich.table import Table

from vscsi_emu.config import from_arguments
from vscsi_emu.driver.disk import Disk
from vscsi_emu.driver.dma import DmaAllocator
from vscsi_emu.driver.host import Change, Kind, ScsiHost
from vscsi_emu.driver.mmio import VirtioMmioBus
from vscsi_emu.driver.scan import CHECK_CONDITION
from vscsi_emu.driver.virtio_scsi import KNOWN, Options, VirtioScsi
from vscsi_emu.inprocess import RAM, InProcess, Slot
from vscsi_emu.virtio.features import Feature
from vscsi_emu.virtio.mmio_registers import LEGACY, MODERN
from vscsi_emu.virtio.scsi import FUNCTION_COMPLETE, TmfType

from .errors import GuestError

TARGETS: Final = 4
LUNS: Final = 3
QUEUES: Final = 2
_DISK_BYTES: Final = 4 << 20
_COPY_BYTES: Final = 512 << 10
_HEAP: Final = 1 << 20
_SECONDS: Final = 10.0
_UNPLUGGED: Final = (TARGETS - 1, LUNS - 1)

Show = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Boot:
    """One way to drive the device."""

    version: int
    indirect: bool
    event_idx: bool

    def __str__(self) -> str:
        return ", ".join(
            (
                "modern" if self.version == MODERN else "legacy",
                "indirect" if self.indirect else "direct",
                "event index" if self.event_idx else "flags",
            )
        )

    @property
    def options(self) -> Options:
        features = KNOWN
        if not self.indirect:
            features &= ~Feature.INDIRECT_DESC
        if not self.event_idx:
            features &= ~Feature.EVENT_IDX
        return Options(features=features, queues=QUEUES)


BOOTS: Final = tuple(
    Boot(version, indirect, event_idx)
    for version, indirect, event_idx in itertools.product(
        (MODERN, LEGACY), (True, False), (True, False)
    )
)


def run(console: Console, *, verbose: bool = False) -> None:
    """Boots in each of `BOOTS`, shown on `console`; with `verbose` as a transcript.

    `GuestError` if anything did not work as it must.
    """
    began = time.monotonic()
    table = Table(title="What the guest did", title_justify="left")
    for column in ("boot", "disks", "verified", "unplugged", "seconds"):
        table.add_column(column, no_wrap=True)
    for boot in BOOTS:
        started = time.monotonic()
        if verbose:
            console.print(f"\n[bold]{boot}[/]", highlight=False)
        try:
            verified = guest(boot, _shower(console) if verbose else lambda _: None)
        except (RuntimeError, TimeoutError) as error:
            raise GuestError(f"{boot}: {error}") from error
        table.add_row(
            str(boot),
            str(TARGETS * LUNS),
            f"{verified >> 10} KiB",
            _at(_UNPLUGGED),
            f"{time.monotonic() - started:.2f}",
        )
    console.print(table)
    console.print(f"[green]all good[/] after {time.monotonic() - began:.1f} s")


def guest(boot: Boot, show: Show) -> int:
    """One boot, from probe to reset; how many bytes were written, read and compared."""
    luns = [f"{at[0]}:{at[1]}=mem:{_DISK_BYTES}" for at in _addresses()]
    with InProcess(from_arguments(luns, queues=QUEUES), version=boot.version) as machine:
        (slot,) = machine.slots
        bus = _find(slot)
        device = VirtioScsi(bus, boot.options, timeout=_SECONDS)
        _show_probe(device, bus, show)
        host = _scan(device, show)
        verified = sum(_verify(disk, seed) for seed, disk in enumerate(host.disks.values()))
        show(f"  wrote, read and compared {verified >> 10} KiB on {len(host.disks)} disks")
        _reset_unit(host.disks[0, 0], show)
        machine.call(lambda: slot.hba.remove_lun(_UNPLUGGED))
        _expect_unplugged(host, show)
        device.remove()
        if left := bus.allocator.allocated:
            raise GuestError(f"the driver leaks {left} bytes of guest memory")
        if slot.device.counters:
            raise GuestError(f"the driver misused registers: {dict(slot.device.counters)}")
        show("  device reset; no register was misused")
    return verified


def _find(slot: Slot) -> VirtioMmioBus:
    heap = DmaAllocator(_HEAP, RAM - _HEAP)
    bus = VirtioMmioBus.find(slot, slot.base, heap, timeout=_SECONDS)
    if bus is None:
        raise GuestError(f"no device behind the registers at {slot.base:#x}")
    return bus


def _show_probe(device: VirtioScsi, bus: VirtioMmioBus, show: Show) -> None:
    names = " ".join(feature.name or "" for feature in Feature if feature in device.features)
    space = device.config
    show(f"  probe: virtio-mmio version {bus.version}, device {bus.device_id}")
    show(f"  features: {names}")
    show(
        f"  num_queues {space.num_queues}, seg_max {space.seg_max}, "
        f"max_sectors {space.max_sectors}, cmd_per_lun {space.cmd_per_lun}"
    )


def _scan(device: VirtioScsi, show: Show) -> ScsiHost:
    host = ScsiHost(device)
    host.scan(range(TARGETS + 1))
    for at, found in host.units.items():
        disk = host.disks[at]
        show(
            f"  {_at(at)}  {found.vendor} {found.product}  "
            f"{disk.blocks} blocks of {disk.block_size} bytes"
        )
    if sorted(host.disks) != list(_addresses()):
        raise GuestError(f"the scan found {sorted(host.disks)}, not {TARGETS} x {LUNS} disks")
    return host


def _verify(disk: Disk, seed: int) -> int:
    """Writes a pattern that no other disk gets, and reads it back; its bytes."""
    period = bytes((seed * 13 + i * 7) % 251 for i in range(251))
    data = (period * (_COPY_BYTES // len(period) + 1))[:_COPY_BYTES]
    disk.write(1, data)
    disk.flush()
    if disk.read(1, len(data) // disk.block_size) != data:
        raise GuestError(f"{_at((disk.target, disk.lun))} gives back other data than it was given")
    return len(data)


def _reset_unit(disk: Disk, show: Show) -> None:
    device = disk.device
    answer = device.task_management(TmfType.LOGICAL_UNIT_RESET, disk.target, disk.lun)
    after = device.execute(disk.target, disk.lun, bytes(6))
    if answer != FUNCTION_COMPLETE or after.status != CHECK_CONDITION:
        raise GuestError(
            f"LOGICAL UNIT RESET was answered {answer}, the next command status {after.status:#x}"
        )
    code = after.sense[12:14].hex("/")
    show(f"  LOGICAL UNIT RESET of {_at((disk.target, disk.lun))}: unit attention {code}")
    if device.execute(disk.target, disk.lun, bytes(6)).status:
        raise GuestError("a unit attention was reported twice")


def _expect_unplugged(host: ScsiHost, show: Show) -> None:
    changes = host.next_changes(_SECONDS)
    if changes != [Change(Kind.REMOVED, _UNPLUGGED)]:
        raise GuestError(f"after an unplug of {_at(_UNPLUGGED)} the guest saw {changes}")
    show(f"  event: {_at(_UNPLUGGED)} was unplugged, {len(host.disks)} disks are left")


def _addresses() -> Iterator[tuple[int, int]]:
    return itertools.product(range(TARGETS), range(LUNS))


def _at(address: tuple[int, int]) -> str:
    return f"{address[0]}:{address[1]}"


def _shower(console: Console) -> Show:
    return lambda line: console.print(line, highlight=False, markup=False, soft_wrap=True)
