"""What both devices are asked about registers. Each script yields (observation, value)."""

from collections.abc import Iterator

from tests.conformance.differential.machine import QUEUES, Machine
from vscsi_emu.virtio import config
from vscsi_emu.virtio.features import Feature, Status
from vscsi_emu.virtio.mmio_registers import Access, Register

Observations = Iterator[tuple[str, str]]
UNUSED_OFFSETS = (0x1C, 0x48, 0x54, 0x68, 0x74, 0xC4, 0xF8)
FIELDS = (
    *("num_queues", "seg_max", "max_sectors", "cmd_per_lun", "event_info_size"),
    *("sense_size", "cdb_size", "max_channel", "max_target", "max_lun"),
)


def after_reset(machine: Machine) -> Observations:
    """Every register, also those that a driver must not read."""
    machine.reset()
    for register in Register:
        if register is not Register.CONFIG:
            yield register.name, f"{machine.read(register):#x}"
    for offset in UNUSED_OFFSETS:
        yield f"unused_{offset:#x}", f"{machine.read(offset):#x}"


def features(machine: Machine) -> Observations:
    machine.reset()
    for select in (0, 1, 2, 0xFFFF_FFFF):
        machine.write(Register.DEVICE_FEATURES_SEL, select)
        yield f"word_{select:#x}", f"{machine.read(Register.DEVICE_FEATURES):#x}"


def config_space(machine: Machine) -> Observations:
    """Each field, other widths of access, what lies behind, and writes."""
    machine.reset()
    start = Register.CONFIG
    for name, (offset, size) in zip(FIELDS, config.FIELDS, strict=True):
        yield name, f"{machine.read(start + offset, size):#x}"
    for width in (1, 2, 4):
        values = [machine.read(start + at, width) for at in range(0, config.SIZE, width)]
        yield f"width_{width}", " ".join(f"{value:x}" for value in values)
    yield "unaligned", f"{machine.read(start + 9, 4):#x}"
    yield "over_the_end", f"{machine.read(start + config.SIZE - 2, 4):#x}"
    yield "behind_the_end", f"{machine.read(start + config.SIZE + 4):#x}"
    machine.write(Register.STATUS, Status.ACKNOWLEDGE | Status.DRIVER)
    for name, offset, value in (
        ("sense_size", 20, 200),
        ("cdb_size", 24, 64),
        ("num_queues", 0, 1),
        ("max_lun", 32, 0),
    ):
        machine.write(start + offset, value)
        yield f"{name}_written_{value}", str(machine.read(start + offset))
    machine.reset()
    for name, offset in (("sense_size", 20), ("cdb_size", 24)):
        yield f"{name}_after_reset", str(machine.read(start + offset))


def status(machine: Machine) -> Observations:
    """The steps of initialization in order, and out of order."""
    for name, steps in _STATUS_STEPS.items():
        machine.reset()
        seen = []
        for step in steps:
            if step == Status.FEATURES_OK | Status.DRIVER | Status.ACKNOWLEDGE:
                _accept(machine, _offered(machine))
            if step:
                machine.write(Register.STATUS, step)
            else:
                machine.reset()  # which may take its time
            seen.append(f"{machine.read(Register.STATUS):#x}")
        yield name, " ".join(seen)
    machine.reset()


_A, _D, _F, _OK = Status.ACKNOWLEDGE, Status.DRIVER, Status.FEATURES_OK, Status.DRIVER_OK
_STATUS_STEPS = {
    "in_order": (_A, _A | _D, _A | _D | _F, _A | _D | _F | _OK),
    "reset_by_0": (_A, _A | _D, 0),
    "driver_first": (_D, _A | _D),
    "driver_ok_without_features_ok": (_A, _A | _D, _A | _D | _OK),
    "bits_cleared": (_A, _A | _D, _A),
    "reserved_bit": (_A, _A | _D, _A | _D | 0x10),
    "needs_reset_written": (_A, _A | _D, _A | _D | Status.NEEDS_RESET),
    "failed": (_A, _A | _D, _A | _D | Status.FAILED, _A | _D | _F),
}


