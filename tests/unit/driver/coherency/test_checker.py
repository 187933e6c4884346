"""Correct drivers pass on every platform; what a driver forgets is named."""

from __future__ import annotations

from contextlib import suppress
from typing import TypedDict

import pytest

from tests.unit.driver.coherency.machine import coherency_bus, probed, write_and_read
from vscsi_emu.driver.coherency import CoherencyBus, CoherencyError, FaultKind, Iommu
from vscsi_emu.driver.dma import Direction
from vscsi_emu.driver.mmio import NeedsReset
from vscsi_emu.driver.request import AnswerError
from vscsi_emu.driver.vring import RingBroken
from vscsi_emu.virtio.mmio_registers import LEGACY, MODERN


class Coherency(TypedDict):
    described: bool
    really: bool


COHERENT: Coherency = {"described": True, "really": True}
NOT_COHERENT: Coherency = {"described": False, "really": False}
IMPATIENCE = 0.3


@pytest.mark.parametrize("version", [LEGACY, MODERN])
@pytest.mark.parametrize("platform", [COHERENT, NOT_COHERENT])
def test_the_driver_is_clean_over_thousands_of_commands(platform: Coherency, version: int) -> None:
    iommu = Iommu()
    with coherency_bus(**platform, version=version, iommu=iommu) as bus:
        with bus:
            guest = probed(bus)
            idle = iommu.mapped
            for i in range(1000):
                data = bytes([i % 251 + 1]) * 512
                assert write_and_read(guest, i % 64, data) == data
        assert bus.api.in_use
        assert idle - 2 <= iommu.mapped <= idle + 2, "mappings leak"


@pytest.mark.parametrize("seed", range(4))
def test_the_driver_is_clean_however_often_lines_are_evicted(seed: int) -> None:
    with coherency_bus(**NOT_COHERENT, seed=seed, evictions=0.5) as bus, bus:
        guest = probed(bus)
        for i in range(50):
            data = bytes([i + 1]) * 512
            assert write_and_read(guest, i, data) == data


def faults_of(bus: CoherencyBus, commands: int = 5) -> set[FaultKind]:
    """What is named when the driver runs, however that ends."""
    with suppress(TimeoutError, RingBroken, AnswerError, NeedsReset):
        guest = probed(bus, timeout=IMPATIENCE)
        for i in range(commands):
            write_and_read(guest, i, bytes([i + 1]) * 512)
    return {fault.kind for fault in bus.log.faults}


def test_a_forgotten_map_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with coherency_bus(**NOT_COHERENT) as bus:
        monkeypatch.setattr(bus.api, "map", lambda *_: None)
        monkeypatch.setattr(bus.api, "unmap", lambda *_: None)
        assert {FaultKind.MISSING_SYNC, FaultKind.STALE_DEVICE_READ} <= faults_of(bus)
        with pytest.raises(CoherencyError, match="did not clean"):
            bus.log.check()


def test_a_forgotten_clean_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """dma_map is called, but does not write dirty lines back."""
    with coherency_bus(**NOT_COHERENT) as bus:
        monkeypatch.setattr(bus.model, "clean", lambda *_: None)
        assert FaultKind.STALE_DEVICE_READ in faults_of(bus)


def test_a_forgotten_unmap_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with coherency_bus(**NOT_COHERENT) as bus:
        original = bus.api.unmap

        def only_what_it_wrote_itself(address: int, length: int, direction: Direction) -> None:
            if direction is Direction.TO_DEVICE:
                original(address, length, direction)

        monkeypatch.setattr(bus.api, "unmap", only_what_it_wrote_itself)
        assert {FaultKind.MISSING_SYNC, FaultKind.STALE_CPU_READ} <= faults_of(bus)


def test_a_forgotten_map_is_named_where_it_does_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a coherent platform everything works, so only the bookkeeping can tell."""
    with coherency_bus(**COHERENT) as bus:
        monkeypatch.setattr(bus.api, "map", lambda *_: None)
        monkeypatch.setattr(bus.api, "unmap", lambda *_: None)
        assert faults_of(bus) == {FaultKind.MISSING_SYNC}


def test_a_forgotten_iommu_mapping_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    iommu = Iommu()
    with coherency_bus(**COHERENT, iommu=iommu) as bus:
        monkeypatch.setattr(iommu, "map", lambda *_: None)
        monkeypatch.setattr(iommu, "unmap", lambda *_: None)
        assert faults_of(bus) == {FaultKind.IOMMU_FAULT}


def test_a_forgotten_write_barrier_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with coherency_bus(**COHERENT) as bus:
        model = bus.model

        def plain_store(address: int, value: int) -> None:
            model.write(address, value.to_bytes(2, "little"))

        monkeypatch.setattr(model, "store_u16_release", plain_store)
        assert faults_of(bus) == {FaultKind.MISSING_BARRIER}
        assert any("became visible before the store" in f.text for f in bus.log.faults)


def test_a_forgotten_full_barrier_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with coherency_bus(**COHERENT) as bus:
        monkeypatch.setattr(bus.model, "fence", lambda: None)
        # There are no events, so the driver goes to sleep for certain.
        assert probed(bus).next_event(timeout=0.01) is None
        assert {fault.kind for fault in bus.log.faults} == {FaultKind.MISSING_BARRIER}
        texts = "\n".join(f.text for f in bus.log.faults)
        assert "whether to notify before avail.idx is visible" in texts
        assert "wish for a notification" in texts


def test_a_forgotten_read_barrier_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with coherency_bus(**COHERENT) as bus:
        model = bus.model

        def plain_load(address: int) -> int:
            return int.from_bytes(model.read(address, 2), "little")

        monkeypatch.setattr(model, "load_u16_acquire", plain_load)
        assert faults_of(bus) == {FaultKind.MISSING_BARRIER}
        assert any("read barrier after used.idx" in f.text for f in bus.log.faults)


@pytest.mark.parametrize("version", [LEGACY, MODERN])
def test_the_bug_of_2017(version: int) -> None:
    """A coherent device not described as one: the ring is past the caches on one side only."""
    with coherency_bus(described=False, really=True, version=version) as bus:
        with pytest.raises(TimeoutError) as error:
            probed(bus, timeout=IMPATIENCE)
        first = bus.log.first
        assert first is not None
        assert first.kind is FaultKind.MISMATCHED_ALIAS
        assert "avail.idx" in first.text
        texts = "\n".join(fault.text for fault in bus.log.faults)
        assert "descriptor 0" in texts
        with pytest.raises(TimeoutError), bus:
            raise error.value
        assert str(first) in error.value.__notes__
