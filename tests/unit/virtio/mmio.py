"""A register model with a backend that only takes notes, and a driver's hands on it."""

from vscsi_emu import _dataplane
from vscsi_emu.virtio.features import Feature, Status
from vscsi_emu.virtio.mmio import MmioDevice
from vscsi_emu.virtio.mmio_queue import QueueSetup
from vscsi_emu.virtio.mmio_registers import LEGACY, MODERN, Register

OFFERED = Feature.VERSION_1 | Feature.EVENT_IDX | Feature.INDIRECT_DESC | Feature.SCSI_HOTPLUG
QUEUES = 4
WRITABLE = range(20, 28)
SETUP = QueueSetup(256, 0x1_0000_2000, 0x2_0000_4000, 0x3_0000_8000)

Call = tuple[object, ...]


class NotingBackend:
    """Does nothing; the test says when a drain ends."""

    def __init__(self) -> None:
        self.device_id = 8
        self.device_features = int(OFFERED)
        self.queue_count = QUEUES
        self.config = bytearray(range(1, 37))
        self.calls: list[Call] = []

    def take(self) -> list[Call]:
        """What was asked of it since the last time."""
        calls, self.calls = self.calls, []
        return calls

    def read_config(self) -> bytes:
        return bytes(self.config)

    def write_config(self, offset: int, data: bytes) -> None:
        if offset not in WRITABLE or offset + len(data) - 1 not in WRITABLE:
            raise ValueError("not writable")
        self.config[offset : offset + len(data)] = data

    def set_features(self, features: int) -> None:
        self.calls.append(("features", features))

    def start_queue(self, index: int, setup: QueueSetup) -> None:
        self.calls.append(("start", index, setup))

    def stop_queue(self, index: int, *, abort: bool) -> None:
        self.calls.append(("stop", index, abort))

    def notify(self, index: int) -> None:
        self.calls.append(("notify", index))

    def reset(self) -> None:
        self.calls.append(("reset",))


class Guest:
    """`device` with `backend` behind it, and shorthand for a driver's steps."""

    def __init__(self, version: int = MODERN) -> None:
        self.backend = NotingBackend()
        self.interrupt = _dataplane.Interrupt()
        self.device = MmioDevice(self.backend, self.interrupt, version=version)

    def get(self, register: Register) -> int:
        return self.device.read(register, 4)

    def set(self, register: Register, value: int) -> None:
        self.device.write(register, 4, value)

    @property
    def status(self) -> Status:
        return Status(self.get(Register.STATUS))

    def add_status(self, bits: Status) -> Status:
        self.set(Register.STATUS, self.status | bits)
        return self.status

    def acknowledge(self) -> None:
        self.add_status(Status.ACKNOWLEDGE)
        self.add_status(Status.DRIVER)

    def choose(self, features: int) -> None:
        for word in range(2):
            self.set(Register.DRIVER_FEATURES_SEL, word)
            self.set(Register.DRIVER_FEATURES, features >> 32 * word & 0xFFFF_FFFF)

    def negotiate(self, features: int = OFFERED) -> Status:
        """To FEATURES_OK, if the device has it so."""
        self.acknowledge()
        self.choose(features)
        return self.add_status(Status.FEATURES_OK)

    def run(self, features: int = OFFERED) -> None:
        """To DRIVER_OK; the calls so far are forgotten."""
        if self.device.version == LEGACY:
            self.acknowledge()
            self.choose(features & 0xFFFF_FFFF)
        else:
            assert Status.FEATURES_OK in self.negotiate(features)
        assert Status.DRIVER_OK in self.add_status(Status.DRIVER_OK)
        self.backend.take()

    def set_up(self, index: int, setup: QueueSetup = SETUP) -> None:
        """All of a queue but QueueReady."""
        self.set(Register.QUEUE_SEL, index)
        self.set(Register.QUEUE_SIZE, setup.size)
        for low, high, address in (
            (Register.QUEUE_DESC_LOW, Register.QUEUE_DESC_HIGH, setup.desc),
            (Register.QUEUE_DRIVER_LOW, Register.QUEUE_DRIVER_HIGH, setup.driver),
            (Register.QUEUE_DEVICE_LOW, Register.QUEUE_DEVICE_HIGH, setup.device),
        ):
            self.set(low, address & 0xFFFF_FFFF)
            self.set(high, address >> 32)

    def enable(self, index: int, setup: QueueSetup = SETUP) -> None:
        self.set_up(index, setup)
        self.set(Register.QUEUE_READY, 1)

    def reset(self) -> None:
        """A whole reset, also where it takes time."""
        self.set(Register.STATUS, 0)
        self.device.reset_done()
