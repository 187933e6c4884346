"""Our driver at a device that means no good: a clear error or correct work, and never a hang."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vscsi_emu.config import from_arguments
from vscsi_emu.driver.disk import Disk
from vscsi_emu.driver.dma import DmaAllocator
from vscsi_emu.driver.mmio import VirtioMmioBus
from vscsi_emu.driver.request import AnswerError
from vscsi_emu.driver.virtio_scsi import VirtioScsi
from vscsi_emu.hostile import BEHAVIOURS, Behaviour, Hostility, Place
from vscsi_emu.inprocess import RAM, InProcess, Slot
from vscsi_emu.testing import hostile
from vscsi_emu.testing.hostile import make_hostile
from vscsi_emu.virtio.scsi import TmfType

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "hostile-device.md"
PATIENCE = 0.5
"""Seconds that the driver waits for what never comes."""
TIMEOUT = 60.0
"""For all else."""
GOES_ON = "goes on"


def find(slot: Slot, patience: float = TIMEOUT) -> VirtioMmioBus:
    allocator = DmaAllocator(1 << 20, RAM - (1 << 20))
    bus = VirtioMmioBus.find(slot, slot.base, allocator, timeout=patience)
    assert bus is not None
    return bus


def use(slot: Slot, hostility: Hostility, patience: float) -> None:
    """Probes, writes and reads back, resets, and does it once more."""
    bus = find(slot, patience)
    for _ in range(2):
        disk = Disk(VirtioScsi(bus, timeout=patience), 0, 0)
        hostility.arm()
        for number in range(8):
            data = bytes([number + 1]) * 4096
            disk.write(8 * number, data)
            assert disk.read(8 * number, 8) == data
        bus.reset()


def what_became(names: list[str], *, seed: int = 0, chance: int = 100) -> tuple[str, int]:
    """The driver's error, or that it went on; and how many misdeeds there were."""
    waits = any(BEHAVIOURS[name].driver.startswith("TimeoutError") for name in names)
    late = all(BEHAVIOURS[name].place is Place.RING for name in names)
    with InProcess(from_arguments(["mem:1M"])) as machine:
        [slot] = machine.slots
        hostility = make_hostile(machine, slot, names, seed=seed, chance=chance, armed=not late)
        try:
            use(slot, hostility, PATIENCE if waits else TIMEOUT)
            became = GOES_ON
        except (RuntimeError, TimeoutError, ValueError) as error:
            became = f"{type(error).__name__}: {error}"
        return became, hostility.done


@pytest.mark.parametrize("behaviour", BEHAVIOURS.values(), ids=BEHAVIOURS.keys())
def test_the_driver_notices(behaviour: Behaviour) -> None:
    possible = [each.partition(": ") for each in behaviour.driver.split(", or ")]
    for seed in range(3):
        became, done = what_became([behaviour.name], seed=seed)
        assert done, "the device was honest"
        assert any(became.startswith(kind) and text in became for kind, _, text in possible), became


@pytest.mark.parametrize("seed", range(12))
def test_all_that_rings_can_do_at_once_ends_in_an_error(seed: int) -> None:
    names = [name for name, each in BEHAVIOURS.items() if each.place is Place.RING]
    became, done = what_became([*names, "interrupt-storm"], seed=seed, chance=20)
    assert done
    assert became.startswith(("RingBroken", "AnswerError", "TimeoutError")), became


def test_a_storm_does_not_hide_that_an_answer_is_missing() -> None:
    became, _ = what_became(["used-never", "interrupt-storm"])
    assert became.startswith("TimeoutError")


def test_a_seed_does_the_same_again() -> None:
    first, again, other = (what_became(["used-id-out-of-range"], seed=s)[0] for s in (1, 1, 2))
    assert first == again != other


def test_an_empty_answer_to_task_management_is_an_error() -> None:
    with InProcess(from_arguments(["mem:1M"])) as machine:
        [slot] = machine.slots
        make_hostile(machine, slot, ["used-length-too-short"])
        device = VirtioScsi(find(slot), timeout=TIMEOUT)
        with pytest.raises(AnswerError, match="no byte"):
            device.task_management(TmfType.LOGICAL_UNIT_RESET, 0, 0)


def test_a_device_is_honest_until_it_is_armed() -> None:
    with InProcess(from_arguments(["mem:1M"])) as machine:
        [slot] = machine.slots
        hostility = make_hostile(machine, slot, BEHAVIOURS, armed=False)
        disk = Disk(VirtioScsi(find(slot), timeout=TIMEOUT), 0, 0)
        assert disk.read(0, 8) == bytes(4096)
        assert not hostility.done


def test_an_unknown_behaviour_is_refused() -> None:
    with pytest.raises(ValueError, match=r"did you mean 'used-twice'"):
        Hostility(["used-twise"])
    with pytest.raises(ValueError, match="chance 101"):
        Hostility([], chance=101)


def test_the_page_shows_what_is_declared() -> None:
    shown = re.search(r"<!-- behaviours -->\n(.*?)<!-- end -->", PAGE.read_text(), re.DOTALL)
    assert shown is not None
    assert shown[1] == hostile.table(), (
        "run: python -m vscsi_emu.testing.hostile docs/hostile-device.md"
    )
