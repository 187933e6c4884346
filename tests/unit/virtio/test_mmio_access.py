"""Which loads and stores the registers take (virtio 1.4, 4.2.2)."""

import pytest

from tests.unit.virtio.mmio import Guest
from vscsi_emu.virtio.mmio import Misuse
from vscsi_emu.virtio.mmio_registers import LEGACY, MODERN, Access, Register

VERSIONS = (MODERN, LEGACY)


def registers(version: int) -> list[Register]:
    return [r for r in Register if version in r.versions and r is not Register.CONFIG]


@pytest.mark.normative("mmio.reg.d1")
@pytest.mark.parametrize("version", VERSIONS)
def test_magic_value(version: int) -> None:
    guest = Guest(version)
    magic = b"".join(guest.device.read(Register.MAGIC_VALUE, 4).to_bytes(4, "little") for _ in "1")
    assert magic == b"virt"


@pytest.mark.normative("mmio.reg.d2")
def test_version_of_a_modern_device() -> None:
    assert Guest(MODERN).get(Register.VERSION) == 2


@pytest.mark.normative("mmio.leg.d1")
def test_version_of_a_legacy_device() -> None:
    assert Guest(LEGACY).get(Register.VERSION) == 1


def test_there_is_no_version_3() -> None:
    with pytest.raises(ValueError, match="version 3"):
        Guest(3)


def test_device_id_is_the_backends() -> None:
    assert Guest().get(Register.DEVICE_ID) == 8


@pytest.mark.normative("mmio.reg.d14")
def test_registers_are_little_endian() -> None:
    """The low half of a register's value comes from its low addresses: features of word 0."""
    guest = Guest()
    guest.set(Register.DEVICE_FEATURES_SEL, 1)
    assert guest.get(Register.DEVICE_FEATURES).to_bytes(4, "little")[0] & 1


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("size", [1, 2, 8])
def test_registers_take_words_only(version: int, size: int) -> None:
    guest = Guest(version)
    for register in registers(version):
        assert guest.device.read(register, size) == 0
        guest.device.write(register, size, 1)
    assert guest.device.counters == {Misuse.WIDTH: 2 * len(registers(version))}
    assert guest.get(Register.STATUS) == 0


@pytest.mark.parametrize("offset", [0x001, 0x06E, 0x071, 0x0FE])
def test_registers_take_aligned_accesses_only(offset: int) -> None:
    guest = Guest()
    assert guest.device.read(offset, 4) == 0
    guest.device.write(offset, 4, 0xFFFF_FFFF)
    assert guest.device.counters == {Misuse.MISALIGNED: 2}


@pytest.mark.parametrize("version", VERSIONS)
def test_offsets_without_a_register(version: int) -> None:
    guest = Guest(version)
    holes = sorted(set(range(0, 0x100, 4)) - set(registers(version)))
    assert holes
    for offset in holes:
        assert guest.device.read(offset, 4) == 0
        guest.device.write(offset, 4, 0xFFFF_FFFF)
    assert guest.device.counters == {Misuse.UNKNOWN_REGISTER: 2 * len(holes)}
    assert not guest.backend.calls


@pytest.mark.parametrize("version", VERSIONS)
def test_write_only_registers_read_0(version: int) -> None:
    guest = Guest(version)
    write_only = [r for r in registers(version) if r.access == Access.WRITE]
    for register in write_only:
        assert guest.get(register) == 0
    assert guest.device.counters == {Misuse.WRITE_ONLY: len(write_only)}


@pytest.mark.parametrize("version", VERSIONS)
def test_read_only_registers_stay(version: int) -> None:
    guest = Guest(version)
    read_only = [r for r in registers(version) if r.access == Access.READ]
    before = {register: guest.get(register) for register in read_only}
    for register in read_only:
        guest.set(register, ~before[register])
    assert {register: guest.get(register) for register in read_only} == before
    assert guest.device.counters == {Misuse.READ_ONLY: len(read_only)}


@pytest.mark.normative("mmio.reg.d24")
@pytest.mark.parametrize("region", [0, 1, 255])
def test_no_shared_memory_region(region: int) -> None:
    guest = Guest()
    guest.set(Register.SHM_SEL, region)
    for register in (
        Register.SHM_LEN_LOW,
        Register.SHM_LEN_HIGH,
        Register.SHM_BASE_LOW,
        Register.SHM_BASE_HIGH,
    ):
        assert guest.get(register) == 0xFFFF_FFFF


def test_a_store_counts_its_own_bytes_only() -> None:
    guest = Guest()
    guest.device.write(Register.STATUS, 4, 0x1_0000_0001)
    assert guest.status == 1
