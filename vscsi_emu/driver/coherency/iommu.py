"""A software IOMMU: which device addresses are mapped to what, for which accesses."""

from dataclasses import dataclass
from enum import IntFlag
from typing import Final

PAGE: Final = 4096


class Permission(IntFlag):
    """VHOST_ACCESS_RO, _WO and _RW of a vhost IOTLB entry."""

    READ = 1
    WRITE = 2


class IommuFault(RuntimeError):
    """An access to a device address that is not mapped, or not for this."""

    def __init__(self, iova: int, wanted: Permission, text: str) -> None:
        super().__init__(text)
        self.iova = iova
        self.wanted = wanted


@dataclass(slots=True)
class _Page:
    physical: int
    readers: int = 0
    writers: int = 0


class Iommu:
    """Maps pages of device addresses (iova) to physical ones. Ranges may share pages, which then
    have the permissions of all of them: no IOMMU protects less than a page."""

    def __init__(self) -> None:
        self._pages: dict[int, _Page] = {}

    @property
    def mapped(self) -> int:
        """Pages mapped now."""
        return len(self._pages)

    def map(self, iova: int, physical: int, length: int, permission: Permission) -> None:
        """`ValueError` if the two addresses differ within their page, or one of the pages is
        mapped to another place already; then nothing is mapped."""
        if (iova - physical) % PAGE:
            raise ValueError(f"iova {iova:#x} and physical {physical:#x} differ in their low bits")
        if length < 1 or not permission:
            raise ValueError(f"a mapping of {length} bytes for {permission!r} maps nothing")
        offset = physical - iova
        pages = _pages(iova, length)
        for page in pages:
            known = self._pages.get(page)
            if known is not None and known.physical != page + offset:
                raise ValueError(f"iova {page:#x} is mapped to {known.physical:#x} already")
        for page in pages:
            self._count(page, self._pages.setdefault(page, _Page(page + offset)), permission, 1)

    def allowed(self, iova: int) -> Permission:
        """What the page of `iova` is mapped for."""
        page = self._pages.get(iova - iova % PAGE)
        if page is None:
            return Permission(0)
        readable = Permission.READ if page.readers else Permission(0)
        return readable | (Permission.WRITE if page.writers else Permission(0))

    def unmap(self, iova: int, length: int, permission: Permission) -> None:
        """Takes back one `map`; `KeyError` if there is none like it."""
        pages = _pages(iova, length)
        for page in pages:
            known = self._pages.get(page)
            if (
                known is None
                or (Permission.READ in permission and not known.readers)
                or (Permission.WRITE in permission and not known.writers)
            ):
                raise KeyError(f"iova {iova:#x} is not mapped for {permission!r}")
        for page in pages:
            self._count(page, self._pages[page], permission, -1)

    def _count(self, number: int, page: _Page, permission: Permission, change: int) -> None:
        page.readers += change * (Permission.READ in permission)
        page.writers += change * (Permission.WRITE in permission)
        if not page.readers and not page.writers:
            del self._pages[number]

    def translate(self, iova: int, length: int, wanted: Permission) -> list[tuple[int, int]]:
        """Physical ranges (address, bytes) behind device addresses. `IommuFault` at the first that
        is not mapped or not for `wanted`."""
        ranges: list[tuple[int, int]] = []
        end = iova + length
        for page in _pages(iova, length):
            at = max(page, iova)
            known = self._pages.get(page)
            if known is None:
                raise IommuFault(at, wanted, f"device address {at:#x} is not mapped")
            if (Permission.READ in wanted and not known.readers) or (
                Permission.WRITE in wanted and not known.writers
            ):
                raise IommuFault(at, wanted, f"device address {at:#x} is not mapped for {wanted!r}")
            start = known.physical + at - page
            size = min(page + PAGE, end) - at
            if ranges and sum(ranges[-1]) == start:
                ranges[-1] = (ranges[-1][0], ranges[-1][1] + size)
            else:
                ranges.append((start, size))
        return ranges


def _pages(iova: int, length: int) -> range:
    return range(iova - iova % PAGE, iova + length, PAGE)
