"""IOTLB messages of a front end that puts the device behind an IOMMU ("IOMMU support")."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from tests.unit.driver.vhost_user.back_end import (
    FEATURES,
    GUEST_BASE,
    GUEST_SIZE,
    SECONDS,
    BackEnd,
    played,
)
from vscsi_emu._dataplane import GuestMemory
from vscsi_emu.driver.coherency.iommu import PAGE
from vscsi_emu.driver.dma import Direction
from vscsi_emu.driver.vhost_user import USER_OFFSET
from vscsi_emu.driver.vhost_user_iommu import IommuAllocator, IommuBus, IommuFrontEnd
from vscsi_emu.driver.virtio_scsi import KNOWN, Options, VirtioScsi
from vscsi_emu.virtio import vhost_user as vu
from vscsi_emu.virtio.features import Feature
from vscsi_emu.virtio.vhost_user import IotlbMessage, IotlbType, Packet

BEHIND = FEATURES | Feature.ACCESS_PLATFORM
OPTIONS = Options(features=KNOWN | Feature.ACCESS_PLATFORM)
READ, WRITE = 1, 2


@dataclass(frozen=True)
class Rig:
    back_end: BackEnd
    front_end: IommuFrontEnd
    bus: IommuBus

    def miss(self, iova: int, access: int) -> Packet:
        """The front end's answer to a miss."""
        payload = IotlbMessage(iova, 0, 0, access, IotlbType.MISS)
        return self.back_end.ask(self.front_end, vu.BACKEND_IOTLB_MSG, payload)

    def told(self) -> list[IotlbMessage]:
        """What the front end said of its mappings. Whole, as an answer to a later request is
        waited for."""
        self.front_end.get_u64(vu.GET_FEATURES)
        payloads = [sent.payload for sent in self.back_end.named(vu.IOTLB_MSG)]
        return [payload for payload in payloads if isinstance(payload, IotlbMessage)]


@contextmanager
def behind_iommu(back_end: BackEnd) -> Iterator[Rig]:
    memory = GuestMemory.anonymous(GUEST_SIZE, GUEST_BASE)
    with played(back_end) as sock:
        front_end = IommuFrontEnd(sock, timeout=SECONDS)
        allocator = IommuAllocator(GUEST_BASE, GUEST_SIZE, front_end)
        with IommuBus(front_end, memory, allocator) as bus:
            yield Rig(back_end, front_end, bus)


@pytest.fixture
def rig() -> Iterator[Rig]:
    with behind_iommu(BackEnd(features=BEHIND)) as made:
        made.bus.set_driver_features(BEHIND)
        yield made


@pytest.mark.normative("vu.iotlb.f1", "vu.iotlb.f3", "vu.iotlb.f4")
@pytest.mark.parametrize(
    ("direction", "permissions"), [(Direction.TO_DEVICE, READ), (Direction.FROM_DEVICE, WRITE)]
)
def test_a_miss_is_answered_by_an_update_and_0(
    rig: Rig, direction: Direction, permissions: int
) -> None:
    page = GUEST_BASE + 5 * PAGE
    rig.bus.allocator.map(page + 16, 64, direction)
    reply = rig.miss(page + 20, permissions)
    assert vu.BACKEND_IOTLB_MSG.decode_reply(reply) == vu.U64(0)
    [update] = rig.told()
    user = USER_OFFSET + page
    assert update == IotlbMessage(page, PAGE, user, permissions, IotlbType.UPDATE)
    [region] = rig.bus.regions
    assert region.user_address <= user
    assert user + PAGE <= region.user_address + region.size


@pytest.mark.normative("vu.iotlb.f4")
def test_a_miss_without_a_mapping_is_answered_by_an_error(rig: Rig) -> None:
    reply = rig.miss(GUEST_BASE, READ)
    assert vu.BACKEND_IOTLB_MSG.decode_reply(reply) != vu.U64(0)
    assert not rig.told()


@pytest.mark.normative("vu.iotlb.f2")
def test_a_mapping_that_goes_is_invalidated(rig: Rig) -> None:
    page = GUEST_BASE + 5 * PAGE
    rig.bus.allocator.map(page + 16, 64, Direction.TO_DEVICE)
    rig.bus.allocator.map(page + 512, 64, Direction.TO_DEVICE)
    rig.bus.allocator.unmap(page + 16, 64, Direction.TO_DEVICE)
    assert not rig.told(), "the page is still in use"
    rig.bus.allocator.unmap(page + 512, 64, Direction.TO_DEVICE)
    [invalidation] = rig.told()
    assert (invalidation.iova, invalidation.size) == (page, PAGE)
    assert invalidation.type == IotlbType.INVALIDATE


@pytest.mark.normative("vu.iotlb.f5")
def test_no_iotlb_message_before_the_feature_is_negotiated() -> None:
    with behind_iommu(back_end := BackEnd(features=BEHIND)) as rig:
        device = VirtioScsi(rig.bus, OPTIONS)
        for queue in device.queues.values():
            rig.miss(queue.ring.layout.desc, READ)
        device.submit(0, 0, bytes(6), data_in_length=512)
        for queue in device.queues.values():
            queue.abandon()
    messages = [sent.message for sent in back_end.sent]
    [accepted] = [n for n, message in enumerate(messages) if message is vu.SET_FEATURES]
    payload = back_end.sent[accepted].payload
    assert isinstance(payload, vu.U64)
    assert payload.value & Feature.ACCESS_PLATFORM
    assert messages.count(vu.IOTLB_MSG) > len(device.queues)
    assert messages.index(vu.IOTLB_MSG) > accepted


@pytest.mark.normative("vu.iotlb.f5")
@pytest.mark.parametrize("offered", [FEATURES, BEHIND])
def test_no_iotlb_message_without_the_feature(offered: int) -> None:
    """Offered or not: this driver does not accept it, so there is no way to it."""
    with (
        behind_iommu(back_end := BackEnd(features=offered)) as rig,
        pytest.raises(ValueError, match="ACCESS_PLATFORM"),
    ):
        VirtioScsi(rig.bus, Options(features=KNOWN))
    assert not back_end.named(vu.IOTLB_MSG, vu.SET_VRING_ADDR, vu.SET_VRING_KICK)
