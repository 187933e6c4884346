"""The registers of a virtio-mmio device, as a guest's loads and stores find them (virtio 1.4, 4.2).

The model knows neither transport nor device type. It answers at once, from any thread; what takes
time, or belongs to an event loop, it asks of its `Backend`, which reports back when it is done.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from enum import StrEnum
from threading import RLock
from typing import TYPE_CHECKING, Final, Protocol

from vscsi_emu.virtio.features import Feature, Status
from vscsi_emu.virtio.mmio_queue import (
    MAX_SIZE,
    QueueRegisters,
    QueueSetup,
    SetupError,
    is_power_of_two,
)
from vscsi_emu.virtio.mmio_registers import LEGACY, MAGIC, MODERN, Access, Register, When
from vscsi_emu.virtio.mmio_status import STEPS

if TYPE_CHECKING:
    from vscsi_emu._dataplane import Interrupt

log = logging.getLogger(__name__)

VENDOR: Final = int.from_bytes(b"VSCS", "little")
"""VendorID: any value will do (4.2.2)."""

_WORD: Final = 4
_ALL_ONES: Final = 0xFFFF_FFFF
_FEATURE_WORDS: Final = 2
_CONFIG_WIDTHS: Final = (1, 2, 4, 8)
_TRANSPORT_FEATURES: Final = int(Feature.RING_RESET)
"""Served here, so the backend hears nothing of them. A number, as the complement of a flag has no
undefined bits."""


class Misuse(StrEnum):
    """What a driver must not do. The device ignores it, reads 0, and counts it."""

    WIDTH = "access of a width that is not the register's"
    MISALIGNED = "access across registers"
    UNKNOWN_REGISTER = "access to an offset without a register"
    WRITE_ONLY = "read of a write-only register"
    READ_ONLY = "write of a read-only register"
    DURING_RESET = "write while a reset is under way"
    FEATURES_SETTLED = "write of DriverFeatures after they were settled"
    FEATURES_UNSUPPORTED = "features that were not offered"
    STATUS_ORDER = "status bit before its turn"
    STATUS_CLEARED = "status bit cleared other than by a reset"
    STATUS_RESERVED = "status bit that is not the driver's"
    NO_QUEUE = "queue that is not there"
    QUEUE_IN_USE = "queue register written while the queue is in use"
    RING_RESET = "QueueReset without VIRTIO_F_RING_RESET"
    VALUE = "value that the register does not take"
    NOTIFY_EARLY = "notification before DRIVER_OK"
    NOTIFY_UNUSED = "notification of a queue that is not in use"
    OUTSIDE_CONFIG = "access outside the configuration space"
    CONFIG_REFUSED = "write of a configuration field or value that is not the driver's"


class Backend(Protocol):
    """The device behind the registers.

    Every call is made with the model's lock held, from a guest's thread, and must not wait. Calls
    that end later are reported through the model, at once or from another thread.
    """

    @property
    def device_id(self) -> int:
        """Virtio device type; 0: a placeholder."""

    @property
    def device_features(self) -> int:
        """Offered, apart from those of the transport; the same all the time."""

    @property
    def queue_count(self) -> int: ...
    def read_config(self) -> bytes:
        """The whole configuration space, in the guest's byte order."""

    def write_config(self, offset: int, data: bytes) -> None:
        """Raises `ValueError` for what a driver may not write."""

    def set_features(self, features: int) -> None:
        """Once after a reset, before any queue starts; a subset of the offered ones."""

    def start_queue(self, index: int, setup: QueueSetup) -> None:
        """Failure is reported by `MmioDevice.needs_reset`."""

    def stop_queue(self, index: int, *, abort: bool) -> None:
        """Ends with `MmioDevice.queue_stopped`. `abort`: commands that have not begun end."""

    def notify(self, index: int) -> None:
        """A queue that was started has new buffers."""

    def reset(self) -> None:
        """Stops all queues and resets the device; ends with `MmioDevice.reset_done`."""


