"""A front end that puts the device behind an IOMMU (vhost-user, "IOMMU support").

Device addresses (iova) are the numbers of guest-physical ones here, but only what the driver has
mapped is mapped: rings as long as they exist, buffers as long as the device has them.
"""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from socket import socket
from typing import Final

from vscsi_emu.driver.coherency.iommu import PAGE, Iommu, Permission
from vscsi_emu.driver.dma import Direction, DmaAllocator
from vscsi_emu.driver.front_end import FrontEnd
from vscsi_emu.driver.vhost_user import USER_OFFSET, VhostUserBus
from vscsi_emu.virtio import vhost_user as vu
from vscsi_emu.virtio.features import Feature
from vscsi_emu.virtio.vhost_user import IotlbMessage, IotlbType, MessageType, Packet, Payload

UNUSED_OFFSET: Final = 0x10_0000_0000
"""Added to the regions' guest addresses, which mean nothing behind an IOMMU."""
_RW: Final = Permission.READ | Permission.WRITE
_OF: Final = {Direction.TO_DEVICE: Permission.READ, Direction.FROM_DEVICE: Permission.WRITE}


class IommuFrontEnd(FrontEnd):
    """Answers IOTLB misses from `iommu`, page by page."""

    def __init__(self, sock: socket, *, timeout: float = 10.0) -> None:
        super().__init__(sock, timeout=timeout)
        self.iommu = Iommu()
        self.misses: list[IotlbMessage] = []
        self.access_failures: list[IotlbMessage] = []
        self._unanswered: deque[bool] = deque()
        """IOTLB_MSGs whose reply is still to come; False: nobody waits for it."""

    def update(self, iova: int, size: int, physical: int, permission: Permission) -> None:
        """A mapping that nobody asked for; `BackEndError` if it is refused."""
        payload = IotlbMessage(iova, size, USER_OFFSET + physical, permission, IotlbType.UPDATE)
        if status := self.iotlb(payload):
            raise self._broken(f"the back end refused {payload}: {status}")

    def invalidate(self, iova: int, size: int) -> None:
        """Returns when the back end uses the range no longer."""
        if self.iotlb(IotlbMessage(iova, size, 0, 0, IotlbType.INVALIDATE)):
            raise self._broken(f"the back end refused an invalidation of {iova:#x}")

    def iotlb(self, payload: IotlbMessage) -> int:
        """The status that the back end replies."""
        self._unanswered.append(True)
        reply = self.get(vu.IOTLB_MSG, payload)
        assert isinstance(reply, vu.U64)
        return reply.value

    def receive(self) -> Packet:
        while True:
            packet = super().receive()
            if packet.request != vu.IOTLB_MSG.number or self._unanswered.popleft():
                return packet
            if vu.IOTLB_MSG.decode_reply(packet) != vu.U64(0):
                raise self._broken("the back end refused a mapping that it had asked for")

    def _take(self, message: MessageType, payload: Payload, need_reply: bool) -> int:
        if not isinstance(payload, IotlbMessage):
            return super()._take(message, payload, need_reply)
        if payload.type == IotlbType.ACCESS_FAIL:
            self.access_failures.append(payload)
            return 0
        if payload.type != IotlbType.MISS or payload.permissions not in (1, 2, 3):
            raise vu.WireError(f"a back end does not send {payload}")
        self.misses.append(payload)
        return self._answer(payload)

    def _answer(self, miss: IotlbMessage) -> int:
        page = miss.iova - miss.iova % PAGE
        allowed = self.iommu.allowed(page)
        if not allowed:
            return 1
        ((physical, _),) = self.iommu.translate(page, PAGE, allowed)
        update = IotlbMessage(page, PAGE, USER_OFFSET + physical, allowed, IotlbType.UPDATE)
        self._unanswered.append(False)
        self.send_raw(vu.IOTLB_MSG.encode(update))
        return 0


class IommuAllocator(DmaAllocator):
    """Maps what the device may see, and takes it back from the device before the driver looks."""

    def __init__(self, base: int, size: int, front_end: IommuFrontEnd) -> None:
        super().__init__(base, size)
        self._front_end = front_end

    def alloc_coherent(self, size: int, align: int = 16) -> int:
        # Whole pages, for the sake of memory beside it.
        rounded = -(-size // PAGE) * PAGE
        address = self.alloc(rounded, max(align, PAGE))
        self._front_end.iommu.map(address, address, rounded, _RW)
        return address

    def map(self, address: int, length: int, direction: Direction) -> None:
        with self._changed(address, length):
            self._front_end.iommu.map(address, address, length, _OF[direction])

    def unmap(self, address: int, length: int, direction: Direction) -> None:
        with self._changed(address, length):
            self._front_end.iommu.unmap(address, length, _OF[direction])

    @contextmanager
    def _changed(self, address: int, length: int) -> Iterator[None]:
        """Takes pages back from the device that were mapped and are now mapped otherwise."""
        iommu = self._front_end.iommu
        pages = range(address - address % PAGE, address + length, PAGE)
        before = [iommu.allowed(page) for page in pages]
        yield
        for page, allowed in zip(pages, before, strict=True):
            if allowed and iommu.allowed(page) != allowed:
                self._front_end.invalidate(page, PAGE)


class IommuBus(VhostUserBus):
    """`VhostUserBus` for a driver that accepts ACCESS_PLATFORM. Needs an `IommuFrontEnd`."""

    def set_driver_features(self, features: int) -> None:
        """`ValueError` without ACCESS_PLATFORM: then no IOTLB_MSG may be sent."""
        if not features & Feature.ACCESS_PLATFORM:
            raise ValueError("a device behind an IOMMU must offer VIRTIO_F_ACCESS_PLATFORM")
        super().set_driver_features(features)

    def set_memory_table(self) -> None:
        self.regions = tuple(
            replace(region, guest_address=region.guest_address + UNUSED_OFFSET)
            for region in self.regions
        )
        super().set_memory_table()

    def user_address(self, guest_address: int) -> int:
        """Behind an IOMMU, ring addresses are the device's too."""
        return guest_address
