"""The virtio-mmio bus: a driver at the registers of a device (virtio 1.4, 4.2).

Version 2 is the modern interface, version 1 the legacy one (4.2.4).
"""

import time
from collections.abc import Callable, Collection
from types import TracebackType
from typing import Final, Protocol, Self

from vscsi_emu.driver.dma import DmaAllocator, DmaMemory
from vscsi_emu.driver.vring import LEGACY_ALIGN, RingLayout
from vscsi_emu.virtio import config
from vscsi_emu.virtio.features import Feature, Status
from vscsi_emu.virtio.mmio_registers import LEGACY, MAGIC, MODERN, InterruptBit, Register

GUEST_PAGE_SIZE: Final = 4096
_WORD: Final = 4
_MASK: Final = 0xFFFF_FFFF
_POLL_SECONDS: Final = 0.0005


class RegisterBus(Protocol):
    """Loads and stores of a guest CPU, and the interrupt line of one device."""

    @property
    def memory(self) -> DmaMemory: ...
    def read(self, address: int, size: int) -> int:
        """`size`: 1, 2, 4 or 8 bytes."""

    def write(self, address: int, size: int, value: int) -> None: ...
    def wait_interrupt(self, timeout: float) -> bool:
        """Whether the line is asserted, now or within `timeout` seconds."""


class MmioError(RuntimeError):
    """The device is no virtio-mmio device, or does what none may do."""


class NeedsReset(RuntimeError):
    """The device set DEVICE_NEEDS_RESET: nothing in flight will be answered (2.1.2)."""