def feature_negotiation(machine: Machine) -> Observations:
    """Which driver features FEATURES_OK stands for (legacy devices have no such bit)."""
    if not machine.modern:
        return
    offered = _offered(machine)
    for name, accepted in (
        ("all", offered),
        ("version_1_only", int(Feature.VERSION_1)),
        ("without_version_1", offered & ~Feature.VERSION_1),
        ("undefined_bit_23", offered | 1 << 23),
        ("undefined_bit_50", offered | 1 << 50),
        ("t10_pi_not_offered", offered | Feature.SCSI_T10_PI),
    ):
        machine.reset()
        machine.write(Register.STATUS, _A)
        machine.write(Register.STATUS, _A | _D)
        _accept(machine, accepted)
        machine.write(Register.STATUS, _A | _D | _F)
        yield name, f"{machine.read(Register.STATUS):#x}"
    machine.reset()


def queues(machine: Machine) -> Observations:
    """Size and state of queues that are there and that are not."""
    machine.reset()
    for index in (0, 1, 2, 1 + QUEUES, 2 + QUEUES, 1023, 1024, 0xFFFF_FFFF):
        machine.write(Register.QUEUE_SEL, index)
        yield f"size_max_of_{index}", str(machine.read(Register.QUEUE_SIZE_MAX))
    in_use = Register.QUEUE_READY if machine.modern else Register.QUEUE_PFN
    for index in (2, 2 + QUEUES):
        bus = machine.bus()
        machine.write(Register.STATUS, _A)
        machine.write(Register.STATUS, _A | _D)
        bus.set_driver_features(bus.device_features())
        machine.write(Register.STATUS, _A | _D | (_F if machine.modern else 0))
        machine.write(Register.QUEUE_SEL, index)
        machine.write(Register.QUEUE_SIZE, 8)
        if machine.modern:
            for register, address in (
                (Register.QUEUE_DESC_LOW, 0x10_0000),
                (Register.QUEUE_DRIVER_LOW, 0x10_1000),
                (Register.QUEUE_DEVICE_LOW, 0x10_2000),
            ):
                machine.write(register, address)
            machine.write(in_use, 1)
        else:
            machine.write(Register.GUEST_PAGE_SIZE, 4096)
            machine.write(Register.QUEUE_ALIGN, 4096)
            machine.write(in_use, 0x100)
        yield f"in_use_{index}", f"{machine.read(in_use):#x}"
        machine.write(Register.QUEUE_SEL, 0)
        yield f"other_than_{index}", f"{machine.read(in_use):#x}"
        machine.write(Register.QUEUE_SEL, index)
        machine.reset()
        machine.write(Register.QUEUE_SEL, index)
        yield f"in_use_{index}_after_reset", f"{machine.read(in_use):#x}"


def wrong_accesses(machine: Machine) -> Observations:
    machine.reset()
    yield "byte_of_magic", f"{machine.read(Register.MAGIC_VALUE, 1):#x}"
    yield "half_of_magic", f"{machine.read(Register.MAGIC_VALUE, 2):#x}"
    yield "magic_and_version", f"{machine.read(Register.MAGIC_VALUE, 8):#x}"
    yield "across_registers", f"{machine.read(Register.MAGIC_VALUE + 2):#x}"
    machine.write(Register.STATUS, _A)
    machine.write(Register.STATUS, _A | _D, size=1)
    yield "status_byte_written", f"{machine.read(Register.STATUS):#x}"
    for register in Register:
        if register.access is Access.READ:
            before = machine.read(register)
            machine.write(register, before ^ 0xFF)
            after = machine.read(register)
            yield f"{register.name}_written", "changed" if after != before else "as before"
    for offset in UNUSED_OFFSETS:
        machine.write(offset, 0xFFFF_FFFF)
        yield f"unused_{offset:#x}_written", f"{machine.read(offset):#x}"
    machine.write(Register.QUEUE_NOTIFY, 2)
    machine.write(Register.QUEUE_NOTIFY, 0xFFFF_FFFF)
    yield "status_after_wrong_notifies", f"{machine.read(Register.STATUS):#x}"
    machine.write(Register.INTERRUPT_ACK, 0xFFFF_FFFF)
    yield "interrupts_after_ack_of_all", f"{machine.read(Register.INTERRUPT_STATUS):#x}"
    machine.reset()


def _offered(machine: Machine) -> int:
    return machine.bus().device_features()


def _accept(machine: Machine, accepted: int) -> None:
    for word in range(2):
        machine.write(Register.DRIVER_FEATURES_SEL, word)
        machine.write(Register.DRIVER_FEATURES, accepted >> 32 * word & 0xFFFF_FFFF)


SCRIPTS = (
    after_reset,
    features,
    config_space,
    status,
    feature_negotiation,
    queues,
    wrong_accesses,
)
