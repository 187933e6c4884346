"""A unit that two HBAs have goes from both, or stays with both."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conformance import cdb
from tests.conformance.cdb import Disk, expect_good, pattern
from tests.unit.control.monitor import TIMEOUT, monitored
from tests.unit.transport.harness import Server, attached
from vscsi_emu.backends.uri import parse_uri
from vscsi_emu.config import Config, HbaConfig, LunConfig
from vscsi_emu.control import Client, RpcError
from vscsi_emu.driver.request import Result
from vscsi_emu.driver.virtio_scsi import InFlight, VirtioScsi
from vscsi_emu.virtio.scsi import Event, EventType, ResetReason, Response, encode_lun

REMOVED, RESCAN = ResetReason.REMOVED, ResetReason.RESCAN
PLACES = {0: (0, 0), 1: (4, 5)}
"""Where the unit is in each HBA."""


@dataclass(frozen=True)
class Rig:
    server: Server
    path: str
    control: Client
    drivers: tuple[VirtioScsi, VirtioScsi]

    def busy(self, number: int) -> InFlight[Result]:
        """A command of one HBA's driver, which does not end until the unit is resumed."""
        self.control.lun_pause(lun="shared")
        return self.drivers[number].submit(*PLACES[number], cdb.read_16(0, 1), data_in_length=512)

    def hears(self, number: int, reason: ResetReason) -> None:
        """The next event of that driver."""
        assert self.drivers[number].next_event(TIMEOUT) == Event(
            EventType.TRANSPORT_RESET, encode_lun(*PLACES[number]), reason
        )

    def places(self) -> list[bool]:
        """Which HBAs have it."""
        return [PLACES[n] in hba.luns for n, hba in enumerate(self.server.service.hbas)]

    def work(self) -> None:
        """Both drivers use it."""
        for number, driver in enumerate(self.drivers):
            disk, data = Disk(driver, *PLACES[number]).ready(), pattern(512, seed=number)
            disk.write(number, data)
            assert disk.read(number, 1) == data


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    hbas = tuple(
        HbaConfig(str(tmp_path / f"{number}.sock"), None, 1, {at: "a"})
        for number, at in PLACES.items()
    )
    config = Config((LunConfig("a", parse_uri("mem:1M"), "shared"),), hbas)
    with (
        monitored(tmp_path, config) as (server, path),
        Client(path, timeout=TIMEOUT) as control,
        attached(server.sockets[0]) as one,
        attached(server.sockets[1]) as other,
    ):
        made = Rig(server, path, control, (one, other))
        made.work()
        yield made


def test_it_goes_from_both(rig: Rig) -> None:
    rig.control.lun_remove(lun=["shared"])
    for number, driver in enumerate(rig.drivers):
        rig.hears(number, REMOVED)
        assert driver.execute(*PLACES[number], cdb.test_unit_ready()).sense[12] == 0x25
    assert not rig.server.service.disks


@pytest.mark.parametrize("number", PLACES)
def test_it_stays_with_both_if_one_uses_it(rig: Rig, number: int) -> None:
    item = rig.busy(number)
    with pytest.raises(RpcError, match=rf"{number}\.sock: \d:\d is still in use .* all stay"):
        rig.control.lun_remove(lun=["shared"], deadline=0.8)
    assert rig.places() == [True, True]
    for each in PLACES:
        rig.hears(each, REMOVED)
        rig.hears(each, RESCAN)
    rig.control.lun_resume(lun="shared")
    expect_good(rig.drivers[number].wait(item))
    rig.work()


def test_force_takes_it_from_both(rig: Rig) -> None:
    item = rig.busy(1)
    rig.control.lun_remove(lun=["shared"], deadline=0.6, force=True)
    assert rig.drivers[1].wait(item).response == Response.FAILURE
    assert rig.places() == [False, False]
    assert not rig.server.service.disks


def test_nothing_begins_if_one_is_leaving_already(rig: Rig) -> None:
    item = rig.busy(1)
    with ThreadPoolExecutor() as pool, Client(rig.path, timeout=2 * TIMEOUT) as other:
        first = pool.submit(other.lun_remove, ["4:5"], "1", TIMEOUT)
        rig.hears(1, REMOVED)
        with pytest.raises(RpcError, match=r"1\.sock has no unit at 4:5, or it is leaving"):
            rig.control.lun_remove(lun=["shared"])
        assert rig.drivers[0].next_event(0.0) is None
        rig.control.lun_resume(lun="shared")
        expect_good(rig.drivers[1].wait(item))
        first.result(TIMEOUT)
    assert rig.places() == [True, False]
    disk = Disk(rig.drivers[0], *PLACES[0])
    disk.ready()  # with one target port less, INQUIRY DATA HAS CHANGED
    disk.write(7, pattern(512))
    assert disk.read(7, 1) == pattern(512)
