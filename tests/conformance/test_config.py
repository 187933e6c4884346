"""Features and configuration space (virtio 1.4, 5.6.3, 5.6.4)."""

import itertools

import pytest

from tests.conformance import cdb
from tests.conformance.attach import Guest, attach, connect
from tests.conformance.cdb import Disk, expect_good, expect_sense, pattern
from tests.conformance.server import Server
from vscsi_emu.driver.front_end import BackEndError, RequestRefused
from vscsi_emu.driver.request import Request
from vscsi_emu.driver.virtio_scsi import (
    CDB_SIZE_OFFSET,
    SENSE_SIZE_OFFSET,
    Options,
    VirtioScsi,
)
from vscsi_emu.virtio import vhost_user as vu
from vscsi_emu.virtio.config import SIZE, ScsiConfig
from vscsi_emu.virtio.features import Feature, Status
from vscsi_emu.virtio.scsi import encode_lun

DEFINED = Feature(0)
for _feature in Feature:
    DEFINED |= _feature


# ── Features ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.normative("rsvd.d1", "rsvd.leg.d3", "rsvd.d8", "feat.d4")
def test_offered_features(server: Server) -> None:
    with connect(server) as bus:
        offered = Feature(bus.device_features())
    for feature in (
        Feature.VERSION_1,
        Feature.ANY_LAYOUT,
        Feature.INDIRECT_DESC,
        Feature.EVENT_IDX,
        Feature.SCSI_HOTPLUG,
        Feature.SCSI_CHANGE,
    ):
        assert feature in offered
    assert not offered & (Feature.SCSI_INOUT | Feature.SCSI_T10_PI | Feature.SR_IOV)
    assert not offered & ~DEFINED


@pytest.mark.normative("feat.d2", "feat.d5")
def test_every_subset_is_accepted(server: Server) -> None:
    with connect(server) as bus:
        offered = bus.device_features()
        bits = [1 << n for n in range(64) if offered >> n & 1]
        for count in [*range(len(bits) + 1)] * 2:
            for chosen in itertools.combinations(bits, count):
                bus.reset()
                bus.set_status(Status.ACKNOWLEDGE | Status.DRIVER)
                bus.set_driver_features(sum(chosen))
                status = Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK
                bus.set_status(status)
                assert bus.status() == status, f"{Feature(sum(chosen))!r} was refused"


@pytest.mark.normative("vu.comm.b6")
@pytest.mark.parametrize("bit", [0, 3, 5, 34, 37, 50, 63])
def test_a_feature_that_was_not_offered(server: Server, bit: int) -> None:
    """Refused, or the session ends; never accepted."""
    with connect(server) as bus:
        assert not bus.device_features() >> bit & 1
        with pytest.raises((RequestRefused, BackEndError)):
            bus.set_driver_features(Feature.VERSION_1 | 1 << bit)


# ── Configuration ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.normative(
    "scsi.cfg.d1",
    "scsi.cfg.d2",
    "scsi.cfg.d3",
    "scsi.cfg.d4",
    "scsi.cfg.d5",
    "scsi.cfg.d7",
    "cfg.d1",
    "cfg.d3",
)
def test_configuration_before_any_negotiation(server: Server) -> None:
    with connect(server) as bus:
        config = ScsiConfig.unpack(bus.read_config(0, SIZE))
    assert config.num_queues == server.queues
    assert (config.sense_size, config.cdb_size) == (96, 32)
    assert config.max_channel == 0
    assert config.max_target == 255
    assert config.max_lun == 16383
    assert config.event_info_size >= 16
    assert config.seg_max > 0
    assert config.max_sectors > 0
    assert config.cmd_per_lun > 0


@pytest.mark.normative("scsi.cfg.d6")
def test_configuration_is_the_same_without_features(server: Server) -> None:
    with attach(server) as modern:
        with_features = modern.device.config
    with attach(server, Options(features=Feature(0))) as legacy:
        assert legacy.device.config == with_features


