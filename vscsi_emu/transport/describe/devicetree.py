"""Instances as nodes of a flattened device tree (bindings/virtio/mmio.yaml)."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from fdt import FDT, Node, Property, PropStrings, PropWords

from .instance import MmioInstance

VERSION: Final = 17
LAST_COMPATIBLE: Final = 16
GIC_SPI: Final = 0
IRQ_TYPE_LEVEL_HIGH: Final = 4
"""The line is high as long as InterruptStatus is not 0."""
GIC_PHANDLE: Final = 1
GIC_DISTRIBUTOR: Final = (0x0800_0000, 0x1_0000)
GIC_CPU_INTERFACE: Final = (0x0801_0000, 0x1_0000)
"""Where QEMU's and kvmtool's Arm machines have them, near enough for a tree to start from."""
UNRESOLVED: Final = 0xFFFF_FFFF


def tree(instances: Sequence[MmioInstance]) -> FDT:
    """A whole tree: the devices, and an Arm GIC that their interrupts go to."""
    root = Node(
        "/",
        PropWords("interrupt-parent", GIC_PHANDLE),
        *_cells(),
        PropStrings("compatible", "linux,dummy-virt"),
        PropStrings("model", "linux,dummy-virt"),
        _gic(),
        *(_device(i) for i in _distinct(instances)),
    )
    return _flattened(root)


def overlay(
    instances: Sequence[MmioInstance], *, target: str = "/", interrupt_parent: str = "gic"
) -> FDT:
    """An overlay that adds the devices to node `target` of a tree with 64-bit addresses there.

    `interrupt_parent`: label of the GIC in that tree, which must be compiled with its labels
    (``dtc -@``).
    """
    devices = [_device(i) for i in _distinct(instances)]
    for device in devices:
        device.append(PropWords("interrupt-parent", UNRESOLVED))
    places = [f"/fragment@0/__overlay__/{d.name}:interrupt-parent:0" for d in devices]
    fragment = Node(
        "fragment@0",
        PropStrings("target-path", target),
        Node("__overlay__", *_cells(), *devices),
    )
    return _flattened(
        Node("/", fragment, Node("__fixups__", PropStrings(interrupt_parent, *places)))
    )


def _device(instance: MmioInstance) -> Node:
    properties = [
        PropStrings("compatible", "virtio,mmio"),
        PropWords("reg", *_u64(instance.base), *_u64(instance.size)),
        PropWords("interrupts", GIC_SPI, instance.irq, IRQ_TYPE_LEVEL_HIGH),
    ]
    if instance.dma_coherent:
        properties.append(Property("dma-coherent"))
    return Node(f"virtio_mmio@{instance.base:x}", *properties)


def _gic() -> Node:
    registers = [w for pair in (GIC_DISTRIBUTOR, GIC_CPU_INTERFACE) for n in pair for w in _u64(n)]
    return Node(
        f"interrupt-controller@{GIC_DISTRIBUTOR[0]:x}",
        PropStrings("compatible", "arm,cortex-a15-gic"),
        PropWords("reg", *registers),
        Property("interrupt-controller"),
        PropWords("#address-cells", 0),
        PropWords("#interrupt-cells", 3),
        PropWords("phandle", GIC_PHANDLE),
    )


def _cells() -> tuple[PropWords, PropWords]:
    return PropWords("#address-cells", 2), PropWords("#size-cells", 2)


def _u64(number: int) -> tuple[int, int]:
    return number >> 32, number & 0xFFFF_FFFF


def _distinct(instances: Sequence[MmioInstance]) -> Sequence[MmioInstance]:
    """Two nodes in one place are no tree."""
    ordered = sorted(instances, key=lambda i: i.base)
    for low, high in pairwise(ordered):
        if low.base + low.size > high.base:
            raise ValueError(f"the instances at {low.base:#x} and {high.base:#x} overlap")
    return instances


def _flattened(root: Node) -> FDT:
    made = FDT()
    made.root = root
    made.header.version = VERSION
    made.header.last_comp_version = LAST_COMPATIBLE
    made.header.boot_cpuid_phys = 0
    return made
