"""virtio-mmio registers played in Python, which remember every access."""

from collections.abc import Callable
from dataclasses import dataclass, field

from tests.unit.driver.ram import RecordingRam
from vscsi_emu.virtio.config import ScsiConfig
from vscsi_emu.virtio.features import Feature
from vscsi_emu.virtio.mmio_registers import LEGACY, MAGIC, MODERN, SCSI_HOST, Register

BASE = 0xA000_0000
OFFERED = Feature.VERSION_1 | Feature.INDIRECT_DESC | Feature.SCSI_HOTPLUG


BY_OFFSET = {int(register): register for register in Register}


@dataclass(frozen=True, slots=True)
class Access:
    kind: str
    offset: int
    size: int
    value: int


@dataclass
class FakeRegisters:
    """`values` by offset; queue registers by (QueueSel, offset). `hooks` run after an access."""

    version: int = MODERN
    magic: int = MAGIC
    device_id: int = SCSI_HOST
    queue_size_max: int = 64
    features: int = int(OFFERED)
    log: list[Access] = field(default_factory=list)
    hooks: list[Callable[[Access], None]] = field(default_factory=list)
    slow_resets: int = 0
    """Reads of Status, QueueReset or QueueReady that still show what a reset has not undone."""
    interrupts: list[int] = field(default_factory=list)
    """InterruptStatus, one after another; the line is asserted while there are any."""

    def __post_init__(self) -> None:
        self.memory = RecordingRam()
        self.config = bytearray(ScsiConfig(num_queues=3).pack())
        self.generation = 0
        self.status = 0
        self.selected: dict[int, int] = {}
        self.queues: dict[tuple[int, int], int] = {}

    # ── driver.mmio.RegisterBus ─────────────────────────────────────────────────────────────────

    def read(self, address: int, size: int) -> int:
        offset = address - BASE
        value = self._value(offset, size)
        self._log(Access("read", offset, size, value))
        return value

    def write(self, address: int, size: int, value: int) -> None:
        offset = address - BASE
        if offset >= Register.CONFIG:
            at = offset - Register.CONFIG
            self.config[at : at + size] = value.to_bytes(size, "little")
        elif offset == Register.STATUS:
            self.status = value if value or not self.slow_resets else self.status
            if not value:
                self.queues.clear()
        elif offset == Register.INTERRUPT_ACK:
            self.interrupts.pop(0)
        elif offset in (Register.QUEUE_SEL, Register.DEVICE_FEATURES_SEL):
            self.selected[offset] = value
        else:
            self.queues[self.selected.get(Register.QUEUE_SEL, 0), offset] = value
        self._log(Access("write", offset, size, value))

    def wait_interrupt(self, timeout: float) -> bool:
        return bool(self.interrupts)

    # ────────────────────────────────────────────────────────────────────────────────────────────

    def offsets(self, kind: str) -> list[int]:
        return [access.offset for access in self.log if access.kind == kind]

    def written(self) -> list[tuple[Register, int]]:
        return [
            (BY_OFFSET[a.offset], a.value)
            for a in self.log
            if a.kind == "write" and a.offset < Register.CONFIG
        ]

    def _log(self, access: Access) -> None:
        self.log.append(access)
        for hook in self.hooks:
            hook(access)

    def _value(self, offset: int, size: int) -> int:
        if offset >= Register.CONFIG:
            at = offset - Register.CONFIG
            return int.from_bytes(self.config[at : at + size], "little")
        queue = self.selected.get(Register.QUEUE_SEL, 0)
        match offset:
            case Register.MAGIC_VALUE:
                return self.magic
            case Register.VERSION:
                return self.version
            case Register.DEVICE_ID:
                return self.device_id
            case Register.DEVICE_FEATURES:
                word = self.selected[Register.DEVICE_FEATURES_SEL]
                return self.features >> 32 * word & 0xFFFF_FFFF
            case Register.QUEUE_SIZE_MAX:
                return self.queue_size_max
            case Register.CONFIG_GENERATION:
                return self.generation
            case Register.INTERRUPT_STATUS:
                return self.interrupts[0] if self.interrupts else 0
            case Register.STATUS:
                return self._undone(self.status)
            case Register.QUEUE_RESET | Register.QUEUE_READY | Register.QUEUE_PFN:
                return self._undone(self.queues.get((queue, offset), 0))
        raise AssertionError(f"a read of {offset:#x}, which is not readable")

    def _undone(self, value: int) -> int:
        """Counts down a slow reset; what is shown meanwhile is not 0."""
        if not self.slow_resets:
            return value
        self.slow_resets -= 1
        if not self.slow_resets:
            self.status = 0
            self.queues.clear()
        return value or 1


LEGACY_FEATURES = int(Feature.INDIRECT_DESC | Feature.SCSI_HOTPLUG | Feature.ANY_LAYOUT)


def legacy() -> FakeRegisters:
    return FakeRegisters(version=LEGACY, features=LEGACY_FEATURES)
