"""A virtio-scsi device played in Python behind a `Bus`, to look at what the driver does."""

from collections.abc import Callable, Collection
from dataclasses import dataclass

from tests.unit.driver.ram import RecordingRam
from vscsi_emu.driver.dma import DmaAllocator
from vscsi_emu.driver.vring import (
    DESC_F_INDIRECT,
    DESC_F_NEXT,
    DESC_F_WRITE,
    DESCRIPTOR,
    USED_ELEMENT,
    RingLayout,
    Segment,
)
from vscsi_emu.virtio.config import ScsiConfig
from vscsi_emu.virtio.features import Feature

OFFERED = int(
    Feature.VERSION_1
    | Feature.ANY_LAYOUT
    | Feature.INDIRECT_DESC
    | Feature.EVENT_IDX
    | Feature.SCSI_HOTPLUG
    | Feature.SCSI_CHANGE
)


@dataclass(slots=True)
class Chain:
    """A chain as it was offered: queue, head, descriptors, and what the readable ones hold."""

    queue: int
    head: int
    readable: list[Segment]
    writable: list[Segment]
    request: bytes


Handler = Callable[[Chain], bytes | None]
"""Bytes to be written into the writable buffers, or None: keep the chain for now."""


class FakeBus:
    """Runs `handler` for each chain when it is notified. `log` holds what the driver did."""

    def __init__(
        self,
        handler: Handler,
        *,
        offered: int = OFFERED,
        accepts: bool = True,
        config: ScsiConfig | None = None,
    ) -> None:
        self.ram = RecordingRam(8 << 20)
        self.allocator = DmaAllocator(0x1000, (8 << 20) - 0x1000)
        self.log: list[tuple[str, int]] = []
        self.driver_features = 0
        self.kept: list[Chain] = []
        self._handler = handler
        self._offered = offered
        self._accepts = accepts
        self._config = config or ScsiConfig(num_queues=2)
        self._status = 0
        self._layouts: dict[int, RingLayout] = {}
        self._seen: dict[int, int] = {}
        self._used: dict[int, int] = {}
        self._called: set[int] = set()

    @property
    def memory(self) -> RecordingRam:
        return self.ram

    # ── Bus ─────────────────────────────────────────────────────────────────────────────────────

    def device_features(self) -> int:
        return self._offered

    def set_driver_features(self, features: int) -> None:
        self.log.append(("features", features))
        self.driver_features = features

    def status(self) -> int:
        return self._status

    def set_status(self, status: int) -> None:
        self.log.append(("status", status))
        self._status = status if self._accepts else status & ~8

    def reset(self) -> None:
        self.log.append(("reset", 0))
        self._status = 0

    def read_config(self, offset: int, length: int) -> bytes:
        return self._config.pack()[offset : offset + length]

    def write_config(self, offset: int, data: bytes) -> None:
        self.log.append(("config", offset))
        self._config = self._config.written(offset, data)

    def max_queue_size(self, index: int) -> int:
        return 64

    def start_queue(self, index: int, layout: RingLayout) -> None:
        self.log.append(("queue", index))
        self._layouts[index] = layout
        self._seen[index] = self._used[index] = 0

    def notify(self, index: int) -> None:
        self.log.append(("notify", index))
        layout = self._layouts[index]
        while self._seen[index] != self.ram.peek16(layout.avail_idx):
            chain = self._read_chain(index, self.ram.peek16(layout.avail_entry(self._seen[index])))
            self._seen[index] = (self._seen[index] + 1) & 0xFFFF
            answer = self._handler(chain)
            if answer is None:
                self.kept.append(chain)
            else:
                self.use(chain, answer)
        event = self._seen[index].to_bytes(2, "little")
        self.ram.poke(layout.avail_event, event)

    def wait(self, queues: Collection[int], timeout: float) -> set[int]:
        ready = self._called & set(queues)
        self._called -= ready
        return ready

    # ── Device ──────────────────────────────────────────────────────────────────────────────────

    def use(self, chain: Chain, answer: bytes) -> None:
        """Writes the answer and uses the chain, with a notification."""
        length = len(answer)
        for segment in chain.writable:
            self.ram.poke(segment.address, answer[: segment.length])
            answer = answer[segment.length :]
        layout = self._layouts[chain.queue]
        index = self._used[chain.queue]
        self.ram.poke(layout.used_entry(index), USED_ELEMENT.pack(chain.head, length))
        self._used[chain.queue] = (index + 1) & 0xFFFF
        self.ram.poke(layout.used_idx, self._used[chain.queue].to_bytes(2, "little"))
        self._called.add(chain.queue)

    def _read_chain(self, queue: int, head: int) -> Chain:
        readable: list[Segment] = []
        writable: list[Segment] = []
        table, index = self._layouts[queue].desc, head
        while True:
            raw = self.ram.peek(table + DESCRIPTOR.size * index, DESCRIPTOR.size)
            address, length, flags, following = DESCRIPTOR.unpack(raw)
            if flags & DESC_F_INDIRECT:
                table, index = address, 0
                continue
            (writable if flags & DESC_F_WRITE else readable).append(Segment(address, length))
            if not flags & DESC_F_NEXT:
                break
            index = following
        request = b"".join(self.ram.peek(*segment) for segment in readable)
        return Chain(queue, head, readable, writable, request)
