"""The IOMMU of a front end: its IOTLB messages, and what is asked of it ("IOMMU support")."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from vscsi_emu import _dataplane
from vscsi_emu.virtio.vhost_user import IotlbType

if TYPE_CHECKING:
    from vscsi_emu._dataplane import GuestMemory, Queue
    from vscsi_emu.runtime import Runtime
    from vscsi_emu.transport.vhost_user.backchannel import Backchannel
    from vscsi_emu.virtio.vhost_user import IotlbMessage

log = logging.getLogger(__name__)


class Iotlb:
    """`hba.Iommu` over vhost-user: the front end knows the mappings, the data plane caches them."""

    def __init__(self, memory: GuestMemory, runtime: Runtime, name: str) -> None:
        """`name` begins log lines."""
        self._memory = memory
        self._runtime = runtime
        self._name = name
        self.backchannel: Backchannel | None = None
        """Where misses go; a ring that needs a translation before it is there breaks."""

    async def change(self, message: IotlbMessage) -> bool:
        """Whether an IOTLB_MSG could be followed. An invalidation returns after the last command
        that uses the range."""
        if message.type == IotlbType.INVALIDATE:
            self._memory.iotlb_invalidate(message.iova, message.size)
            await self._runtime.quiesce_range(self._memory, message.iova, message.size)
            return True
        if message.type != IotlbType.UPDATE:
            log.warning("%s: IOTLB_MSG of type %d is no request", self._name, message.type)
            return False
        try:
            self._memory.iotlb_update(
                message.iova, message.size, message.user_address, message.permissions
            )
        except _dataplane.GuestMemoryError as error:
            log.warning("%s: IOTLB_MSG: %s", self._name, error)
            return False
        return True

    def flush(self) -> None:
        """Forgets all. While rings are stopped, a front end does not tell of changes."""
        self._memory.iotlb_invalidate(0, 0)

    # ── hba.Iommu ──────────────────────────────────────────────────────────────────────────────

    def miss(self, queue: Queue, iova: int, access: int) -> None:
        if self.backchannel is None:
            queue.fail("the front end gave no back-end channel to ask for translations")
            return
        text = f"the front end has no mapping of I/O address {iova:#x} for access {access}"
        self.backchannel.iotlb_miss(iova, access, lambda: queue.fail(text))

    def denied(self, _queue: Queue, iova: int, access: int) -> None:
        if self.backchannel:
            self.backchannel.iotlb_access_failure(iova, access)
