"""The driver at registers played in Python: what it accesses, how, and in which order."""

import time
from collections.abc import Callable

import pytest

from tests.unit.driver.registers import BASE, BY_OFFSET, Access, FakeRegisters, legacy
from vscsi_emu.driver.dma import DmaAllocator
from vscsi_emu.driver.mmio import MmioError, NeedsReset, VirtioMmioBus
from vscsi_emu.driver.virtio_scsi import Options, VirtioScsi
from vscsi_emu.driver.vring import RingLayout
from vscsi_emu.virtio import config
from vscsi_emu.virtio.config import ScsiConfig
from vscsi_emu.virtio.features import Feature, Status
from vscsi_emu.virtio.mmio_registers import LEGACY, MODERN, InterruptBit, Register
from vscsi_emu.virtio.mmio_registers import Access as Direction

BOTH = pytest.mark.parametrize("make", [FakeRegisters, legacy], ids=["modern", "legacy"])


def attach(registers: FakeRegisters, *, timeout: float = 5.0) -> VirtioMmioBus:
    bus = VirtioMmioBus.find(registers, BASE, DmaAllocator(0x1000, 0xF_F000), timeout=timeout)
    assert bus is not None
    return bus


def probe(registers: FakeRegisters) -> tuple[VirtioMmioBus, VirtioScsi]:
    bus = attach(registers)
    return bus, VirtioScsi(bus, Options(queues=None, cdb_size=64), timeout=1.0)


# ── Which device it is ──────────────────────────────────────────────────────────────────────────


@pytest.mark.normative("mmio.init.r1", "mmio.init.r2")
def test_magic_version_and_id_come_first() -> None:
    registers = FakeRegisters()
    probe(registers)
    assert [(a.kind, a.offset) for a in registers.log[:3]] == [
        ("read", Register.MAGIC_VALUE),
        ("read", Register.VERSION),
        ("read", Register.DEVICE_ID),
    ]


@pytest.mark.normative("mmio.reg.r6", "mmio.reg.r7")
def test_a_wrong_magic_value_is_left_alone() -> None:
    registers = FakeRegisters(magic=0x74726977)
    with pytest.raises(MmioError, match="magic value 0x74726977 at 0xa0000000"):
        attach(registers)
    assert registers.offsets("read") == [Register.MAGIC_VALUE]
    assert not registers.offsets("write")


@pytest.mark.normative("mmio.reg.r8", "mmio.reg.r9")
@pytest.mark.parametrize("version", [0, 3, 0xFFFF_FFFF])
def test_an_unknown_version_is_left_alone(version: int) -> None:
    """Version 1 is the legacy interface, which a transitional driver knows (4.2.4)."""
    registers = FakeRegisters(version=version)
    with pytest.raises(MmioError, match="version"):
        attach(registers)
    assert registers.offsets("read") == [Register.MAGIC_VALUE, Register.VERSION]
    assert not registers.offsets("write")


@pytest.mark.normative("mmio.reg.r10", "mmio.reg.r11", "mmio.init.r3", "mmio.init.r4")
def test_a_placeholder_is_no_device_and_no_error() -> None:
    registers = FakeRegisters(device_id=0)
    assert VirtioMmioBus.find(registers, BASE, DmaAllocator(0, 0x1000)) is None
    assert registers.offsets("read") == [
        Register.MAGIC_VALUE,
        Register.VERSION,
        Register.DEVICE_ID,
    ]
    assert not registers.offsets("write")


# ── Every access of a whole life ────────────────────────────────────────────────────────────────


def live(registers: FakeRegisters) -> VirtioMmioBus:
    """Probe, config, notification, interrupt, reset."""
    bus, _ = probe(registers)
    bus.notify(2)
    registers.interrupts = [int(InterruptBit.USED_BUFFER | InterruptBit.CONFIG_CHANGE)]
    bus.wait([2], 0.0)
    bus.stop_queue(2)
    bus.reset()
    return bus