class VirtioMmioBus:
    """`Bus` at the registers of one device.

    `version`: MODERN or LEGACY. `timeout`: seconds that the device may take for a reset.
    """

    def __init__(
        self,
        registers: RegisterBus,
        base: int,
        allocator: DmaAllocator,
        version: int,
        *,
        timeout: float = 10.0,
    ) -> None:
        self.version = version
        self.config_changes = 0
        """Configuration change notifications so far."""
        self._registers = registers
        self._base = base
        self._allocator = allocator
        self._timeout = timeout
        self._active: set[int] = set()
        self._notified: set[int] = set()

    @classmethod
    def find(
        cls, registers: RegisterBus, base: int, allocator: DmaAllocator, *, timeout: float = 10.0
    ) -> Self | None:
        """The device whose registers begin at `base`; None if there is none behind them (4.2.2).

        `MmioError` if these are no registers of virtio, or of an unknown version.
        """
        magic = registers.read(base + Register.MAGIC_VALUE, _WORD)
        if magic != MAGIC:
            raise MmioError(f"magic value {magic:#010x} at {base:#x} is not virtio's {MAGIC:#x}")
        version = registers.read(base + Register.VERSION, _WORD)
        if version not in (LEGACY, MODERN):
            raise MmioError(f"virtio-mmio version {version} at {base:#x} is neither 1 nor 2")
        if not registers.read(base + Register.DEVICE_ID, _WORD):
            return None
        return cls(registers, base, allocator, version, timeout=timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.reset()

    @property
    def memory(self) -> DmaMemory:
        return self._registers.memory

    @property
    def allocator(self) -> DmaAllocator:
        return self._allocator

    @property
    def device_id(self) -> int:
        return self._read(Register.DEVICE_ID)

    def _read(self, register: Register) -> int:
        return self._registers.read(self._base + register, _WORD)

    def _write(self, register: Register, value: int) -> None:
        self._registers.write(self._base + register, _WORD, value)

    def _until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + self._timeout
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{what} takes more than {self._timeout:g} s")
            time.sleep(_POLL_SECONDS)

    # ── Device ──────────────────────────────────────────────────────────────────────────────────

    def device_features(self) -> int:
        features = 0
        # A legacy device has no features above bit 31.
        for word in range(1 if self.version == LEGACY else 2):
            self._write(Register.DEVICE_FEATURES_SEL, word)
            features |= self._read(Register.DEVICE_FEATURES) << 32 * word
        return features

    def set_driver_features(self, features: int) -> None:
        if self.version == MODERN and not features & Feature.VERSION_1:
            raise MmioError("a virtio-mmio device of version 2 must offer VIRTIO_F_VERSION_1")
        for word in range(1 if self.version == LEGACY else 2):
            self._write(Register.DRIVER_FEATURES_SEL, word)
            self._write(Register.DRIVER_FEATURES, features >> 32 * word & _MASK)

    def status(self) -> int:
        return self._read(Register.STATUS)

    def set_status(self, status: int) -> None:
        self._write(Register.STATUS, status)

    def reset(self) -> None:
        """Device reset; the rings' memory is the driver's again on return (2.4)."""
        self._write(Register.STATUS, 0)
        self._until(lambda: not self._read(Register.STATUS), "device reset")
        if self.version == LEGACY:
            for index in self._active:
                self._write(Register.QUEUE_SEL, index)
                self._write(Register.QUEUE_PFN, 0)
        self._active.clear()
        self._notified.clear()

    # ── Configuration space ─────────────────────────────────────────────────────────────────────

    def read_config(self, offset: int, length: int) -> bytes:
        """Whole fields, each read at its width, all from one generation (2.5, 4.2.2.2)."""
        fields = _fields(offset, length)
        if self.version == LEGACY:
            return self._read_twice(fields)
        data = b""

        def read() -> bool:
            nonlocal data
            before = self._read(Register.CONFIG_GENERATION)
            data = self._read_fields(fields)
            again = self._read_fields(fields)
            if self._read(Register.CONFIG_GENERATION) != before:
                return False
            if again != data:
                raise MmioError("the configuration space changes within a generation")
            return True

        self._until(read, "a configuration space that does not change")
        return data

    def _read_twice(self, fields: Collection[tuple[int, int]]) -> bytes:
        """Legacy devices count no generations: two reads that agree must do (2.5.4)."""
        data = self._read_fields(fields)

        def read() -> bool:
            nonlocal data
            before, data = data, self._read_fields(fields)
            return before == data

        self._until(read, "a configuration space that does not change")
        return data

    def _read_fields(self, fields: Collection[tuple[int, int]]) -> bytes:
        start = self._base + Register.CONFIG
        return b"".join(
            self._registers.read(start + at, size).to_bytes(size, "little") for at, size in fields
        )

    def write_config(self, offset: int, data: bytes) -> None:
        start = self._base + Register.CONFIG
        for at, size in _fields(offset, len(data)):
            value = int.from_bytes(data[at - offset : at - offset + size], "little")
            self._registers.write(start + at, size, value)

    # ── Queues ──────────────────────────────────────────────────────────────────────────────────

    def max_queue_size(self, index: int) -> int:
        """Most entries that queue `index` may have; 0: there is no such queue."""
        self._select_idle(index)
        return self._read(Register.QUEUE_SIZE_MAX)

    def _select_idle(self, index: int) -> None:
        """Selects a queue, which must not be running (4.2.3.2, 4.2.4)."""
        self._write(Register.QUEUE_SEL, index)
        if self._read(Register.QUEUE_PFN if self.version == LEGACY else Register.QUEUE_READY):
            raise MmioError(f"queue {index} is running already")

    def start_queue(self, index: int, layout: RingLayout) -> None:
        size = self.max_queue_size(index)
        if layout.size > size:
            raise MmioError(f"queue {index} has at most {size} entries, not {layout.size}")
        if self.version == LEGACY:
            self._start_legacy(layout)
        else:
            self._start_modern(layout)
        self._active.add(index)

    def _start_modern(self, layout: RingLayout) -> None:
        self._write(Register.QUEUE_SIZE, layout.size)
        for low, high, address in (
            (Register.QUEUE_DESC_LOW, Register.QUEUE_DESC_HIGH, layout.desc),
            (Register.QUEUE_DRIVER_LOW, Register.QUEUE_DRIVER_HIGH, layout.driver),
            (Register.QUEUE_DEVICE_LOW, Register.QUEUE_DEVICE_HIGH, layout.device),
        ):
            self._write(low, address & _MASK)
            self._write(high, address >> 32)
        self._write(Register.QUEUE_READY, 1)

    def _start_legacy(self, layout: RingLayout) -> None:
        if layout != RingLayout.contiguous(layout.size, layout.desc):
            raise ValueError("the parts of a legacy ring lie in one block")
        page, rest = divmod(layout.desc, GUEST_PAGE_SIZE)
        if rest or not 0 < page <= _MASK:
            raise ValueError(f"a legacy ring cannot lie at {layout.desc:#x}")
        if not self._active:
            self._write(Register.GUEST_PAGE_SIZE, GUEST_PAGE_SIZE)
        self._write(Register.QUEUE_SIZE, layout.size)
        self._write(Register.QUEUE_ALIGN, LEGACY_ALIGN)
        self._write(Register.QUEUE_PFN, page)

    def stop_queue(self, index: int) -> None:
        """Stops one queue; its memory is the driver's again on return."""
        self._write(Register.QUEUE_SEL, index)
        register = Register.QUEUE_PFN if self.version == LEGACY else Register.QUEUE_READY
        self._write(register, 0)
        self._until(lambda: not self._read(register), f"stopping queue {index}")
        self._active.discard(index)

    def reset_queue(self, index: int) -> None:
        """Resets one queue, where VIRTIO_F_RING_RESET was negotiated (2.6.1); it may be started
        again, also with another layout."""
        self._write(Register.QUEUE_SEL, index)
        self._write(Register.QUEUE_RESET, 1)
        self._until(lambda: not self._read(Register.QUEUE_RESET), f"reset of queue {index}")
        self._active.discard(index)

    def notify(self, index: int) -> None:
        self._write(Register.QUEUE_NOTIFY, index)

    def wait(self, queues: Collection[int], timeout: float) -> set[int]:
        """As `Bus.wait`; `NeedsReset` as soon as the device says so."""
        wanted = set(queues)
        deadline = time.monotonic() + timeout
        while not self._notified & wanted:
            left = deadline - time.monotonic()
            asserted = self._registers.wait_interrupt(max(left, 0.0))
            if asserted:
                self._handle_interrupt()
            if not asserted or left <= 0:
                break
        ready = self._notified & wanted
        self._notified -= ready
        return ready

    def _handle_interrupt(self) -> None:
        """Acknowledged before rings are looked at, so that what comes later interrupts anew."""
        pending = self._read(Register.INTERRUPT_STATUS) & int(
            InterruptBit.USED_BUFFER | InterruptBit.CONFIG_CHANGE
        )
        if pending:
            self._write(Register.INTERRUPT_ACK, pending)
        if pending & InterruptBit.USED_BUFFER:
            self._notified |= self._active
        if pending & InterruptBit.CONFIG_CHANGE:
            self.config_changes += 1
            if self.status() & Status.NEEDS_RESET:
                raise NeedsReset("the device is broken and needs a reset")


def _fields(offset: int, length: int) -> list[tuple[int, int]]:
    """(offset, size) of the fields of configuration space that these bytes are."""
    fields = [(at, size) for at, size in config.FIELDS if offset <= at < offset + length]
    if not fields or fields[0][0] != offset or sum(size for _, size in fields) != length:
        raise ValueError(f"bytes {offset} to {offset + length} are not whole configuration fields")
    return fields
