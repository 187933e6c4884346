"""Which device status bits a driver may set, in which order (virtio 1.4, 2.1 and 3.1)."""

from __future__ import annotations

from typing import Final, NamedTuple

from vscsi_emu.virtio.features import Status
from vscsi_emu.virtio.mmio_registers import LEGACY, MODERN


class Step(NamedTuple):
    """A bit that a driver may set once `requires` are set."""

    bit: Status
    requires: Status
    reason: str


_ACKNOWLEDGE: Final = Step(
    Status.ACKNOWLEDGE, Status(0), "3.1.1 step 2: the guest has noticed the device"
)
_DRIVER: Final = Step(
    Status.DRIVER, Status.ACKNOWLEDGE, "3.1.1 step 3: it knows how to drive the device"
)
_FAILED: Final = Step(Status.FAILED, Status(0), "3.1.1: any step may go wrong beyond repair")

STEPS: Final = {
    MODERN: (
        _ACKNOWLEDGE,
        _DRIVER,
        Step(
            Status.FEATURES_OK,
            Status.DRIVER,
            "3.1.1 step 5: a driver that knows the device has chosen features",
        ),
        Step(
            Status.DRIVER_OK,
            Status.FEATURES_OK,
            "3.1.1 steps 6 and 8: without FEATURES_OK the device is unusable",
        ),
        _FAILED,
    ),
    LEGACY: (
        _ACKNOWLEDGE,
        _DRIVER,
        Step(
            Status.DRIVER_OK,
            Status.DRIVER,
            "3.1.2: as 3.1.1, steps 5 and 6 are left out",
        ),
        _FAILED,
    ),
}
"""By version, in the order of initialization: a driver may set several bits at once.

No step follows FAILED but a reset (2.1.1). No step clears a bit (2.1.1): only a reset does. And
DEVICE_NEEDS_RESET is the device's alone (2.1.2).
"""