@pytest.mark.normative("mmio.reg.r1", "mmio.reg.r2", "mmio.reg.r3", "mmio.init.r5")
@BOTH
def test_only_registers_of_the_version_are_accessed_as_they_may(
    make: Callable[[], FakeRegisters],
) -> None:
    registers = make()
    live(registers)
    for access in registers.log:
        if access.offset < Register.CONFIG:
            register = BY_OFFSET[access.offset]
            assert registers.version in register.versions
            assert Direction[access.kind.upper()] in register.access
            assert not register.name.startswith("SHM")
        else:
            assert access.offset + access.size <= Register.CONFIG + config.SIZE


@pytest.mark.normative("mmio.reg.r4", "mmio.reg.r5", "cfg.r1")
@BOTH
def test_every_access_has_the_width_of_what_it_accesses(make: Callable[[], FakeRegisters]) -> None:
    registers = make()
    live(registers)
    fields = {Register.CONFIG + offset: size for offset, size in config.FIELDS}
    for access in registers.log:
        wanted = 4 if access.offset < Register.CONFIG else fields[access.offset]
        assert access.size == wanted
        assert access.offset % access.size == 0


@pytest.mark.normative("mmio.init.r6", "init.r4")
def test_general_initialization_follows() -> None:
    registers = FakeRegisters()
    probe(registers)
    statuses = [value for register, value in registers.written() if register is Register.STATUS]
    assert statuses == [0, 1, 3, 11, 15]
    features_ok = registers.written().index((Register.STATUS, 11))
    later = [register for register, _ in registers.written()[features_ok:]]
    assert Register.DRIVER_FEATURES not in later


@pytest.mark.normative("mmio.reg.r12", "mmio.reg.r13")
def test_feature_words_are_selected_before_they_are_accessed() -> None:
    registers = FakeRegisters()
    bus = attach(registers)
    registers.log.clear()
    assert bus.device_features() == registers.features
    bus.set_driver_features(int(Feature.VERSION_1 | Feature.SCSI_HOTPLUG))
    assert [(BY_OFFSET[a.offset], a.value) for a in registers.log] == [
        (Register.DEVICE_FEATURES_SEL, 0),
        (Register.DEVICE_FEATURES, registers.features & 0xFFFF_FFFF),
        (Register.DEVICE_FEATURES_SEL, 1),
        (Register.DEVICE_FEATURES, 1),
        (Register.DRIVER_FEATURES_SEL, 0),
        (Register.DRIVER_FEATURES, Feature.SCSI_HOTPLUG),
        (Register.DRIVER_FEATURES_SEL, 1),
        (Register.DRIVER_FEATURES, 1),
    ]


@pytest.mark.normative("rsvd.r2")
def test_a_modern_device_without_version_1_is_refused() -> None:
    registers = FakeRegisters(features=int(Feature.SCSI_HOTPLUG))
    with pytest.raises(MmioError, match="VERSION_1"):
        probe(registers)
    assert registers.status & Status.FAILED
    assert not registers.status & Status.DRIVER_OK


@pytest.mark.normative("status.r3")
def test_after_a_failure_initialization_begins_with_a_reset() -> None:
    registers = FakeRegisters(features=0)
    with pytest.raises(MmioError):
        probe(registers)
    assert registers.written()[-1] == (Register.STATUS, Status.FAILED | 3)
    registers.features = int(Feature.VERSION_1)
    registers.log.clear()
    probe(registers)
    assert registers.written()[0] == (Register.STATUS, 0)


@pytest.mark.normative("reset.r1")
def test_a_reset_ends_when_status_reads_0() -> None:
    registers = FakeRegisters()
    bus, _ = probe(registers)
    registers.slow_resets = 5
    registers.log.clear()
    bus.reset()
    assert registers.offsets("read").count(Register.STATUS) == 6
    registers.status, registers.slow_resets = 1, 1 << 30
    bus = attach(registers, timeout=0.05)
    with pytest.raises(TimeoutError, match="device reset"):
        bus.reset()


