"""Feature bits over registers (virtio 1.4, 2.2, 4.2.2 and 6)."""

import pytest

from tests.unit.virtio.mmio import OFFERED, Guest
from vscsi_emu.virtio.features import Feature, Status
from vscsi_emu.virtio.mmio import Misuse
from vscsi_emu.virtio.mmio_registers import LEGACY, Register

ALL = OFFERED | Feature.RING_RESET


def offered(guest: Guest) -> int:
    words = []
    for word in range(2):
        guest.set(Register.DEVICE_FEATURES_SEL, word)
        words.append(guest.get(Register.DEVICE_FEATURES))
    return words[0] | words[1] << 32


@pytest.mark.normative("mmio.reg.d15")
def test_device_features_by_selector() -> None:
    guest = Guest()
    assert offered(guest) == ALL
    guest.set(Register.DEVICE_FEATURES_SEL, 0)
    assert guest.get(Register.DEVICE_FEATURES) == ALL & 0xFFFF_FFFF
    for word in (2, 3, 0xFFFF_FFFF):
        guest.set(Register.DEVICE_FEATURES_SEL, word)
        assert guest.get(Register.DEVICE_FEATURES) == 0


@pytest.mark.normative("mmio.reg.d16")
def test_driver_features_by_selector() -> None:
    guest = Guest()
    guest.acknowledge()
    guest.set(Register.DRIVER_FEATURES_SEL, 1)
    guest.set(Register.DRIVER_FEATURES, Feature.VERSION_1 >> 32)
    guest.set(Register.DRIVER_FEATURES_SEL, 0)
    guest.set(Register.DRIVER_FEATURES, Feature.EVENT_IDX)
    assert Status.FEATURES_OK in guest.add_status(Status.FEATURES_OK)
    assert guest.backend.take() == [("features", Feature.VERSION_1 | Feature.EVENT_IDX)]


@pytest.mark.normative("feat.d2")
@pytest.mark.parametrize(
    "features",
    [
        Feature.VERSION_1,
        Feature.VERSION_1 | Feature.EVENT_IDX,
        Feature.VERSION_1 | Feature.INDIRECT_DESC | Feature.SCSI_HOTPLUG,
        OFFERED,
        ALL,
    ],
)
def test_any_valid_subset_is_accepted(features: Feature) -> None:
    assert Status.FEATURES_OK in Guest().negotiate(features)


@pytest.mark.parametrize(
    "features",
    [
        OFFERED | Feature.RING_PACKED,
        OFFERED | Feature.SCSI_INOUT,
        OFFERED | 1 << 63,
        pytest.param(OFFERED | 1 << 30, marks=pytest.mark.normative("rsvd.leg.d4")),
        # Version 2 has no legacy interface: a driver that would need it is refused.
        pytest.param(
            OFFERED & ~Feature.VERSION_1, marks=pytest.mark.normative("rsvd.d2", "feat.leg.d2")
        ),
        0,
    ],
)
@pytest.mark.normative("feat.d3")
def test_features_ok_is_refused(features: int) -> None:
    guest = Guest()
    assert guest.negotiate(features) == Status.ACKNOWLEDGE | Status.DRIVER
    assert guest.device.counters[Misuse.FEATURES_UNSUPPORTED] == 1
    assert not guest.backend.calls
    guest.add_status(Status.DRIVER_OK)
    assert Status.DRIVER_OK not in guest.status, "an unusable device does not start"


@pytest.mark.normative("feat.d3")
@pytest.mark.parametrize("word", [2, 3, 0xFFFF_FFFF])
def test_bits_beyond_all_offered_words_are_refused(word: int) -> None:
    guest = Guest()
    guest.set(Register.DRIVER_FEATURES_SEL, word)
    guest.set(Register.DRIVER_FEATURES, 1)
    assert Status.FEATURES_OK not in guest.negotiate()


def test_no_bits_beyond_the_offered_words_are_fine() -> None:
    guest = Guest()
    guest.set(Register.DRIVER_FEATURES_SEL, 2)
    guest.set(Register.DRIVER_FEATURES, 0)
    assert Status.FEATURES_OK in guest.negotiate()


def test_a_refused_driver_may_ask_for_less() -> None:
    guest = Guest()
    assert Status.FEATURES_OK not in guest.negotiate(OFFERED | Feature.SCSI_T10_PI)
    guest.choose(OFFERED)
    assert Status.FEATURES_OK in guest.add_status(Status.FEATURES_OK)


@pytest.mark.normative("feat.d5")
def test_what_was_accepted_once_is_accepted_after_a_reset() -> None:
    guest = Guest()
    guest.run(ALL)
    guest.reset()
    assert Status.FEATURES_OK not in guest.negotiate(ALL | Feature.RING_PACKED)
    guest.reset()
    assert Status.FEATURES_OK in guest.negotiate(ALL)


def test_features_are_frozen_after_features_ok() -> None:
    guest = Guest()
    guest.negotiate(Feature.VERSION_1)
    guest.backend.take()
    guest.choose(OFFERED)
    assert guest.device.counters[Misuse.FEATURES_SETTLED] == 2
    guest.add_status(Status.FEATURES_OK)
    guest.add_status(Status.DRIVER_OK)
    assert not guest.backend.calls


def test_ring_reset_is_the_transports_own() -> None:
    guest = Guest()
    guest.negotiate(ALL)
    assert guest.backend.take() == [("features", OFFERED)]


@pytest.mark.normative("mmio.leg.d8")
def test_legacy_features_by_selector() -> None:
    guest = Guest(LEGACY)
    assert offered(guest) == OFFERED & 0xFFFF_FFFF
    guest.acknowledge()
    guest.choose(Feature.EVENT_IDX)
    guest.add_status(Status.DRIVER_OK)
    assert guest.backend.take() == [("features", Feature.EVENT_IDX)]


@pytest.mark.normative("rsvd.leg.d4")
@pytest.mark.parametrize("bit", [Feature.SCSI_INOUT, 1 << 30])
def test_legacy_features_that_were_not_offered_are_left_out(bit: int) -> None:
    """There is no FEATURES_OK that could be refused."""
    guest = Guest(LEGACY)
    guest.acknowledge()
    guest.choose(OFFERED | bit)
    guest.add_status(Status.DRIVER_OK)
    assert guest.backend.take() == [("features", OFFERED & 0xFFFF_FFFF)]
    assert guest.device.counters == {Misuse.FEATURES_UNSUPPORTED: 1}