@pytest.mark.normative("vu.cfg.b1")
@pytest.mark.parametrize(("offset", "length"), [(0, 1), (0, SIZE), (3, 7), (SIZE - 1, 1), (20, 8)])
def test_any_piece_of_configuration(guest: Guest, offset: int, length: int) -> None:
    whole = guest.bus.read_config(0, SIZE)
    assert guest.bus.read_config(offset, length) == whole[offset : offset + length]


@pytest.mark.normative("vu.cfg.b2")
@pytest.mark.parametrize(("offset", "length"), [(0, SIZE + 1), (SIZE, 1), (0xFFFFFFFF, 4)])
def test_configuration_past_its_end(guest: Guest, offset: int, length: int) -> None:
    with pytest.raises(RequestRefused):
        guest.bus.read_config(offset, length)
    assert guest.bus.read_config(0, 4)


@pytest.mark.normative("vu.cfg.b4")
@pytest.mark.parametrize("offset", [0, 4, 8, 12, 16, 28, 30, 32])
def test_read_only_fields(guest: Guest, offset: int) -> None:
    before = guest.bus.read_config(0, SIZE)
    with pytest.raises(RequestRefused):
        guest.bus.write_config(offset, b"\x5a\xa5")
    assert guest.bus.read_config(0, SIZE) == before
    Disk(guest.device, 0, 0).ready()


@pytest.mark.normative("vu.cfg.b3")
@pytest.mark.parametrize("flags", [2, 0x8000_0000])
def test_unknown_flags_of_a_write(guest: Guest, flags: int) -> None:
    payload = vu.ConfigSpace(CDB_SIZE_OFFSET, flags, (64).to_bytes(4, "little"))
    with pytest.raises(RequestRefused):
        guest.front_end.put(vu.SET_CONFIG, payload)
    assert guest.bus.read_config(CDB_SIZE_OFFSET, 4) == (32).to_bytes(4, "little")


@pytest.mark.parametrize(("offset", "size"), [(CDB_SIZE_OFFSET, 1 << 20), (SENSE_SIZE_OFFSET, 0)])
def test_sizes_that_cannot_work(guest: Guest, offset: int, size: int) -> None:
    with pytest.raises(RequestRefused):
        guest.bus.write_config(offset, size.to_bytes(4, "little"))
    Disk(guest.device, 0, 0).ready()


@pytest.mark.normative("scsi.cfg.d9", "scsi.req.d22", "scsi.req.d23")
@pytest.mark.parametrize("cdb_size", [16, 32, 33, 64, 260])
@pytest.mark.parametrize("sense_size", [18, 96, 97, 252])
def test_sizes_of_requests(server: Server, cdb_size: int, sense_size: int) -> None:
    """Data come right behind the areas, whatever their sizes; sense fits its area."""
    with attach(server, Options(cdb_size=cdb_size, sense_size=sense_size)) as guest:
        disk = Disk(guest.device, 0, 0).ready()
        data = pattern(1024, seed=cdb_size)
        expect_good(disk.run(cdb.write_16(8, 2), data_out=data))
        result = disk.run(cdb.read_16(8, 2), data_in_length=1024)
        expect_good(result)
        assert result.data == data
        result = disk.run(b"\xff")
        expect_sense(result, cdb.ILLEGAL_REQUEST, 0x2000)
        assert len(result.sense) <= sense_size


@pytest.mark.normative("scsi.cfg.d9")
def test_a_size_changed_while_requests_flow(server: Server) -> None:
    with attach(server) as guest:
        Disk(guest.device, 0, 0).ready().read(0, 1)
        device = VirtioScsi(guest.bus, Options(cdb_size=40, sense_size=40))
        assert Disk(device, 0, 0).ready().read(0, 1)
        device = VirtioScsi(guest.bus)
        assert device.config.cdb_size == 32
        assert Disk(device, 0, 0).ready().read(0, 1)


def test_a_cdb_longer_than_its_field_is_the_drivers_error(guest: Guest) -> None:
    request = Request(encode_lun(0, 0), bytes(33), 1)
    with pytest.raises(ValueError, match="cdb_size is 32"):
        guest.device.submit_request(request)