# ── Configuration space ─────────────────────────────────────────────────────────────────────────


@pytest.mark.normative("cfg.r2", "cfg.r3")
def test_a_torn_read_is_read_again() -> None:
    registers = FakeRegisters()
    bus = attach(registers)
    new = ScsiConfig(num_queues=7, max_lun=1)

    def change(access: Access) -> None:
        if access.offset == Register.CONFIG + 16:
            registers.config[:] = new.pack()
            registers.generation += 1
            registers.hooks.clear()

    registers.hooks.append(change)
    assert bus.read_config(0, config.SIZE) == new.pack()


@pytest.mark.normative("cfg.r2")
def test_a_torn_read_of_a_legacy_device_is_read_again() -> None:
    """Without a generation count: until two reads agree."""
    registers = legacy()
    bus = attach(registers)
    new = ScsiConfig(num_queues=7, max_lun=1)

    def change(access: Access) -> None:
        if access.offset == Register.CONFIG + 16:
            registers.config[:] = new.pack()
            registers.hooks.clear()

    registers.hooks.append(change)
    assert bus.read_config(0, config.SIZE) == new.pack()


def test_a_configuration_that_never_rests() -> None:
    registers = FakeRegisters()
    bus = attach(registers, timeout=0.05)

    def change(access: Access) -> None:
        if access.offset >= Register.CONFIG:
            registers.generation += 1

    registers.hooks.append(change)
    with pytest.raises(TimeoutError, match="configuration"):
        bus.read_config(0, config.SIZE)


@pytest.mark.parametrize(("offset", "length"), [(1, 4), (0, 3), (28, 3), (36, 4), (0, 0), (32, 8)])
def test_pieces_of_fields_are_refused(offset: int, length: int) -> None:
    bus = attach(FakeRegisters())
    with pytest.raises(ValueError, match="not whole configuration fields"):
        bus.read_config(offset, length)


# ── Queues ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.normative("mmio.vq.r1", "mmio.reg.r14")
def test_order_of_starting_a_queue() -> None:
    registers = FakeRegisters()
    bus = attach(registers)
    layout = RingLayout(64, 0x1_2000, 0x1_3000, 0x1_4000)
    registers.log.clear()
    bus.start_queue(1, layout)
    assert [(BY_OFFSET[a.offset].name, a.value) for a in registers.log] == [
        ("QUEUE_SEL", 1),
        ("QUEUE_READY", 0),
        ("QUEUE_SIZE_MAX", 64),
        ("QUEUE_SIZE", 64),
        ("QUEUE_DESC_LOW", 0x1_2000),
        ("QUEUE_DESC_HIGH", 0),
        ("QUEUE_DRIVER_LOW", 0x1_3000),
        ("QUEUE_DRIVER_HIGH", 0),
        ("QUEUE_DEVICE_LOW", 0x1_4000),
        ("QUEUE_DEVICE_HIGH", 0),
        ("QUEUE_READY", 1),
    ]


@pytest.mark.normative("mmio.reg.r14", "mmio.leg.r6")
@BOTH
def test_rings_are_no_larger_than_the_device_says(make: Callable[[], FakeRegisters]) -> None:
    registers = make()
    registers.queue_size_max = 16
    _, device = probe(registers)
    assert {q.ring.layout.size for q in device.queues.values()} == {16}
    bus = attach(make())
    with pytest.raises(MmioError, match="at most 64 entries, not 128"):
        bus.start_queue(0, RingLayout.contiguous(128, 0x4000))


@pytest.mark.normative("mmio.reg.r15", "mmio.leg.r5")
@BOTH
def test_a_running_queue_is_not_touched(make: Callable[[], FakeRegisters]) -> None:
    registers = make()
    bus = attach(registers)
    bus.start_queue(0, RingLayout.contiguous(64, 0x4000))
    registers.log.clear()
    for touch in (
        lambda: bus.start_queue(0, RingLayout.contiguous(64, 0x8000)),
        lambda: bus.max_queue_size(0),
    ):
        with pytest.raises(MmioError, match="queue 0 is running already"):
            touch()
    assert {BY_OFFSET[a.offset] for a in registers.log} <= {
        Register.QUEUE_SEL,
        Register.QUEUE_READY,
        Register.QUEUE_PFN,
    }


