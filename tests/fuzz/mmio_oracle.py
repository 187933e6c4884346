"""What a virtio-mmio device does, told a second time and in few words, to check the first.

It knows offsets as numbers and the status as a level of initialization: each of the bits of
`CHAINS` needs the one before it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.unit.virtio.mmio import OFFERED, QUEUES, Call
from vscsi_emu.virtio.mmio_queue import QueueSetup

CHAINS = {2: (1, 2, 8, 4), 1: (1, 2, 4)}
FEATURES_LEVEL = 3
NEEDS_RESET, FAILED = 64, 128
RING_RESET, VERSION_1 = 1 << 40, 1 << 32
LOW = 0xFFFF_FFFF
ADDRESSES = (0x80, 0x84, 0x90, 0x94, 0xA0, 0xA4)
WRITABLE = range(20, 28)
CONFIG_SIZE = 36


@dataclass
class Queue:
    size: int = 0
    words: dict[int, int] = field(default_factory=lambda: dict.fromkeys(ADDRESSES, 0))
    align: int = 4096
    frame: int = 0
    used: bool = False
    running: bool = False
    stopping: bool = False
    resetting: bool = False


class Oracle:
    """`calls`: what the device must ask of its backend; the checker takes them away."""

    def __init__(self, version: int) -> None:
        self.version = version
        self.offered = int(OFFERED) | RING_RESET if version == 2 else int(OFFERED) & LOW
        self.calls: list[Call] = []
        self.power_on()

    def power_on(self) -> None:
        self.level = 0
        self.failed = self.broken = self.resetting = False
        self.settled = self.config_written = False
        self.features = 0
        self.asked = [0, 0]
        self.asked_beyond = False
        self.feature_word = self.selected = self.page = self.interrupt = 0
        self.queues = [Queue() for _ in range(QUEUES)]

    # ── What a driver sees ─────────────────────────────────────────────────────────────────────

    @property
    def status(self) -> int:
        bits = sum(CHAINS[self.version][: self.level])
        bits |= NEEDS_RESET * self.broken | FAILED * self.failed
        return bits or NEEDS_RESET * self.resetting

    @property
    def live(self) -> bool:
        return self.level == len(CHAINS[self.version])

    @property
    def queue(self) -> Queue | None:
        return self.queues[self.selected] if self.selected < QUEUES else None

    # ── What a driver does ─────────────────────────────────────────────────────────────────────

    def store(self, offset: int, value: int) -> None:
        """An aligned word to a register."""
        if offset == 0x24:
            self.feature_word = value
        elif offset == 0x30:
            self.selected = value
        elif offset == 0x64:
            self.interrupt &= ~value
        elif self.resetting:
            pass
        elif offset == 0x70:
            self._status(value)
        elif offset == 0x20 and not self.settled:
            if self.feature_word < 2:
                self.asked[self.feature_word] = value
            else:
                self.asked_beyond |= value != 0
        elif offset == 0x50:
            self._notify(value)
        elif offset == 0x28 and self.version == 1:
            if value.bit_count() == 1:
                self.page = value
        elif self.queue is not None:
            self._queue_register(self.queue, self.selected, offset, value)

    def store_config(self, offset: int, size: int) -> bool:
        """Whether a write of the configuration space takes effect."""
        fits = size in (1, 2, 4, 8) and offset + size <= CONFIG_SIZE
        writable = offset in WRITABLE and offset + size - 1 in WRITABLE
        takes = fits and writable and not self.resetting
        self.config_written |= takes
        return takes

    def _status(self, value: int) -> None:
        if not value:
            if self.status or self.settled or self.config_written:
                self.resetting = True
                self.calls.append(("reset",))
            else:
                self.power_on()
            return
        if self.failed:
            return
        chain = CHAINS[self.version]
        while self.level < len(chain) and value & chain[self.level]:
            if self.version == 2 and self.level + 1 == FEATURES_LEVEL and not self._acceptable():
                break
            self.level += 1
            if self.version == 2 and self.level == FEATURES_LEVEL:
                self._settle(self._asked())
            elif self.live:
                self._use()
                for index, queue in enumerate(self.queues):
                    if queue.used and not queue.running:
                        self._start(index)
        self.failed = bool(value & FAILED)

    def _asked(self) -> int:
        return self.asked[0] | self.asked[1] << 32

    def _acceptable(self) -> bool:
        asked = self._asked()
        return not (self.asked_beyond or asked & ~self.offered) and bool(asked & VERSION_1)

    def _settle(self, features: int) -> None:
        self.settled, self.features = True, features
        self.calls.append(("features", features & ~RING_RESET))

    def _use(self) -> None:
        if not self.settled:
            self._settle(self._asked() & self.offered)

    def _notify(self, index: int) -> None:
        if index < QUEUES and (self.live or self.version == 1):
            queue = self.queues[index]
            if queue.running and not queue.stopping:
                self.calls.append(("notify", index))

    def _queue_register(self, queue: Queue, index: int, offset: int, value: int) -> None:
        if offset == 0x38 and not queue.used:
            queue.size = value
        elif self.version == 1:
            if offset == 0x3C and not queue.used and value.bit_count() == 1:
                queue.align = value
            elif offset == 0x40 and not value:
                self._stop(index)
            elif offset == 0x40 and not queue.used:
                queue.used, queue.frame = True, value
                self._use()
                self._start(index)
        elif offset in ADDRESSES and not queue.used:
            queue.words[offset] = value
        elif offset == 0x44 and value == 0:
            self._stop(index)
        elif offset == 0x44 and value == 1 and not queue.used:
            queue.used = True
            if self.live:
                self._start(index)
        elif offset == 0xC0 and value == 1 and self.features & RING_RESET:
            queue.resetting = True
            self._stop(index)

    def _start(self, index: int) -> None:
        if self.failed or self.broken:
            return
        queue = self.queues[index]
        setup = self._setup(queue)
        if setup is None:
            self.break_device()
        else:
            queue.running = True
            self.calls.append(("start", index, setup))

    def _setup(self, queue: Queue) -> QueueSetup | None:
        size = queue.size
        if size not in {1 << bit for bit in range(11)}:
            return None
        if self.version == 2:
            low = [queue.words[offset] for offset in ADDRESSES]
            parts = [low[at] | low[at + 1] << 32 for at in (0, 2, 4)]
            return QueueSetup(size, *parts)
        if not self.page:
            return None
        base = queue.frame * self.page
        front = base + 18 * size + 6
        return QueueSetup(size, base, base + 16 * size, -(-front // queue.align) * queue.align)

    def _stop(self, index: int) -> None:
        queue = self.queues[index]
        if not queue.running:
            self._stopped(index)
        elif not queue.stopping:
            queue.stopping = True
            self.calls.append(("stop", index, queue.resetting))

    # ── What the device's own side does ────────────────────────────────────────────────────────

    def queue_stopped(self, index: int) -> None:
        if self.queues[index].stopping and not self.resetting:
            self._stopped(index)

    def _stopped(self, index: int) -> None:
        queue = self.queues[index]
        if queue.resetting:
            self.queues[index] = Queue()
        else:
            queue.used = queue.running = queue.stopping = False
            queue.frame = 0

    def reset_done(self) -> None:
        if self.resetting:
            self.power_on()

    def break_device(self) -> None:
        if not self.resetting and not self.broken:
            self.broken = True
            self.interrupt |= 2 * self.live

    def change_config(self) -> None:
        self.interrupt |= 2 * self.live
