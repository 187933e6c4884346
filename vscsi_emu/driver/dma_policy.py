"""Does a virtio driver go through the DMA API, or hand the device physical addresses?

Linux asks this in drivers/virtio/virtio_ring.c, `vring_use_dma_api`. Through the DMA API memory is
mapped as the platform describes the device: translated behind an IOMMU, non-cacheable and with
cache maintenance for a device not described as coherent. Past it, the device is taken to see what
the CPU sees, which a program emulating it does.
"""

from dataclasses import dataclass
from enum import Enum

from vscsi_emu.virtio.features import Feature


class Architecture(Enum):
    """Of the guest kernel. The quirk is about Arm, where a device may or may not be coherent."""

    ARM = "arm"
    ARM64 = "arm64"
    OTHER = "other"


class DmaPolicy(Enum):
    """Versions of the decision. All of them use the API for Xen and ACCESS_PLATFORM."""

    MAINLINE = "mainline"
    """Nothing more. Before v4.10-rc6, and since commit 0d5415b489f6 reverted `ARM_LEGACY`."""
    ARM_LEGACY = "before the patch"
    """Also for every legacy device on Arm: "vring: Force use of DMA API for ARM-based systems with
    legacy devices" (c7070619f340, v4.10-rc; stable 4.9.7 and 4.9.8). It made an Arm model with an
    SMMU before legacy devices work, and broke guests of hosts that forgot dma-coherent."""
    ARM_COHERENT_LEGACY = "after the patch"
    """Of those, only for devices described as coherent. Who forgot the property is served as
    before. Never merged."""
    SPECIAL_CASE = "reviewer's"
    """Of those, only on the one platform that needs it; no other changes its ways."""


@dataclass(frozen=True, slots=True)
class Platform:
    """What the kernel knows of where a virtio device is.

    `xen`: a Xen guest. `described_coherent`: `dma-coherent` in the device tree, _CCA in ACPI; what
    `device_get_dma_attr` answers. `legacy_behind_iommu`: this is the platform of `SPECIAL_CASE`,
    whose IOMMU translates for legacy devices too, known by its name.
    """

    architecture: Architecture = Architecture.ARM64
    xen: bool = False
    described_coherent: bool = True
    legacy_behind_iommu: bool = False


def vring_use_dma_api(policy: DmaPolicy, platform: Platform, features: Feature) -> bool:
    """Whether rings and buffers of a device with these negotiated features are for the DMA API.

    ACCESS_PLATFORM promises that the platform's description holds for the device (virtio 1.4, 6);
    without it, it "has the same access to memory addresses supplied to it as the driver has".
    Under Xen a guest's physical addresses are not the machine's. VERSION_1 ends guessing: a modern
    device that needs the API says so with ACCESS_PLATFORM.
    """
    if Feature.ACCESS_PLATFORM in features or platform.xen:
        return True
    if Feature.VERSION_1 in features or platform.architecture is Architecture.OTHER:
        return False
    match policy:
        case DmaPolicy.MAINLINE:
            return False
        case DmaPolicy.ARM_LEGACY:
            return True
        case DmaPolicy.ARM_COHERENT_LEGACY:
            return platform.described_coherent
        case DmaPolicy.SPECIAL_CASE:
            return platform.legacy_behind_iommu
