"""Instances on Linux's command line (drivers/virtio/virtio_mmio.c, CMDLINE_DEVICES)."""

from collections.abc import Sequence

from .instance import MmioInstance


def kernel_parameters(instances: Sequence[MmioInstance]) -> str:
    """``virtio_mmio.device=SIZE@BASE:IRQ:ID …``.

    There is no word for coherency here: Linux takes what the architecture assumes, which is
    coherent on x86 and not coherent on Arm.
    """
    return " ".join(
        f"virtio_mmio.device={i.size:#x}@{i.base:#x}:{i.irq}:{number}"
        for number, i in enumerate(instances)
    )