@pytest.mark.normative("mmio.reg.r16", "mmio.reg.r17", "mmio.leg.r4")
@BOTH
def test_stopping_a_queue_is_read_back(make: Callable[[], FakeRegisters]) -> None:
    registers = make()
    bus = attach(registers)
    bus.start_queue(1, RingLayout.contiguous(64, 0x4000))
    registers.slow_resets = 3
    registers.log.clear()
    bus.stop_queue(1)
    register = Register.QUEUE_READY if bus.version == MODERN else Register.QUEUE_PFN
    assert registers.written() == [(Register.QUEUE_SEL, 1), (register, 0)]
    assert registers.offsets("read") == [register] * 4


@pytest.mark.normative(
    "mmio.reg.r21", "mmio.reg.r22", "mmio.reg.r23", "vqreset.r1", "vqreset.r3", "vqreset.r4"
)
def test_a_queue_reset_is_over_when_it_reads_0() -> None:
    registers = FakeRegisters()
    bus = attach(registers)
    bus.start_queue(1, RingLayout.contiguous(64, 0x4000))
    registers.slow_resets = 3
    registers.log.clear()
    bus.reset_queue(1)
    assert registers.written() == [(Register.QUEUE_SEL, 1), (Register.QUEUE_RESET, 1)]
    assert registers.offsets("read") == [Register.QUEUE_RESET] * 4
    bus.start_queue(1, RingLayout.contiguous(8, 0x8000))
    assert (Register.QUEUE_SIZE, 8) in registers.written()


# ── Legacy ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.normative("split.leg.r1", "mmio.leg.r1")
@pytest.mark.parametrize("size", [2, 16, 64, 128])
def test_a_legacy_queue_has_the_size_that_the_device_says(size: int) -> None:
    registers = legacy()
    registers.queue_size_max = size
    _, device = probe(registers)
    for index, queue in device.queues.items():
        assert queue.ring.layout == RingLayout.contiguous(size, queue.ring.layout.desc)
        assert registers.queues[index, Register.QUEUE_SIZE] == size


