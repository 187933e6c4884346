"""How a front end sets up, kicks and stops rings ("Ring states", "In-band notifications")."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.driver.vhost_user.back_end import FEATURES, BackEnd, bus_to, kicked
from vscsi_emu.driver.front_end import RequestRefused
from vscsi_emu.driver.vhost_user import SUPPORTED, Notify, VhostUserBus
from vscsi_emu.driver.virtio_scsi import (
    CONTROL_QUEUE,
    EVENT_QUEUE,
    REQUEST_QUEUE,
    Options,
    ProbeError,
    VirtioScsi,
)
from vscsi_emu.driver.vring import RingLayout
from vscsi_emu.virtio import vhost_user as vu
from vscsi_emu.virtio.vhost_user import MessageType, ProtocolFeature

STATES = (vu.SET_VRING_NUM, vu.SET_VRING_BASE, vu.SET_VRING_ENABLE, vu.GET_VRING_BASE)
NOTIFIERS = (vu.SET_VRING_KICK, vu.SET_VRING_CALL, vu.SET_VRING_ERR)
QUEUES = [CONTROL_QUEUE, EVENT_QUEUE, REQUEST_QUEUE, REQUEST_QUEUE + 1, REQUEST_QUEUE + 2]
INBAND = SUPPORTED | ProtocolFeature.INBAND_NOTIFICATIONS


def indices(back_end: BackEnd, message: MessageType) -> list[int]:
    """Rings that a message named, in order."""
    payloads: list[Any] = [sent.payload for sent in back_end.named(message)]
    return [payload.index for payload in payloads]


def start(bus: VhostUserBus, index: int) -> RingLayout:
    layout = RingLayout.modern(bus.allocator, 16)
    bus.start_queue(index, layout)
    return layout


@pytest.mark.normative("vu.mq.f4")
def test_each_ring_is_named_by_its_index() -> None:
    layouts = {}
    with bus_to(back_end := BackEnd()) as bus:
        for index in QUEUES:
            layouts[index] = start(bus, index)
        addresses = {index: bus.user_address(layouts[index].desc) for index in QUEUES}
        bus.reset()
    for message in (*STATES, *NOTIFIERS, vu.SET_VRING_ADDR):
        assert indices(back_end, message) == QUEUES, message
    tables: list[Any] = [sent.payload for sent in back_end.named(vu.SET_VRING_ADDR)]
    assert {table.index: table.descriptor for table in tables} == addresses


@pytest.mark.normative("vu.vring.f1")
def test_the_number_of_get_vring_base_is_0() -> None:
    with bus_to(back_end := BackEnd()) as bus:
        for index in QUEUES:
            start(bus, index)
            bus.stop_queue(index)
    assert [sent.payload for sent in back_end.named(vu.GET_VRING_BASE)] == [
        vu.VringState(index, 0) for index in QUEUES
    ]


@pytest.mark.normative("vu.ring.f1")
def test_a_ring_that_starts_is_kicked_once() -> None:
    with bus_to(back_end := BackEnd()) as bus:
        for index in QUEUES:
            start(bus, index)
            assert kicked(back_end, index) == 1


@pytest.mark.normative("vu.ring.f2")
@pytest.mark.parametrize("bit_30", [False, True])
def test_rings_are_enabled_with_bit_30_only(bit_30: bool) -> None:
    features = FEATURES if bit_30 else FEATURES & ~vu.F_PROTOCOL_FEATURES
    with bus_to(back_end := BackEnd(features=features)) as bus:
        for index in QUEUES:
            start(bus, index)
    assert indices(back_end, vu.SET_VRING_KICK) == QUEUES
    assert indices(back_end, vu.SET_VRING_ENABLE) == (QUEUES if bit_30 else [])


@pytest.mark.normative("vu.mq.f2")
@pytest.mark.parametrize("queues", [3, 4, 5, 8])
def test_no_more_queues_than_the_back_end_has(queues: int) -> None:
    """The device says that it has 3 request queues."""
    with bus_to(back_end := BackEnd(queues=queues)) as bus:
        device = VirtioScsi(bus, Options(queues=None))
        assert list(device.queues) == QUEUES[:queues]
        assert not bus.max_queue_size(queues)
    assert indices(back_end, vu.SET_VRING_NUM) == QUEUES[:queues]


@pytest.mark.normative("vu.mq.f2", "init.r6")
@pytest.mark.parametrize("queues", [0, 1, 2])
def test_a_back_end_without_a_request_queue_is_of_no_use(queues: int) -> None:
    with (
        bus_to(back_end := BackEnd(queues=queues)) as bus,
        pytest.raises(ProbeError, match=f"no queue {queues}"),
    ):
        VirtioScsi(bus)
    assert back_end.status & 0x80, "the device was not told FAILED"


@pytest.mark.normative("vu.mq.f1")
def test_the_queues_that_every_device_has_need_no_mq() -> None:
    with bus_to(back_end := BackEnd(protocol=SUPPORTED & ~ProtocolFeature.MQ)) as bus:
        VirtioScsi(bus)
    assert indices(back_end, vu.SET_VRING_KICK) == QUEUES[:3]


# ── In-band notifications ──────────────────────────────────────────────────────────────────────


@pytest.mark.normative("vu.inband.f3", "vu.inband.f4")
def test_an_in_band_kick_says_0_and_wants_an_answer() -> None:
    with bus_to(back_end := BackEnd(protocol=INBAND), kick=Notify.INBAND) as bus:
        for index in QUEUES:
            start(bus, index)
    kicks = back_end.named(vu.VRING_KICK)
    assert [sent.payload for sent in kicks] == [vu.VringState(index, 0) for index in QUEUES]
    assert all(sent.need_reply for sent in kicks)
    assert not back_end.named(vu.SET_VRING_KICK)


@pytest.mark.normative("vu.inband.f3")
def test_an_in_band_kick_waits_for_its_answer() -> None:
    refusing = BackEnd(protocol=INBAND, refused=frozenset({vu.VRING_KICK}))
    with (
        bus_to(refusing, kick=Notify.INBAND) as bus,
        pytest.raises(RequestRefused, match="VRING_KICK"),
    ):
        bus.notify(REQUEST_QUEUE)
    unanswered = BackEnd(protocol=INBAND, instead={vu.VRING_KICK: b""})
    with bus_to(unanswered, kick=Notify.INBAND) as bus:
        bus.front_end.timeout = 0.01
        with pytest.raises(TimeoutError, match="no answer"):
            bus.notify(REQUEST_QUEUE)
        assert bus.front_end.connection.fileno() == -1, "the connection is still open"
