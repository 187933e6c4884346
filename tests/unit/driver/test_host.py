"""Units that come and go, and the events that say so."""

import pytest

from tests.unit.driver.disks import BLOCK, FakeDisks
from vscsi_emu.driver.host import Change, Kind, ScsiHost
from vscsi_emu.driver.virtio_scsi import VirtioScsi
from vscsi_emu.virtio.scsi import EVENTS_MISSED, Event, EventType, ResetReason, encode_lun

DISK = bytes(64 * BLOCK)


@pytest.fixture
def fake() -> FakeDisks:
    return FakeDisks({(0, 0): bytearray(DISK), (0, 5): bytearray(DISK), (2, 1): bytearray(DISK)})


@pytest.fixture
def host(fake: FakeDisks) -> ScsiHost:
    host = ScsiHost(VirtioScsi(fake.bus, timeout=1.0))
    host.scan()
    return host


def hotplug(target: int, lun: int, reason: ResetReason) -> Event:
    return Event(EventType.TRANSPORT_RESET, encode_lun(target, lun), reason)


def test_a_scan_finds_all_units(host: ScsiHost) -> None:
    assert sorted(host.units) == sorted(host.disks) == [(0, 0), (0, 5), (2, 1)]
    assert host.disks[2, 1].blocks == 64
    assert host.scan() == []
    assert host.next_changes() == []


def test_a_scan_of_one_target_leaves_the_others_alone(host: ScsiHost, fake: FakeDisks) -> None:
    fake.disks.clear()
    assert host.scan(range(2, 3)) == [Change(Kind.REMOVED, (2, 1))]
    assert sorted(host.units) == [(0, 0), (0, 5)]


@pytest.mark.normative("scsi.feat.r1")
def test_hot_plug(host: ScsiHost, fake: FakeDisks) -> None:
    fake.disks[7, 300] = bytearray(DISK)
    fake.send(hotplug(7, 300, ResetReason.RESCAN))
    assert host.next_changes() == [Change(Kind.ADDED, (7, 300))]
    assert host.disks[7, 300].read(0, 64) == DISK


@pytest.mark.normative("scsi.feat.r1")
def test_hot_unplug(host: ScsiHost, fake: FakeDisks) -> None:
    del fake.disks[0, 5]
    fake.send(hotplug(0, 5, ResetReason.REMOVED))
    assert host.next_changes() == [Change(Kind.REMOVED, (0, 5))]
    assert sorted(host.disks) == [(0, 0), (2, 1)]


@pytest.mark.normative("scsi.evt.r7")
@pytest.mark.parametrize("reason", [ResetReason.RESCAN, ResetReason.REMOVED])
def test_lun_0_stands_for_the_target(host: ScsiHost, fake: FakeDisks, reason: ResetReason) -> None:
    del fake.disks[0, 5]
    fake.disks[0, 9] = bytearray(DISK)
    fake.send(hotplug(0, 0, reason))
    assert host.next_changes() == [Change(Kind.REMOVED, (0, 5)), Change(Kind.ADDED, (0, 9))]


@pytest.mark.normative("scsi.feat.r2")
def test_a_changed_capacity(host: ScsiHost, fake: FakeDisks) -> None:
    fake.disks[2, 1] = bytearray(2 * DISK)
    fake.send(Event(EventType.PARAM_CHANGE, encode_lun(2, 1), 0x2A | 0x09 << 8))
    assert host.next_changes() == [Change(Kind.CHANGED, (2, 1))]
    assert host.disks[2, 1].blocks == 128


@pytest.mark.normative("scsi.evt.r5")
def test_missed_events_are_made_up_for(host: ScsiHost, fake: FakeDisks) -> None:
    del fake.disks[0, 5]
    fake.disks[9, 0] = bytearray(DISK)
    fake.disks[0, 0] = bytearray(3 * DISK)
    fake.send(Event(EVENTS_MISSED | EventType.NO_EVENT, bytes(8), 0))
    changes = host.next_changes()
    assert Change(Kind.REMOVED, (0, 5)) in changes
    assert Change(Kind.ADDED, (9, 0)) in changes
    assert host.disks[0, 0].blocks == 192


@pytest.mark.parametrize(
    "event",
    [
        Event(EventType.NO_EVENT, bytes(8), 0),
        Event(EventType.TRANSPORT_RESET, encode_lun(0, 5), ResetReason.HARD),
        Event(EventType.TRANSPORT_RESET, b"\xff" * 8, ResetReason.REMOVED),
        Event(EventType.TRANSPORT_RESET, encode_lun(0, 6), ResetReason.REMOVED),
        Event(EventType.TRANSPORT_RESET, encode_lun(0, 5), ResetReason.RESCAN),
        Event(EventType.PARAM_CHANGE, encode_lun(3, 3), 0x2A),
        Event(99, encode_lun(0, 5), 0),
    ],
)
def test_events_that_change_nothing(host: ScsiHost, fake: FakeDisks, event: Event) -> None:
    fake.send(event)
    assert host.next_changes() == []
    assert sorted(host.disks) == [(0, 0), (0, 5), (2, 1)]


@pytest.mark.normative("scsi.evt.r1")
def test_event_buffers_are_given_back(host: ScsiHost, fake: FakeDisks) -> None:
    given = len(fake.bus.kept)
    assert given
    for _ in range(3 * given):
        fake.send(Event(EventType.NO_EVENT, bytes(8), 0))
        assert host.next_changes() == []
    assert len(fake.bus.kept) == given