class MmioDevice:
    """Registers and state machine of one device."""

    def __init__(self, backend: Backend, interrupt: Interrupt, *, version: int = MODERN) -> None:
        """`version`: MODERN or LEGACY."""
        if version not in STEPS:
            raise ValueError(f"virtio-mmio version {version}: there are {MODERN} and {LEGACY}")
        self.version = version
        self.interrupt = interrupt
        self.counters: Counter[Misuse] = Counter()
        self._backend = backend
        self._lock = RLock()
        self._offered = int(backend.device_features)
        if version == MODERN:
            self._offered |= _TRANSPORT_FEATURES
        else:
            self._offered &= _ALL_ONES
        self._log_level = logging.WARNING
        self._resetting = False
        self._clear()
        self._config = backend.read_config()
        self._registers = {
            int(register): register
            for register in Register
            if version in register.versions and register is not Register.CONFIG
        }
        self._readers: dict[Register, Callable[[], int]] = {
            Register.MAGIC_VALUE: lambda: MAGIC,
            Register.VERSION: lambda: version,
            Register.DEVICE_ID: lambda: backend.device_id,
            Register.VENDOR_ID: lambda: VENDOR,
            Register.DEVICE_FEATURES: self._read_device_features,
            Register.QUEUE_SIZE_MAX: lambda: MAX_SIZE if self._selected else 0,
            Register.QUEUE_PFN: self._read_queue_pfn,
            Register.QUEUE_READY: lambda: int(bool(self._selected and self._selected.used)),
            Register.INTERRUPT_STATUS: lambda: interrupt.status,
            Register.STATUS: self._read_status,
            # No shared memory region exists: length and base of any are all ones (4.2.2).
            Register.SHM_LEN_LOW: lambda: _ALL_ONES,
            Register.SHM_LEN_HIGH: lambda: _ALL_ONES,
            Register.SHM_BASE_LOW: lambda: _ALL_ONES,
            Register.SHM_BASE_HIGH: lambda: _ALL_ONES,
            Register.QUEUE_RESET: lambda: int(bool(self._selected and self._selected.resetting)),
            Register.CONFIG_GENERATION: lambda: interrupt.generation,
        }
        self._writers: dict[Register, Callable[[int], None]] = {
            Register.DEVICE_FEATURES_SEL: self._write_device_features_sel,
            Register.DRIVER_FEATURES: self._write_driver_features,
            Register.DRIVER_FEATURES_SEL: self._write_driver_features_sel,
            Register.GUEST_PAGE_SIZE: self._write_guest_page_size,
            Register.QUEUE_SEL: self._write_queue_sel,
            Register.QUEUE_SIZE: self._write_queue_size,
            Register.QUEUE_ALIGN: self._write_queue_align,
            Register.QUEUE_PFN: self._write_queue_pfn,
            Register.QUEUE_READY: self._write_queue_ready,
            Register.QUEUE_NOTIFY: self._notify,
            Register.INTERRUPT_ACK: interrupt.acknowledge,
            Register.STATUS: self._write_status,
            Register.QUEUE_DESC_LOW: self._low("desc"),
            Register.QUEUE_DESC_HIGH: self._high("desc"),
            Register.QUEUE_DRIVER_LOW: self._low("driver"),
            Register.QUEUE_DRIVER_HIGH: self._high("driver"),
            Register.QUEUE_DEVICE_LOW: self._low("device"),
            Register.QUEUE_DEVICE_HIGH: self._high("device"),
            Register.SHM_SEL: lambda _: None,
            Register.QUEUE_RESET: self._write_queue_reset,
        }

    # ── Loads and stores ───────────────────────────────────────────────────────────────────────

    def read(self, offset: int, size: int) -> int:
        """A load of `size` bytes; the value of these bytes in little-endian order."""
        with self._lock:
            if offset >= Register.CONFIG:
                return self._read_config(offset - Register.CONFIG, size)
            register = self._decode(offset, size, Access.READ)
            return self._readers[register]() if register is not None else 0

    def write(self, offset: int, size: int, value: int) -> None:
        """A store of the `size` low bytes of `value`, in little-endian order."""
        value &= (1 << 8 * size) - 1
        with self._lock:
            if offset >= Register.CONFIG:
                self._write_config(offset - Register.CONFIG, size, value)
                return
            register = self._decode(offset, size, Access.WRITE)
            if register is None:
                return
            if refusal := self._refusal(register.when):
                self.counters[refusal] += 1
            else:
                self._writers[register](value)

    def _decode(self, offset: int, size: int, access: Access) -> Register | None:
        if size != _WORD:
            misuse = Misuse.WIDTH
        elif offset % _WORD:
            misuse = Misuse.MISALIGNED
        elif (register := self._registers.get(offset)) is None:
            misuse = Misuse.UNKNOWN_REGISTER
        elif access in register.access:
            return register
        else:
            misuse = Misuse.WRITE_ONLY if access is Access.READ else Misuse.READ_ONLY
        self.counters[misuse] += 1
        return None

    def _refusal(self, when: When) -> Misuse | None:
        if when is When.ALWAYS:
            return None
        if self._resetting:
            return Misuse.DURING_RESET
        if when is When.INITIALIZED:
            return None
        if when is When.NEGOTIATING:
            return Misuse.FEATURES_SETTLED if self._settled else None
        queue = self._selected
        if queue is None:
            return Misuse.NO_QUEUE
        if when is When.QUEUE_UNUSED and queue.used:
            return Misuse.QUEUE_IN_USE
        if when is When.RING_RESET and Feature.RING_RESET not in self._features:
            return Misuse.RING_RESET
        return None

    # ── What the backend reports ───────────────────────────────────────────────────────────────

    def queue_stopped(self, index: int) -> None:
        """Queue `index` is drained: it touches no memory and notifies no more."""
        with self._lock:
            queue = self._queues[index]
            if queue.stopping and not self._resetting:
                self._let_go(index)

    def reset_done(self) -> None:
        """All queues are drained, the device is as at power-on."""
        with self._lock:
            if self._resetting:
                self._resetting = False
                self._clear()
                self._refresh_config(self._config)

    def needs_reset(self, reason: str) -> None:
        """Something broke that only a reset repairs (2.1.2)."""
        with self._lock:
            if self._resetting or Status.NEEDS_RESET in self._status:
                return
            # A guest may break it as often as it likes, but not fill the log.
            log.log(self._log_level, "the device needs a reset: %s", reason)
            self._log_level = logging.DEBUG
            self._status |= Status.NEEDS_RESET
            if Status.DRIVER_OK in self._status:
                self.interrupt.notify_config()

    def config_changed(self) -> None:
        """The configuration space changed, by other hands than the driver's."""
        with self._lock:
            self._config = self._backend.read_config()
            if Status.DRIVER_OK in self._status:
                self.interrupt.config_changed()
            else:
                self.interrupt.change_generation()

    # ── Features ───────────────────────────────────────────────────────────────────────────────

    def _read_device_features(self) -> int:
        return self._offered >> 32 * self._device_features_sel & _ALL_ONES

    def _write_device_features_sel(self, value: int) -> None:
        self._device_features_sel = value

    def _write_driver_features_sel(self, value: int) -> None:
        self._driver_features_sel = value

    def _write_driver_features(self, value: int) -> None:
        if self._driver_features_sel < _FEATURE_WORDS:
            self._words[self._driver_features_sel] = value
        elif value:
            self._undefined = True

    def _requested(self) -> tuple[int, bool]:
        """The features that the driver asks for, and whether all of them were offered."""
        features = sum(word << 32 * index for index, word in enumerate(self._words))
        return features, not self._undefined and not features & ~self._offered

    def _settle_features(self, features: int) -> None:
        self._features = Feature(features)
        self._settled = True
        self._backend.set_features(features & ~_TRANSPORT_FEATURES)

    def _negotiate(self) -> bool:
        """Whether FEATURES_OK may be set (2.2.2, 6.1)."""
        features, offered = self._requested()
        if not offered or Feature.VERSION_1 & self._offered & ~features:
            self.counters[Misuse.FEATURES_UNSUPPORTED] += 1
            return False
        self._settle_features(features)
        return True

    def _use_features(self) -> None:
        """Legacy: no FEATURES_OK can be refused, so what was not offered is left out (3.1.2)."""
        if not self._settled:
            features, offered = self._requested()
            if not offered:
                self.counters[Misuse.FEATURES_UNSUPPORTED] += 1
            self._settle_features(features & self._offered)

    # ── Status and reset ───────────────────────────────────────────────────────────────────────

    def _read_status(self) -> int:
        if self._resetting:
            # 0 would tell the driver that the reset is complete (2.4.1).
            return int(self._status or Status.NEEDS_RESET)
        return int(self._status)

    def _write_status(self, value: int) -> None:
        if not value:
            self._reset()
            return
        status = int(self._status)
        if status & ~value & ~int(Status.NEEDS_RESET):
            self.counters[Misuse.STATUS_CLEARED] += 1
        wanted = value & ~status
        for step in STEPS[self.version]:
            if step.bit & wanted:
                wanted &= ~int(step.bit)
                self._take(step.bit, step.requires)
        if wanted:
            self.counters[Misuse.STATUS_RESERVED] += 1

    def _take(self, bit: Status, requires: Status) -> None:
        if requires not in self._status or Status.FAILED in self._status:
            self.counters[Misuse.STATUS_ORDER] += 1
            return
        if bit is Status.FEATURES_OK and not self._negotiate():
            return
        self._status |= bit
        if bit is Status.DRIVER_OK:
            self._use_features()
            for index, queue in enumerate(self._queues):
                if queue.used and not queue.started:
                    self._start(index)

    def _reset(self) -> None:
        if self._status or self._settled or self._config_written:
            self._resetting = True
            self._backend.reset()
        else:
            # A driver's first act. The backend has seen nothing yet that it could undo.
            self._clear()

    def _clear(self) -> None:
        self._status = Status(0)
        self._features = Feature(0)
        self._settled = False
        self._words = [0] * _FEATURE_WORDS
        self._undefined = False
        """The driver asked for a bit above all words: nothing offers that."""
        self._device_features_sel = 0
        self._driver_features_sel = 0
        self._queue_sel = 0
        self._guest_page_size = 0
        self._queues = [QueueRegisters() for _ in range(self._backend.queue_count)]
        self._config_written = False
        self.interrupt.reset()

    # ── Queues ─────────────────────────────────────────────────────────────────────────────────

    @property
    def _selected(self) -> QueueRegisters | None:
        return self._queue(self._queue_sel)

    def _queue(self, index: int) -> QueueRegisters | None:
        return self._queues[index] if index < len(self._queues) else None

    def _write_queue_sel(self, value: int) -> None:
        self._queue_sel = value

    def _write_queue_size(self, value: int) -> None:
        self._queues[self._queue_sel].size = value

    def _low(self, part: str) -> Callable[[int], None]:
        return lambda value: self._set_address(part, _ALL_ONES << 32, value)

    def _high(self, part: str) -> Callable[[int], None]:
        return lambda value: self._set_address(part, _ALL_ONES, value << 32)

    def _set_address(self, part: str, kept: int, value: int) -> None:
        queue = self._queues[self._queue_sel]
        setattr(queue, part, getattr(queue, part) & kept | value)

    def _write_queue_ready(self, value: int) -> None:
        queue = self._queues[self._queue_sel]
        if value not in (0, 1):
            self.counters[Misuse.VALUE] += 1
        elif not value:
            self._stop(self._queue_sel)
        elif queue.stopping:
            self.counters[Misuse.QUEUE_IN_USE] += 1
        elif not queue.used:
            queue.used = True
            if Status.DRIVER_OK in self._status:
                self._start(self._queue_sel)

    def _write_queue_reset(self, value: int) -> None:
        if value != 1:
            self.counters[Misuse.VALUE] += 1
            return
        self._queues[self._queue_sel].resetting = True
        self._stop(self._queue_sel)

    def _start(self, index: int) -> None:
        if self._status & (Status.FAILED | Status.NEEDS_RESET):
            return
        queue = self._queues[index]
        try:
            modern = self.version == MODERN
            setup = queue.modern() if modern else queue.legacy(self._guest_page_size)
        except SetupError as error:
            self.needs_reset(f"queue {index} cannot start: {error}")
        else:
            queue.started = True
            self._backend.start_queue(index, setup)

    def _stop(self, index: int) -> None:
        """Starts the drain of a queue; its registers say that it is in use until it has ended."""
        queue = self._queues[index]
        if not queue.started:
            self._let_go(index)
        elif not queue.stopping:
            queue.stopping = True
            self._backend.stop_queue(index, abort=queue.resetting)

    def _let_go(self, index: int) -> None:
        queue = self._queues[index]
        if queue.resetting:
            # Back to defaults, all of it (2.6.1.1.1); QueueReset and QueueReady read 0.
            self._queues[index] = QueueRegisters()
        else:
            queue.used = queue.started = queue.stopping = False
            queue.page_frame = 0

    def _notify(self, value: int) -> None:
        queue = self._queue(value)
        if queue is None:
            self.counters[Misuse.NO_QUEUE] += 1
        elif self.version == MODERN and Status.DRIVER_OK not in self._status:
            self.counters[Misuse.NOTIFY_EARLY] += 1
        elif not queue.started or queue.stopping:
            self.counters[Misuse.NOTIFY_UNUSED] += 1
        else:
            self._backend.notify(value)

    # ── Legacy (4.2.4) ─────────────────────────────────────────────────────────────────────────

    def _write_guest_page_size(self, value: int) -> None:
        if is_power_of_two(value):
            self._guest_page_size = value
        else:
            self.counters[Misuse.VALUE] += 1

    def _write_queue_align(self, value: int) -> None:
        if is_power_of_two(value):
            self._queues[self._queue_sel].align = value
        else:
            self.counters[Misuse.VALUE] += 1

    def _read_queue_pfn(self) -> int:
        return self._selected.page_frame if self._selected else 0

    def _write_queue_pfn(self, value: int) -> None:
        queue = self._queues[self._queue_sel]
        if not value:
            self._stop(self._queue_sel)
        elif queue.used:
            self.counters[Misuse.QUEUE_IN_USE] += 1
        else:
            # At once: legacy drivers use a device before DRIVER_OK (3.1.2).
            queue.page_frame, queue.used = value, True
            self._use_features()
            self._start(self._queue_sel)

    # ── Configuration space ────────────────────────────────────────────────────────────────────

    def _read_config(self, offset: int, size: int) -> int:
        if size not in _CONFIG_WIDTHS:
            self.counters[Misuse.WIDTH] += 1
            return 0
        if offset + size > len(self._config):
            self.counters[Misuse.OUTSIDE_CONFIG] += 1
        return int.from_bytes(self._config[offset : offset + size], "little")

    def _write_config(self, offset: int, size: int, value: int) -> None:
        if size not in _CONFIG_WIDTHS:
            misuse = Misuse.WIDTH
        elif offset + size > len(self._config):
            misuse = Misuse.OUTSIDE_CONFIG
        elif refusal := self._refusal(Register.CONFIG.when):
            misuse = refusal
        else:
            data = value.to_bytes(size, "little")
            try:
                self._backend.write_config(offset, data)
            except ValueError:
                misuse = Misuse.CONFIG_REFUSED
            else:
                self._config_written = True
                old = self._config
                self._refresh_config(old[:offset] + data + old[offset + size :])
                return
        self.counters[misuse] += 1

    def _refresh_config(self, expected: bytes) -> None:
        """Shows the backend's configuration; a new generation if a driver does not expect it so.

        Registers show a copy, so that no load falls between a change and its generation.
        """
        self._config = self._backend.read_config()
        if self._config != expected:
            self.interrupt.change_generation()
