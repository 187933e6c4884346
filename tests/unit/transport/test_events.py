"""Events, hot-plug and shared units: what an HBA tells its driver unasked."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.unit.transport.harness import Server, attached, serving
from vscsi_emu.backends.uri import parse_uri
from vscsi_emu.config import Config, HbaConfig, LunConfig
from vscsi_emu.driver.vhost_user import VhostUserBus
from vscsi_emu.driver.virtio_scsi import KNOWN, Options, VirtioScsi
from vscsi_emu.hba.events import BACKLOG
from vscsi_emu.scsi.identity import Identity
from vscsi_emu.scsi.limits import Limits
from vscsi_emu.scsi.passing import MULTIMEDIA
from vscsi_emu.scsi.unit import LogicalUnit
from vscsi_emu.virtio.features import Feature
from vscsi_emu.virtio.scsi import (
    EVENTS_MISSED,
    Event,
    EventType,
    ResetReason,
    Response,
    TmfType,
    encode_lun,
)

WAIT = 10.0
QUIET = 0.2
TEST_UNIT_READY = bytes(6)
CAPACITY = 0x2A | 0x09 << 8
PARAMETERS = 0x2A | 0x00 << 8


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """Two HBAs. 0:0 is the same unit in both; the first one has 0:3 as well."""
    luns = (LunConfig("a", parse_uri("mem:1M")), LunConfig("b", parse_uri("mem:1M")))
    hbas = (
        HbaConfig(str(tmp_path / "1.sock"), None, 1, {(0, 0): "a", (0, 3): "b"}),
        HbaConfig(str(tmp_path / "2.sock"), None, 1, {(0, 0): "a"}),
    )
    with serving(Config(luns, hbas)) as running:
        yield running


def unit_attentions(device: VirtioScsi, target: int, lun: int) -> list[int]:
    """Takes all that are pending: ASC and ASCQ of each."""
    codes: list[int] = []
    while True:
        result = device.execute(target, lun, TEST_UNIT_READY)
        if result.status == 0:
            return codes
        assert result.sense[2] & 0xF == 6, result
        codes.append(result.sense[12] << 8 | result.sense[13])


def sense_code(device: VirtioScsi, target: int, lun: int) -> tuple[int, int]:
    """Sense key, and ASC with ASCQ, of a TEST UNIT READY."""
    sense = device.execute(target, lun, TEST_UNIT_READY).sense
    return sense[2] & 0xF, sense[12] << 8 | sense[13]


@pytest.mark.normative(
    "scsi.feat.d1", "scsi.evt.d9", "scsi.evt.d12", "scsi.evt.d15", "scsi.evt.d10", "scsi.evt.d13"
)
def test_hot_plug_and_unplug(server: Server) -> None:
    with attached(server.sockets[0]) as device:
        assert unit_attentions(device, 0, 0) == [0x2901]
        unit = server.run(server.hba.remove_lun((0, 3)))
        removed = Event(EventType.TRANSPORT_RESET, encode_lun(0, 3), ResetReason.REMOVED)
        assert device.next_event(WAIT) == removed
        assert unit_attentions(device, 0, 0) == [0x3F0E]
        assert sense_code(device, 0, 3) == (0x5, 0x2500)

        for address in ((0, 300), (9, 0)):
            server.do(partial(server.hba.add_lun, address, unit))
            rescan = Event(EventType.TRANSPORT_RESET, encode_lun(*address), ResetReason.RESCAN)
            assert device.next_event(WAIT) == rescan
            if address[0] == 0:
                assert unit_attentions(device, 0, 0) == [0x3F0E]
            assert unit_attentions(device, *address)[0] == 0x2901


@pytest.mark.normative("scsi.evt.d7")
def test_no_hot_plug_event_without_the_feature(server: Server) -> None:
    options = Options(features=KNOWN & ~Feature.SCSI_HOTPLUG)
    with attached(server.sockets[0], options) as device:
        server.run(server.hba.remove_lun((0, 3)))
        assert device.next_event(QUIET) is None


@pytest.mark.normative("scsi.req.d17")
def test_a_target_stays_without_its_last_unit(server: Server) -> None:
    with attached(server.sockets[0]) as device:
        for lun in (0, 3):
            server.run(server.hba.remove_lun((0, lun)))
        assert sense_code(device, 0, 0) == (0x5, 0x2500)
        assert device.execute(1, 0, TEST_UNIT_READY).response == Response.BAD_TARGET


@pytest.mark.normative("scsi.feat.d2", "scsi.evt.d17", "scsi.evt.d4")
def test_a_new_capacity_reaches_every_hba(server: Server) -> None:
    unit = server.service.units["a"]
    with attached(server.sockets[0]) as first, attached(server.sockets[1]) as second:
        for device in (first, second):
            unit_attentions(device, 0, 0)
        server.do(lambda: unit.resize(unit.blocks // 2))
        for device in (first, second):
            assert device.next_event(WAIT) == Event(
                EventType.PARAM_CHANGE, encode_lun(0, 0), CAPACITY
            )
            assert unit_attentions(device, 0, 0) == [0x2A09]


def test_no_parameter_event_without_the_feature(server: Server) -> None:
    unit = server.service.units["a"]
    options = Options(features=KNOWN & ~Feature.SCSI_CHANGE)
    with attached(server.sockets[0], options) as device:
        server.do(lambda: unit.resize(unit.blocks // 2))
        assert device.next_event(QUIET) is None
        assert 0x2A09 in unit_attentions(device, 0, 0)


@pytest.mark.normative("scsi.evt.d11", "scsi.evt.d14")
def test_a_reset_by_one_driver_is_told_to_the_other(server: Server) -> None:
    with attached(server.sockets[0]) as first, attached(server.sockets[1]) as second:
        for device in (first, second):
            unit_attentions(device, 0, 0)
        assert first.task_management(TmfType.LOGICAL_UNIT_RESET, 0, 0) == 0
        assert second.next_event(WAIT) == Event(
            EventType.TRANSPORT_RESET, encode_lun(0, 0), ResetReason.HARD
        )
        assert first.next_event(QUIET) is None, "who asked for it knows"
        for device in (first, second):
            assert unit_attentions(device, 0, 0) == [0x2903]


def test_a_cleared_task_set_is_told_to_nobody_who_lost_nothing(server: Server) -> None:
    with attached(server.sockets[0]) as first, attached(server.sockets[1]) as second:
        for device in (first, second):
            unit_attentions(device, 0, 0)
        assert first.task_management(TmfType.CLEAR_TASK_SET, 0, 0) == 0
        assert unit_attentions(first, 0, 0) == []
        assert unit_attentions(second, 0, 0) == []


@pytest.mark.normative("scsi.evt.d18")
def test_events_wait_for_buffers(server: Server) -> None:
    unit = server.service.units["a"]
    blocks = unit.blocks
    with attached(server.sockets[0], Options(event_buffers=2)) as device:
        for step in range(1, BACKLOG // 2):
            server.do(partial(unit.resize, blocks - step))
        for _ in range(1, BACKLOG // 2):
            event = device.next_event(WAIT)
            assert event is not None
            assert event.event == EventType.PARAM_CHANGE
        assert device.next_event(QUIET) is None


@pytest.mark.normative("scsi.evt.d2", "scsi.evt.d5", "scsi.evt.d6")
def test_lost_events_are_admitted(server: Server) -> None:
    unit = server.service.units["a"]
    blocks = unit.blocks
    with attached(server.sockets[0], Options(event_buffers=1)) as device:
        for step in range(1, 2 * BACKLOG):
            server.do(partial(unit.resize, blocks - step))
        events: list[Event] = []
        while event := device.next_event(QUIET if events else WAIT):
            events.append(event)
        *told, last = events
        assert {event.event for event in told} == {EventType.PARAM_CHANGE}
        assert BACKLOG <= len(told) < 2 * BACKLOG - 1
        assert last == Event(EventType.NO_EVENT | EVENTS_MISSED, bytes(8), 0)


def test_a_new_driver_hears_nothing_of_old_events(server: Server) -> None:
    unit = server.service.units["a"]
    with attached(server.sockets[0], Options(event_buffers=0)):
        server.do(lambda: unit.resize(unit.blocks - 1))
    with attached(server.sockets[0]) as device:
        assert device.next_event(QUIET) is None


def add_small_unit(server: Server) -> None:
    """A unit whose transfer limit is below all others': 64 blocks of 512 bytes."""
    small = LogicalUnit(
        server.service.units["a"].data_plane.engine,
        Identity("S", bytes.fromhex("3000000000000001")),
        limits=Limits(max_transfer_blocks=64),
    )
    server.do(partial(server.hba.add_lun, (1, 0), small))


