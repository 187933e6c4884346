"""The software IOMMU."""

from __future__ import annotations

import pytest

from vscsi_emu.driver.coherency.iommu import PAGE, Iommu, IommuFault, Permission

R, W = Permission.READ, Permission.WRITE


def test_addresses_are_translated_page_by_page_and_joined() -> None:
    iommu = Iommu()
    iommu.map(0x10_0010, 0x5010, 2 * PAGE, R)
    iommu.map(0x10_3000, 0xA000, PAGE, R)
    assert iommu.translate(0x10_0FF0, 0x20, R) == [(0x5FF0, 0x20)]
    assert iommu.translate(0x10_2FF8, 16, R) == [(0x7FF8, 8), (0xA000, 8)]


@pytest.mark.parametrize(
    ("iova", "length", "wanted", "at"),
    [
        (0x1000, 8, W, 0x1000),
        (0x1FF8, 16, R, 0x2000),
        (0xFF8, 16, R, 0xFF8),
        (0x1000, 8, R | W, 0x1000),
    ],
)
def test_what_is_not_mapped_or_not_for_this_faults(
    iova: int, length: int, wanted: Permission, at: int
) -> None:
    iommu = Iommu()
    iommu.map(0x1000, 0x8000, PAGE, R)
    with pytest.raises(IommuFault) as error:
        iommu.translate(iova, length, wanted)
    assert (error.value.iova, error.value.wanted) == (at, wanted)


def test_a_shared_page_stays_until_its_last_mapping_goes() -> None:
    iommu = Iommu()
    iommu.map(0x1000, 0x1000, 64, R)
    iommu.map(0x1040, 0x1040, 64, W)
    iommu.unmap(0x1000, 64, R)
    assert iommu.translate(0x1000, 64, W) == [(0x1000, 64)]
    with pytest.raises(IommuFault):
        iommu.translate(0x1000, 64, R)
    iommu.unmap(0x1040, 64, W)
    assert iommu.mapped == 0


def test_mappings_that_make_no_sense_are_refused_and_leave_nothing() -> None:
    iommu = Iommu()
    iommu.map(0x2000, 0x8000, PAGE, R)
    for arguments in (
        (0x1000, 0x9001, 8, R),
        (0x1000, 0x9000, 0, R),
        (0x1000, 0x9000, 2 * PAGE, R),
    ):
        with pytest.raises(ValueError, match=r"low bits|maps nothing|mapped to"):
            iommu.map(*arguments)
    assert iommu.mapped == 1
    with pytest.raises(KeyError):
        iommu.unmap(0x2000, 2 * PAGE, R)
    with pytest.raises(KeyError):
        iommu.unmap(0x2000, 8, W)
    assert iommu.mapped == 1
