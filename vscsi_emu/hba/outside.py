"""What a transport, and a fault, are to an HBA."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from vscsi_emu._dataplane import Queue
    from vscsi_emu.hba.device import Hba
    from vscsi_emu.scsi.nexus import Nexus


class Link(Protocol):
    """The transport's side of a connection."""

    def config_changed(self) -> None:
        """The configuration space changed."""

    def queue_broken(self, queue: Queue, text: str) -> None:
        """The ring of `queue` broke an invariant, and was stopped."""


class Iommu(Protocol):
    """What stands between the driver's addresses and guest memory (VIRTIO_F_ACCESS_PLATFORM).

    It fills the IOTLB by `GuestMemory.iotlb_update` and takes back by `iotlb_invalidate`, followed
    by `Runtime.quiesce_range`. `access`: 1 read, 2 write.
    """

    def miss(self, queue: Queue, iova: int, access: int) -> None:
        """`queue` waits for a translation of `iova`, or for its `fail` if there is none."""

    def denied(self, queue: Queue, iova: int, access: int) -> None:
        """`queue` asked for what the mapping of `iova` does not allow; it breaks next."""


class Refusal(Protocol):
    """See `Hba.refuse_tmf`."""

    async def __call__(self, hba: Hba, nexus: Nexus, function: int, tag: int | None) -> int | None:
        """`function`, for the command with `tag` if it is for one; None: it is to be performed."""
