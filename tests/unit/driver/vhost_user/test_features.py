"""What a front end sends follows from what the back end offers ("Communication", "Multiple queue
support", "In-band notifications", "Message types")."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tests.unit.driver.vhost_user.back_end import EVERYTHING, FEATURES, BackEnd, bus_to
from vscsi_emu.driver.front_end import NotNegotiated
from vscsi_emu.driver.vhost_user import SUPPORTED, Notify
from vscsi_emu.driver.virtio_scsi import Options, VirtioScsi
from vscsi_emu.virtio import vhost_user as vu
from vscsi_emu.virtio.vhost_user import MessageType, Payload, ProtocolFeature

NO_BIT_30 = FEATURES & ~vu.F_PROTOCOL_FEATURES
ALL_QUEUES = Options(queues=None)
PROTOCOL = (vu.GET_PROTOCOL_FEATURES, vu.SET_PROTOCOL_FEATURES)
POSTCOPY = {28, 29, 30}
DEVICE_STATE = {42, 43}


def live(back_end: BackEnd) -> None:
    """A driver probes the device and resets it, as far as the back end lets it."""
    with bus_to(back_end) as bus:
        if ProtocolFeature.CONFIG in bus.front_end.protocol_features:
            VirtioScsi(bus, ALL_QUEUES)
        else:
            with pytest.raises(NotNegotiated, match="CONFIG"):
                VirtioScsi(bus, ALL_QUEUES)
        bus.status()
        bus.reset()


@pytest.mark.normative("vu.feat.f3")
def test_the_owner_comes_first() -> None:
    live(back_end := BackEnd())
    assert back_end.sent[0].message is vu.SET_OWNER
    assert len(back_end.named(vu.SET_OWNER)) == 1


@pytest.mark.normative("vu.msg.f1")
def test_every_request_is_of_version_1() -> None:
    live(back_end := BackEnd())
    flags = {sent.flags for sent in back_end.sent}
    assert flags == {vu.VERSION, vu.VERSION | vu.FLAG_NEED_REPLY}


@pytest.mark.normative("vu.feat.f1", "vu.feat.f2", "vu.req.f1")
def test_without_bit_30_nothing_of_the_protocol_features() -> None:
    offering, plain = BackEnd(), BackEnd(features=NO_BIT_30)
    live(offering)
    live(plain)
    for message in (*PROTOCOL, vu.SET_BACKEND_REQ_FD):
        assert offering.named(message)
        assert not plain.named(message)


@dataclass(frozen=True)
class Extension:
    """Messages that a protocol feature allows; `used`: in the life of a driver."""

    feature: ProtocolFeature
    messages: tuple[tuple[MessageType, Payload | None, int], ...]
    """With a payload and a number of descriptors."""
    used: bool = True


_REGION = vu.SingleRegion(0, 4096, 0, 0)
EXTENSIONS = {
    "vu.mq.f3": Extension(ProtocolFeature.MQ, ((vu.GET_QUEUE_NUM, None, 0),)),
    "vu.req.f1": Extension(ProtocolFeature.BACKEND_REQ, ((vu.SET_BACKEND_REQ_FD, None, 1),)),
    "vu.cfg.f2": Extension(
        ProtocolFeature.CONFIG,
        ((vu.GET_CONFIG, vu.ConfigSpace(0, 0, bytes(4)), 0),),
    ),
    "vu.reset.f1": Extension(ProtocolFeature.RESET_DEVICE, ((vu.RESET_DEVICE, None, 0),)),
    "vu.status.f1": Extension(
        ProtocolFeature.STATUS,
        ((vu.SET_STATUS, vu.U64(1), 0), (vu.GET_STATUS, None, 0)),
    ),
    "vu.slots.f3": Extension(
        ProtocolFeature.CONFIGURE_MEM_SLOTS,
        (
            (vu.GET_MAX_MEM_SLOTS, None, 0),
            (vu.ADD_MEM_REG, _REGION, 1),
            (vu.REM_MEM_REG, _REGION, 0),
        ),
        used=False,
    ),
    "vu.vring.f3": Extension(
        ProtocolFeature.CROSS_ENDIAN,
        ((vu.SET_VRING_ENDIAN, vu.VringState(0, 0), 0),),
        used=False,
    ),
}


@pytest.mark.parametrize(
    "extension",
    [pytest.param(e, id=row, marks=pytest.mark.normative(row)) for row, e in EXTENSIONS.items()],
)
def test_messages_of_a_protocol_feature_go_out_with_it_only(extension: Extension) -> None:
    messages = {message for message, _, _ in extension.messages}
    live(offering := BackEnd(protocol=EVERYTHING))
    assert {sent.message for sent in offering.named(*messages)} == (
        messages if extension.used else set()
    )
    protocol = EVERYTHING & ~extension.feature
    live(lacking := BackEnd(protocol=protocol))
    assert not lacking.named(*messages)
    with bus_to(asked := BackEnd(protocol=protocol)) as bus:
        for message, payload, count in extension.messages:
            with pytest.raises(NotNegotiated, match=str(extension.feature.name)):
                bus.front_end.put(message, payload, [bus.memory.fileno()] * count)
            if message.reply is not None:
                with pytest.raises(NotNegotiated, match=str(extension.feature.name)):
                    bus.front_end.get(message, payload)
    assert not asked.named(*messages)


@pytest.mark.normative("vu.cfg.f2")
def test_configuration_is_neither_read_nor_written_without_the_feature() -> None:
    back_end = BackEnd(protocol=SUPPORTED & ~ProtocolFeature.CONFIG)
    with bus_to(back_end) as bus:
        with pytest.raises(NotNegotiated):
            bus.read_config(0, 4)
        with pytest.raises(NotNegotiated):
            bus.write_config(24, bytes(4))
    assert not back_end.named(vu.GET_CONFIG, vu.SET_CONFIG)


@pytest.mark.normative("vu.comm.f3", "vu.post.f1", "vu.state.f4")
@pytest.mark.parametrize(
    "protocol",
    [ProtocolFeature(0), EVERYTHING]
    + [feature for feature in ProtocolFeature if feature in SUPPORTED]
    + [EVERYTHING & ~feature for feature in ProtocolFeature if feature in SUPPORTED],
)
def test_nothing_is_used_that_was_not_negotiated(protocol: ProtocolFeature) -> None:
    live(back_end := BackEnd(protocol=protocol))
    assert back_end.accepted == protocol & SUPPORTED
    settled = [sent.message for sent in back_end.sent].index(vu.SET_PROTOCOL_FEATURES)
    for position, sent in enumerate(back_end.sent):
        assert sent.message.needs in back_end.accepted
        acknowledged = ProtocolFeature.REPLY_ACK in back_end.accepted and position > settled
        assert sent.need_reply == (acknowledged and sent.message.reply is None)
    assert not back_end.numbers() & (POSTCOPY | DEVICE_STATE)


@pytest.mark.normative("vu.inband.f2")
@pytest.mark.parametrize("notify", Notify)
def test_in_band_notifications_only_where_they_are_wanted(notify: Notify) -> None:
    back_end = BackEnd(protocol=EVERYTHING)
    with bus_to(back_end, kick=notify):
        pass
    inband = ProtocolFeature.INBAND_NOTIFICATIONS in back_end.accepted
    assert inband == (notify is Notify.INBAND)


PREREQUISITES = {
    "vu.inband.f1": (
        ProtocolFeature.INBAND_NOTIFICATIONS,
        [ProtocolFeature.BACKEND_REQ, ProtocolFeature.REPLY_ACK],
    ),
    "vu.vring.f2": (
        ProtocolFeature.GET_VRING_BASE_SKIP_DRAIN,
        [ProtocolFeature.GET_VRING_BASE_INFLIGHT, ProtocolFeature.INFLIGHT_SHMFD],
    ),
}


@pytest.mark.parametrize(
    ("feature", "missing"),
    [
        pytest.param(feature, missing, id=f"{row}-{missing.name}", marks=pytest.mark.normative(row))
        for row, (feature, needed) in PREREQUISITES.items()
        for missing in needed
    ],
)
def test_a_protocol_feature_is_left_without_what_it_needs(
    feature: ProtocolFeature, missing: ProtocolFeature
) -> None:
    for offered, accepted in ((EVERYTHING, True), (EVERYTHING & ~missing, False)):
        back_end = BackEnd(protocol=offered)
        with bus_to(back_end, protocol_features=EVERYTHING):
            pass
        assert (feature in back_end.accepted) == accepted
    # Nor is it accepted where it is only the front end that does not want the rest.
    back_end = BackEnd(protocol=EVERYTHING)
    with bus_to(back_end, protocol_features=EVERYTHING & ~missing):
        pass
    assert feature not in back_end.accepted


@pytest.mark.normative("vu.cfg.f1")
def test_the_configuration_is_read_once() -> None:
    back_end = BackEnd()
    with bus_to(back_end) as bus:
        device = VirtioScsi(bus, ALL_QUEUES)
        for _ in range(3):
            assert device.max_transfer(512)
            assert device.config.num_queues == 3
    assert len(back_end.named(vu.GET_CONFIG)) == 1
