"""What drivers are told at most, changed while they run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.conformance import cdb
from tests.conformance.cdb import Disk, pattern
from tests.unit.control.monitor import TIMEOUT, monitored
from tests.unit.transport.harness import Server, attached
from vscsi_emu.backends.uri import parse_lun, parse_uri
from vscsi_emu.config import Config, HbaConfig, LunConfig, from_file
from vscsi_emu.control import Client, RpcError
from vscsi_emu.driver.vhost_user import VhostUserBus
from vscsi_emu.driver.virtio_scsi import VirtioScsi
from vscsi_emu.virtio.scsi import Event, EventType, encode_lun

INQUIRY_CHANGED, PARAMETERS_CHANGED = 0x3F03, 0x2A00
BLOCK_LIMITS = cdb.inquiry(64, page=0xB0)
MAX_SECTORS = 8
"""Offset in the configuration space."""


@dataclass(frozen=True)
class Rig:
    server: Server
    control: Client
    one: VirtioScsi
    """0:0 is the shared unit, 0:3 one of its own."""
    other: VirtioScsi
    """0:0 is the shared unit."""


@pytest.fixture
def config(tmp_path: Path) -> Config:
    luns = (
        LunConfig("a", parse_uri("mem:1M"), "shared"),
        LunConfig("b", parse_lun("mem:1M,block-size=4096")[1], "own"),
    )
    hbas = (
        HbaConfig(
            str(tmp_path / "1.sock"),
            None,
            1,
            {(0, 0): "a", (0, 3): "b"},
            port_group=7,
            caps={"cmd-per-lun": 100},
        ),
        HbaConfig(str(tmp_path / "2.sock"), None, 1, {(0, 0): "a"}),
    )
    return Config(luns, hbas)


@pytest.fixture
def rig(tmp_path: Path, config: Config) -> Iterator[Rig]:
    with (
        monitored(tmp_path, config) as (server, path),
        Client(path, timeout=TIMEOUT) as control,
        attached(server.sockets[0]) as one,
        attached(server.sockets[1]) as other,
    ):
        Disk(one, 0, 0).ready()
        Disk(one, 0, 3).ready()
        Disk(other, 0, 0).ready()
        yield Rig(server, control, one, other)


def max_transfer(device: VirtioScsi, lun: int) -> int:
    """MAXIMUM TRANSFER LENGTH, in blocks."""
    page = Disk(device, 0, lun).run(BLOCK_LIMITS, data_in_length=64).data
    return int.from_bytes(page[8:12])


def told(device: VirtioScsi) -> int:
    """`max_sectors` of the configuration space now, of which the driver hears first."""
    assert isinstance(device.bus, VhostUserBus)
    front_end = device.bus.front_end
    if not front_end.config_changes:
        front_end.poll([], TIMEOUT)
    assert front_end.config_changes == 1
    return int.from_bytes(front_end.get_config(MAX_SECTORS, 4), "little")


def attentions(device: VirtioScsi, lun: int) -> list[int]:
    codes = []
    while (result := device.execute(0, lun, cdb.test_unit_ready())).sense:
        codes.append(result.sense[12] << 8 | result.sense[13])
    return codes


def changed(lun: int) -> Event:
    return Event(EventType.PARAM_CHANGE, encode_lun(0, lun), 0x2A)


@pytest.mark.normative("scsi.evt.d4", "scsi.evt.d17")
def test_all_drivers_hear_of_a_lower_limit(rig: Rig) -> None:
    before = max_transfer(rig.one, 3)
    rig.control.lun_set("shared", max_sectors=64)
    assert told(rig.one) == told(rig.other) == 64
    # It is of this unit, and of the HBAs that have it.
    assert [rig.one.next_event(TIMEOUT) for _ in range(2)] == [changed(0), changed(3)]
    assert rig.other.next_event(TIMEOUT) == changed(0)
    assert attentions(rig.one, 0) == [INQUIRY_CHANGED, PARAMETERS_CHANGED]
    assert attentions(rig.one, 3) == [PARAMETERS_CHANGED]
    assert attentions(rig.other, 0) == [INQUIRY_CHANGED, PARAMETERS_CHANGED]
    assert max_transfer(rig.one, 0) == max_transfer(rig.other, 0) == 64
    assert max_transfer(rig.one, 3) == before
    unit = rig.control.limits_query().luns[0]
    assert (unit.max_sectors, unit.max_transfer_blocks) == (64, 64)


def test_what_was_made_for_the_old_limit_is_processed(rig: Rig) -> None:
    rig.control.lun_set("shared", max_sectors=1)
    attentions(rig.one, 0)
    disk, data = Disk(rig.one, 0, 0), pattern(64 * 512)
    disk.write(0, data)
    assert disk.read(0, 64) == data


def test_a_limit_is_taken_away_again(rig: Rig) -> None:
    before, space = max_transfer(rig.one, 0), rig.server.hba.config
    rig.control.lun_set("shared", max_sectors=64, seg_max=8, cmd_per_lun=4)
    low = rig.server.hba.config
    assert (low.max_sectors, low.seg_max, low.cmd_per_lun) == (64, 8, 4)
    attentions(rig.one, 0)
    rig.control.lun_set("shared", max_sectors=0, seg_max=0, cmd_per_lun=0)
    assert rig.server.hba.config == space
    assert attentions(rig.one, 0) == [INQUIRY_CHANGED, PARAMETERS_CHANGED]
    assert max_transfer(rig.one, 0) == before


def test_a_limit_that_nobody_notices_is_no_change(rig: Rig) -> None:
    rig.control.lun_set("own", cmd_per_lun=50)
    assert attentions(rig.one, 3) == [PARAMETERS_CHANGED]
    rig.control.lun_set("own", cmd_per_lun=50)
    assert attentions(rig.one, 3) == []
    # 50 is the least already.
    attentions(rig.one, 0)
    rig.control.lun_set("shared", cmd_per_lun=60)
    assert rig.server.hba.config.cmd_per_lun == 50
    assert attentions(rig.one, 0) == [PARAMETERS_CHANGED]
    assert attentions(rig.one, 3) == []


@pytest.mark.parametrize(
    ("lun", "limits", "text"),
    [
        ("shared", {"max_sectors": 65536}, "max-sectors 65536 is above 65535"),
        ("shared", {"seg_max": 127}, "seg-max 127 is above 126"),
        ("shared", {"cmd_per_lun": 129}, "cmd-per-lun 129 is above 128"),
        ("shared", {"cmd_per_lun": -1}, "-1 is below 0"),
        ("own", {"max_sectors": 7}, "max-sectors 7 is less than a block of 4096 bytes"),
    ],
)
def test_limits_that_cannot_be(rig: Rig, lun: str, limits: dict[str, int], text: str) -> None:
    before = rig.control.limits_query()
    with pytest.raises(RpcError, match=text) as caught:
        rig.control.lun_set(lun, **limits)  # type: ignore[arg-type]
    assert [caught.value.parameter] == list(limits)
    assert rig.control.limits_query() == before


def test_a_configuration_keeps_them(rig: Rig, tmp_path: Path, config: Config) -> None:
    rig.control.lun_set("shared", max_sectors=64, seg_max=8, cmd_per_lun=4)
    before = rig.control.limits_query()
    file = tmp_path / "hba.toml"
    file.write_text(rig.control.hba_export())
    read = from_file(str(file))
    assert [lun.spec for lun in read.luns] == [lun.spec for lun in rig.server.service.config.luns]
    assert [(hba.port_group, dict(hba.caps)) for hba in read.hbas] == [
        (hba.port_group, dict(hba.caps)) for hba in config.hbas
    ]
    served = Config(read.luns, tuple(_elsewhere(hba) for hba in read.hbas))
    (tmp_path / "again").mkdir()
    with monitored(tmp_path / "again", served) as (_, path), Client(path) as control:
        again = control.limits_query()
    assert again.luns == before.luns
    assert [hba.max_sectors for hba in again.hbas] == [64, 64]


def _elsewhere(hba: HbaConfig) -> HbaConfig:
    return replace(hba, socket=f"{hba.socket}.again")


@pytest.mark.parametrize("options", ["max-sectors=65536", "block-size=4096,max-sectors=7"])
def test_a_unit_is_not_opened_with_limits_that_cannot_be(rig: Rig, options: str) -> None:
    with pytest.raises(RpcError, match="max-sectors") as caught:
        rig.control.lun_add([f"5:5=mem:1M,{options}"], hba="0")
    assert caught.value.parameter == "luns"
