"""A `Bus` as it is found on a modelled platform."""

from collections.abc import Collection
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from vscsi_emu.driver.bus import Bus
from vscsi_emu.driver.coherency.api import DmaApi
from vscsi_emu.driver.coherency.faults import FaultLog
from vscsi_emu.driver.coherency.iommu import Iommu
from vscsi_emu.driver.coherency.memory import EVICTIONS, CoherencyModel
from vscsi_emu.driver.coherency.ring import WatchedRing
from vscsi_emu.driver.dma import DmaMemory
from vscsi_emu.driver.dma_policy import DmaPolicy, Platform, vring_use_dma_api
from vscsi_emu.driver.vring import RingLayout
from vscsi_emu.virtio.features import Feature


@dataclass(frozen=True, slots=True)
class Reality:
    """What is so, whatever the guest was told.

    `device_coherent`: the device's accesses go through the CPU's caches. `access_platform`: the
    device offers ACCESS_PLATFORM. `keeps_promise`: when that is accepted, the device accesses
    memory as the platform describes it (virtio 1.4, 6), with cache maintenance of its own if need
    be.
    """

    device_coherent: bool = True
    access_platform: bool = False
    keeps_promise: bool = True


@dataclass(frozen=True, slots=True)
class Kernel:
    """What the guest's kernel knows and how it decides."""

    policy: DmaPolicy = DmaPolicy.MAINLINE
    platform: Platform = field(default_factory=Platform)


class CoherencyBus:
    """`inner`, whose memory the driver sees through a `CoherencyModel` and a `DmaApi`.

    `base`, `size`: guest memory to allocate from, bytes. `iommu`: used while the DMA API is.
    `seed`, `evictions`: as for the model. As a context it raises `CoherencyError` at its end if
    there was a fault: a driver driven in it is correct on any platform like this one.
    """

    def __init__(
        self,
        inner: Bus,
        base: int,
        size: int,
        kernel: Kernel,
        reality: Reality,
        *,
        iommu: Iommu | None = None,
        seed: int = 0,
        evictions: float = EVICTIONS,
    ) -> None:
        self.inner = inner
        self.model = CoherencyModel(
            inner.memory,
            device_coherent=reality.device_coherent,
            seed=seed,
            evictions=evictions,
        )
        self.api = DmaApi(
            self.model,
            base,
            size,
            described_coherent=kernel.platform.described_coherent,
            iommu=iommu,
        )
        self._kernel = kernel
        self._reality = reality

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.log.check()
        else:
            for fault in self.log.faults:
                error.add_note(str(fault))

    @property
    def log(self) -> FaultLog:
        return self.model.log

    @property
    def memory(self) -> DmaMemory:
        return self.model

    @property
    def allocator(self) -> DmaApi:
        return self.api

    # ── Device ──────────────────────────────────────────────────────────────────────────────────

    def device_features(self) -> int:
        offered = self.inner.device_features()
        return offered | Feature.ACCESS_PLATFORM if self._reality.access_platform else offered

    def set_driver_features(self, features: int) -> None:
        """Here the driver knows how to do DMA, and the device whether the description binds it."""
        kernel, reality = self._kernel, self._reality
        accepted = Feature(features)
        self.api.in_use = vring_use_dma_api(kernel.policy, kernel.platform, accepted)
        bound = reality.keeps_promise and Feature.ACCESS_PLATFORM in accepted
        if bound and not kernel.platform.described_coherent:
            self.model.set_device_coherent(False)
        offered = self.inner.device_features()
        self.inner.set_driver_features(features & (offered | ~Feature.ACCESS_PLATFORM))

    def status(self) -> int:
        return self.inner.status()

    def set_status(self, status: int) -> None:
        self.model.drain()
        self.inner.set_status(status)

    def reset(self) -> None:
        self.model.drain()
        self.inner.reset()
        self.model.forget_rings()

    def read_config(self, offset: int, length: int) -> bytes:
        return self.inner.read_config(offset, length)

    def write_config(self, offset: int, data: bytes) -> None:
        self.inner.write_config(offset, data)

    # ── Queues ──────────────────────────────────────────────────────────────────────────────────

    def max_queue_size(self, index: int) -> int:
        return self.inner.max_queue_size(index)

    def start_queue(self, index: int, layout: RingLayout) -> None:
        self.model.watch(WatchedRing(self.model, index, layout, self.api.check))
        self.inner.start_queue(index, layout)

    def notify(self, index: int) -> None:
        self.model.drain()
        self.model.device_looks()
        self.inner.notify(index)

    def wait(self, queues: Collection[int], timeout: float) -> set[int]:
        self.model.before_sleep()
        return self.inner.wait(queues, timeout)