@pytest.mark.normative("mmio.leg.r1", "mmio.leg.r2", "mmio.leg.r3", "split.leg.r2")
def test_a_legacy_queue_is_a_page_number() -> None:
    registers = legacy()
    _, device = probe(registers)
    written = registers.written()
    names = [register for register, _ in written]
    assert names.index(Register.GUEST_PAGE_SIZE) < names.index(Register.QUEUE_SIZE)
    assert names.count(Register.GUEST_PAGE_SIZE) == 1
    values = dict(written)
    assert values[Register.GUEST_PAGE_SIZE] == values[Register.QUEUE_ALIGN] == 4096
    frames = [value for register, value in written if register is Register.QUEUE_PFN]
    layouts = [queue.ring.layout for queue in device.queues.values()]
    assert frames == [layout.desc // 4096 for layout in layouts]
    for layout in layouts:
        assert layout.driver == layout.desc + 16 * 64
        assert layout.device == layout.desc + 4096


@pytest.mark.normative("mmio.leg.r4")
def test_after_a_legacy_reset_no_queue_has_a_page() -> None:
    registers = legacy()
    bus, device = probe(registers)
    registers.log.clear()
    bus.reset()
    written = registers.written()
    assert written[0] == (Register.STATUS, 0)
    selected = [value for register, value in written if register is Register.QUEUE_SEL]
    assert sorted(selected) == sorted(device.queues)
    assert {value for register, value in written if register is Register.QUEUE_PFN} == {0}


@pytest.mark.normative("mmio.leg.r4")
@pytest.mark.parametrize("base", [0, 0x4010])
def test_a_legacy_ring_at_page_0_or_between_pages(base: int) -> None:
    bus = attach(legacy())
    with pytest.raises(ValueError, match="cannot lie at"):
        bus.start_queue(0, RingLayout.contiguous(64, base))


def test_a_legacy_ring_in_pieces() -> None:
    bus = attach(legacy())
    with pytest.raises(ValueError, match="in one block"):
        bus.start_queue(0, RingLayout(64, 0x4000, 0x6000, 0x8000))


def test_legacy_devices_have_32_feature_bits() -> None:
    registers = legacy()
    registers.features |= 1 << 32
    _, device = probe(registers)
    assert Feature.VERSION_1 not in device.features
    assert Register.DRIVER_FEATURES in [register for register, _ in registers.written()]
    assert (Register.DRIVER_FEATURES_SEL, 1) not in registers.written()
    assert attach(registers).version == LEGACY


# ── Interrupts ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.normative("mmio.irq.r1", "mmio.irq.r3", "mmio.reg.r19")
@pytest.mark.parametrize("status", [1, 2, 3])
def test_an_interrupt_is_read_and_acknowledged(status: int) -> None:
    registers = FakeRegisters()
    bus, _ = probe(registers)
    registers.log.clear()
    registers.interrupts = [status]
    ready = bus.wait([2], 0.0)
    # After a configuration change the driver also looks whether the device is well.
    looks = [Register.STATUS] if status & 2 else []
    assert registers.offsets("read") == [Register.INTERRUPT_STATUS, *looks]
    assert registers.written() == [(Register.INTERRUPT_ACK, status)]
    assert ready == ({2} if status & 1 else set())
    assert bus.config_changes == status >> 1


@pytest.mark.normative("mmio.reg.r18", "mmio.reg.r20")
def test_undefined_interrupts_are_ignored_and_not_acknowledged() -> None:
    registers = FakeRegisters()
    bus, _ = probe(registers)
    registers.log.clear()
    registers.interrupts = [0xFFFF_FFFD, 0xFFFF_FFFC]
    assert bus.wait([2], 0.0) == {2}
    assert bus.wait([2], 0.0) == set()
    assert registers.written() == [(Register.INTERRUPT_ACK, 1)]
    assert bus.config_changes == 0


@pytest.mark.normative("mmio.irq.r2")
def test_a_used_buffer_may_be_of_any_queue() -> None:
    registers = FakeRegisters()
    bus, device = probe(registers)
    registers.interrupts = [1]
    assert bus.wait([3], 0.0) == {3}
    # Nobody waited for the others then, and the interrupt is acknowledged.
    others = set(device.queues) - {3}
    assert bus.wait(others, 0.0) == others
    assert bus.wait(device.queues, 0.0) == set()


@pytest.mark.normative("status.r4")
def test_a_broken_device_is_not_waited_for() -> None:
    registers = FakeRegisters()
    bus, device = probe(registers)
    registers.status |= Status.NEEDS_RESET
    registers.interrupts = [2]
    began = time.monotonic()
    with pytest.raises(NeedsReset):
        device.execute(0, 0, bytes(6))
    assert time.monotonic() - began < 1.0
    registers.log.clear()
    bus.reset()
    assert registers.written() == [(Register.STATUS, 0)]


@pytest.mark.normative("notif.r1")
def test_a_notification_is_the_index_of_its_queue() -> None:
    registers = FakeRegisters()
    bus, _ = probe(registers)
    registers.log.clear()
    for index in (2, 4):
        bus.notify(index)
    assert registers.written() == [(Register.QUEUE_NOTIFY, 2), (Register.QUEUE_NOTIFY, 4)]


def test_a_line_that_stays_asserted_for_nothing_ends_with_the_deadline() -> None:
    registers = FakeRegisters()
    bus, _ = probe(registers)
    registers.interrupts = [0]
    assert bus.wait([2], 0.05) == set()
