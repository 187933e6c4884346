"""Why a guest has to know its host's limits, on a disk of this host that nothing uses.

A guest reads 65535 blocks in one command, as Linux's first virtio-scsi driver took every disk to
be able to. Three times: passed on as it is, as pass-through was in 2011; with a driver that reads
the limits; with the old driver again, and a host side that splits. Needs root; only reads:

    python examples/passthrough_limits.py /dev/sdb
"""

import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from vscsi_emu import _dataplane, backends
from vscsi_emu.config import from_arguments
from vscsi_emu.driver.disk import Disk
from vscsi_emu.driver.dma import DmaAllocator
from vscsi_emu.driver.mmio import VirtioMmioBus
from vscsi_emu.driver.scan import retried
from vscsi_emu.driver.virtio_scsi import OLD_MAX_SECTORS, Options, VirtioScsi
from vscsi_emu.inprocess import RAM, InProcess

SECTOR = 512


@contextmanager
def guest(device: str, *, obeys_limits: bool) -> Iterator[tuple[InProcess, VirtioScsi]]:
    """A driver, over an HBA that passes to `device`."""
    lun = f"0:0=sg:{device},passthrough=readonly"
    with InProcess(from_arguments([lun])) as machine:
        (slot,) = machine.slots
        bus = VirtioMmioBus.find(slot, slot.base, DmaAllocator(1 << 20, RAM - (1 << 20)))
        assert bus is not None
        driver = VirtioScsi(bus, Options(obey_limits=obeys_limits), timeout=60)
        retried(driver, 0, 0, bytes(6), 0)  # takes what unit attentions there are
        yield machine, driver


@contextmanager
def nothing_known_and_nothing_split() -> Iterator[None]:
    """The pass-through of 2011."""
    sg = sys.modules[backends.backend_class("sg").__module__]
    boundless = _dataplane.PassthroughLimits(max_bytes=1 << 30, max_segments=1 << 16)
    with (
        mock.patch.object(sg, "_transfer_limits", return_value=boundless),
        mock.patch.object(sg, "rules", return_value={}),
    ):
        yield


def read_in_one(driver: VirtioScsi) -> str:
    cdb = struct.pack(">BBQIBB", 0x88, 0, 0, OLD_MAX_SECTORS, 0, 0)
    result = driver.execute(0, 0, cdb, data_in_length=OLD_MAX_SECTORS * SECTOR)
    if result.response or result.status:
        sense = result.sense.hex(" ") or "none"
        return f"failed: response {result.response}, status {result.status:#04x}, sense {sense}"
    return f"{len(result.data)} bytes"


def main(device: str) -> None:
    with nothing_known_and_nothing_split(), guest(device, obeys_limits=False) as (_, driver):
        print(f"passed on as it is:           {read_in_one(driver)}")
    with guest(device, obeys_limits=True) as (machine, driver):
        most = driver.max_transfer(SECTOR)
        data = Disk(driver, 0, 0).read(0, OLD_MAX_SECTORS)
        print(f"a driver that knows:          {len(data)} bytes, {most} blocks a command")
        split = show_split(machine)
        assert split == 0, "a driver that keeps to the limits needs no splitting"
    with guest(device, obeys_limits=False) as (machine, driver):
        print(f"the old driver, split for it: {read_in_one(driver)}, {show_split(machine)} split")


def show_split(machine: InProcess) -> int:
    (lun,) = machine.control.hba_query().luns
    assert lun.passthrough is not None
    return lun.passthrough.split


if __name__ == "__main__":
    main(*sys.argv[1:])
