"""Every row of the truth table of `vring_use_dma_api`, for every version of it."""

from itertools import product

import pytest

from vscsi_emu.driver.dma_policy import Architecture, DmaPolicy, Platform, vring_use_dma_api
from vscsi_emu.virtio.features import Feature

ALWAYS = set(DmaPolicy)
NEVER: set[DmaPolicy] = set()
LEGACY, MODERN = Feature(0), Feature.VERSION_1
PLATFORM = Feature.ACCESS_PLATFORM

# (coherent, behind an IOMMU) → the versions that send a legacy device on Arm through the API.
LEGACY_ON_ARM = {
    (False, False): {DmaPolicy.ARM_LEGACY},
    (False, True): {DmaPolicy.ARM_LEGACY, DmaPolicy.SPECIAL_CASE},
    (True, False): {DmaPolicy.ARM_LEGACY, DmaPolicy.ARM_COHERENT_LEGACY},
    (True, True): {DmaPolicy.ARM_LEGACY, DmaPolicy.ARM_COHERENT_LEGACY, DmaPolicy.SPECIAL_CASE},
}
ARM = (Architecture.ARM, Architecture.ARM64)
TABLE = [
    *(
        (Platform(arch, xen, coherent, iommu), features, users)
        for arch, coherent, iommu in product(Architecture, (False, True), (False, True))
        for xen, features, users in (
            (False, LEGACY, LEGACY_ON_ARM[coherent, iommu] if arch in ARM else NEVER),
            (False, MODERN, NEVER),
            (False, LEGACY | PLATFORM, ALWAYS),
            (False, MODERN | PLATFORM, ALWAYS),
            (True, LEGACY, ALWAYS),
            (True, MODERN, ALWAYS),
            (True, LEGACY | PLATFORM, ALWAYS),
            (True, MODERN | PLATFORM, ALWAYS),
        )
    )
]


def test_the_table_is_whole() -> None:
    rows = {(platform, features) for platform, features, _ in TABLE}
    assert len(rows) == len(TABLE) == 3 * 2 * 2 * 2 * 4


@pytest.mark.parametrize("policy", DmaPolicy)
@pytest.mark.parametrize(("platform", "features", "users"), TABLE)
def test_the_decision(
    policy: DmaPolicy, platform: Platform, features: Feature, users: set[DmaPolicy]
) -> None:
    assert vring_use_dma_api(policy, platform, features) == (policy in users)


@pytest.mark.parametrize("policy", DmaPolicy)
def test_other_features_do_not_matter(policy: DmaPolicy) -> None:
    others = Feature.EVENT_IDX | Feature.INDIRECT_DESC | Feature.ORDER_PLATFORM
    for platform, features, users in TABLE:
        assert vring_use_dma_api(policy, platform, features | others) == (policy in users)
