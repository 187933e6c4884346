"""What a driver needs of a transport. Registers or messages: the driver cannot tell."""

from collections.abc import Collection
from typing import Protocol

from vscsi_emu.driver.dma import DmaAllocator, DmaMemory
from vscsi_emu.driver.vring import RingLayout


class Bus(Protocol):
    """One virtio device on a transport (virtio 1.4, 4). Every call has a deadline of its own and
    raises `TimeoutError` past it."""

    @property
    def memory(self) -> DmaMemory: ...
    @property
    def allocator(self) -> DmaAllocator: ...

    def device_features(self) -> int: ...
    def set_driver_features(self, features: int) -> None: ...
    def status(self) -> int: ...
    def set_status(self, status: int) -> None:
        """Adds to the device status; for 0 see `reset`."""

    def reset(self) -> None:
        """Writes status 0 and returns when the device has let go of all rings."""

    def read_config(self, offset: int, length: int) -> bytes:
        """Bytes of device configuration space, all from one generation of it."""

    def write_config(self, offset: int, data: bytes) -> None: ...
    def max_queue_size(self, index: int) -> int:
        """Most entries of a queue; 0 if there is no such queue."""

    def start_queue(self, index: int, layout: RingLayout) -> None: ...
    def notify(self, index: int) -> None:
        """Tells the device that queue `index` has new buffers."""

    def wait(self, queues: Collection[int], timeout: float) -> set[int]:
        """Waits up to `timeout` seconds for a notification of one of these queues; returns those
        that may have used buffers (empty: time is up)."""