def bus_of(device: VirtioScsi) -> VhostUserBus:
    assert isinstance(device.bus, VhostUserBus)
    return device.bus


@pytest.mark.normative("vu.req.b5")
def test_a_lower_limit_is_a_change_of_configuration(server: Server) -> None:
    with attached(server.sockets[0]) as device:
        front_end = bus_of(device).front_end
        assert device.config.max_sectors > 64
        add_small_unit(server)
        front_end.poll([], WAIT)
        assert front_end.config_changes == 1
        max_sectors = front_end.get_config(8, 4)
        assert int.from_bytes(max_sectors, "little") == 64


@pytest.mark.normative("scsi.evt.d4")
def test_units_that_were_there_say_that_a_limit_is_lower(server: Server) -> None:
    with attached(server.sockets[0]) as device:
        for lun in (0, 3):
            unit_attentions(device, 0, lun)
        add_small_unit(server)
        events = [device.next_event(WAIT) for _ in range(3)]
        assert events == [
            Event(EventType.PARAM_CHANGE, encode_lun(0, 0), PARAMETERS),
            Event(EventType.PARAM_CHANGE, encode_lun(0, 3), PARAMETERS),
            Event(EventType.TRANSPORT_RESET, encode_lun(1, 0), ResetReason.RESCAN),
        ]
        # REPORTED LUNS DATA HAS CHANGED is of the target that the new unit made, not of this one.
        assert unit_attentions(device, 0, 0) == [0x2A00]
        server.do(partial(server.hba.add_lun, (1, 1), server.service.units["a"]))
        event = device.next_event(WAIT)
        assert event
        assert event.event == EventType.TRANSPORT_RESET, "no limit is lower"


@pytest.mark.normative("scsi.evt.d8")
def test_multimedia_devices_change_without_an_event(server: Server) -> None:
    unit = server.service.units["b"]
    with attached(server.sockets[0]) as device:
        unit_attentions(device, 0, 3)
        unit.device_type = MULTIMEDIA
        server.do(lambda: unit.resize(unit.blocks - 1))
        assert unit_attentions(device, 0, 3) == [0x2A09]
        assert device.next_event(QUIET) is None


@pytest.mark.normative("vu.susp.b3")
def test_no_message_of_its_own_while_all_rings_are_stopped(server: Server) -> None:
    with attached(server.sockets[0]) as device:
        bus = bus_of(device)
        for index in range(3):
            bus.stop_queue(index)
        add_small_unit(server)
        bus.front_end.poll([], QUIET)
        assert bus.front_end.config_changes == 0
        bus.run_queue(2)
        bus.front_end.poll([], WAIT)
        assert bus.front_end.config_changes == 1
