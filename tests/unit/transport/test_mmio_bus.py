"""Addresses of register models."""

import pytest

from vscsi_emu.transport.mmio import MmioBus


class Model:
    """Remembers what reached it."""

    def __init__(self, answer: int = 0) -> None:
        self.answer = answer
        self.seen: list[tuple[int, ...]] = []

    def read(self, offset: int, size: int) -> int:
        self.seen.append((offset, size))
        return self.answer

    def write(self, offset: int, size: int, value: int) -> None:
        self.seen.append((offset, size, value))


def test_accesses_reach_their_device() -> None:
    bus = MmioBus()
    models = [Model(number) for number in range(3)]
    for number in (2, 0, 1):
        bus.map(0x1000 + 0x200 * number, models[number])
    assert [bus.read(0x1000 + 0x200 * number + 4, 4) for number in range(3)] == [0, 1, 2]
    bus.write(0x13FC, 4, 7)
    assert models[1].seen == [(4, 4), (0x1FC, 4, 7)]
    assert bus.unmapped == 0


@pytest.mark.parametrize("size", [1, 2, 4, 8])
@pytest.mark.parametrize("address", [0, 0xFF8, 0x1200, 1 << 64])
def test_where_no_device_is_all_bits_are_set(address: int, size: int) -> None:
    bus = MmioBus()
    model = Model()
    bus.map(0x1000, model)
    assert bus.read(address, size) == (1 << 8 * size) - 1
    bus.write(address, size, 0)
    assert not model.seen
    assert bus.unmapped == 2


@pytest.mark.parametrize(("base", "size"), [(0x1000, 0x200), (0xFFF, 2), (0x11FF, 1), (0, 0x9000)])
def test_devices_do_not_overlap(base: int, size: int) -> None:
    bus = MmioBus()
    bus.map(0x1000, Model())
    with pytest.raises(ValueError, match="overlaps the device at 0x1000"):
        bus.map(base, Model(), size)


@pytest.mark.parametrize(("base", "size"), [(-1, 4), (0, 0)])
def test_a_range_has_bytes(base: int, size: int) -> None:
    with pytest.raises(ValueError, match="no address range"):
        MmioBus().map(base, Model(), size)


def test_an_unmapped_device_is_gone() -> None:
    bus = MmioBus()
    bus.map(0x1000, Model())
    bus.unmap(0x1000)
    assert bus.read(0x1000, 4) == 0xFFFF_FFFF
    with pytest.raises(KeyError, match="0x1000"):
        bus.unmap(0x1000)
    bus.map(0x1000, Model())
    assert bus.read(0x1000, 4) == 0


@pytest.mark.parametrize("address", [0xFFF, 0x11FF])
def test_an_access_that_only_touches_a_device_misses_it(address: int) -> None:
    bus = MmioBus()
    model = Model()
    bus.map(0x1000, model)
    assert bus.read(address, 4) == 0xFFFF_FFFF
    assert not model.seen
