"""Mode pages of a direct access block device and what may change (SPC-6 7.5, SBC-5 6.5).

Nothing is saved over a restart, so no page has PS set and page control 11b is refused.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

ALL_PAGES: Final = 0x3F
ALL_SUBPAGES: Final = 0xFF
_SPF: Final = 0x40

CACHING: Final = (0x08, 0x00)
CONTROL: Final = (0x0A, 0x00)

Key = tuple[int, int]
"""(page code, subpage code)."""


class PageControl(enum.IntEnum):
    """PC of MODE SENSE (SPC-6 6.14)."""

    CURRENT = 0
    CHANGEABLE = 1
    DEFAULT = 2
    SAVED = 3


@dataclass(frozen=True, slots=True)
class ModePage:
    """One page: its default value and, bit by bit, what MODE SELECT may change; header included."""

    default: bytes
    changeable: bytes

    @property
    def key(self) -> Key:
        return page_key(self.default)


def page_key(page: bytes) -> Key:
    """The key in a page's (or subpage's) header."""
    return page[0] & 0x3F, page[1] if page[0] & _SPF else 0


def page_header_size(first: int) -> int:
    """Bytes of a page's header up to and with PAGE LENGTH, from its first byte."""
    return 4 if first & _SPF else 2


def _page(key: Key, length: int, values: Mapping[int, int], changes: Mapping[int, int]) -> ModePage:
    """A page of `length` bytes after its header; `values` and `changes` by offset in the page."""
    code, subpage = key
    if subpage:
        header = bytes([_SPF | code, subpage]) + length.to_bytes(2)
    else:
        header = bytes([code, length])
    default, mask = bytearray(header + bytes(length)), bytearray(header + bytes(length))
    for offset, value in values.items():
        default[offset] = value
    for offset, value in changes.items():
        mask[offset] = value
    return ModePage(bytes(default), bytes(mask))


_AWRE_ARRE: Final = 0xC0
_WCE: Final = 0x04
_D_SENSE: Final = 0x04
_GLTSD: Final = 0x02
_UNRESTRICTED_REORDERING: Final = 0x10
_SWP: Final = 0x08
_DEXCPT: Final = 0x08


def direct_access_pages(*, write_cache: bool) -> tuple[ModePage, ...]:
    """The pages in the order that MODE SENSE returns them in."""
    return (
        # Read-write error recovery: storage below us reallocates without being told.
        _page((0x01, 0), 0x0A, {2: _AWRE_ARRE}, {}),
        # Disconnect-reconnect: this transport has nothing to tune.
        _page((0x02, 0), 0x0E, {}, {}),
        _page(CACHING, 0x12, {2: _WCE if write_cache else 0}, {2: _WCE}),
        _page(CONTROL, 0x0A, {2: _GLTSD, 3: _UNRESTRICTED_REORDERING}, {2: _D_SENSE, 4: _SWP}),
        # Control extension.
        _page((0x0A, 0x01), 0x1C, {}, {}),
        # Power condition: no timers.
        _page((0x1A, 0), 0x26, {}, {}),
        # Informational exceptions control: none are reported.
        _page((0x1C, 0), 0x0A, {2: _DEXCPT}, {}),
    )


class ModePages:
    """The mode pages of one logical unit, shared by all its nexuses (VPD page 87h says so)."""

    def __init__(self, pages: Iterable[ModePage]) -> None:
        self.pages: Final = {page.key: page for page in pages}
        self._current = {key: page.default for key, page in self.pages.items()}

    def reset(self) -> None:
        self._current = {key: page.default for key, page in self.pages.items()}

    def value(self, key: Key, control: PageControl = PageControl.CURRENT) -> bytes:
        """A page as MODE SENSE returns it. Nothing is ever saved: SAVED is a `KeyError`."""
        page = self.pages[key]
        return {
            PageControl.CURRENT: self._current[key],
            PageControl.CHANGEABLE: page.changeable,
            PageControl.DEFAULT: page.default,
        }[control]

    def select(self, code: int, subpage: int) -> list[Key]:
        """The pages that MODE SENSE asks for, in order; none for a page that does not exist."""
        if code == ALL_PAGES and subpage not in (0, ALL_SUBPAGES):
            return []
        return [
            key
            for key in self.pages
            if code in (key[0], ALL_PAGES) and subpage in (key[1], ALL_SUBPAGES)
        ]

    def wrong_bit(self, page: bytes) -> tuple[int, int] | None:
        """Byte offset and bit of the first unchangeable bit that `page` wants changed.

        `page` has the key and the length of one that exists.
        """
        key = page_key(page)
        current, mask = self._current[key], self.pages[key].changeable
        for offset in range(page_header_size(page[0]), len(page)):
            if wrong := (page[offset] ^ current[offset]) & ~mask[offset]:
                return offset, wrong.bit_length() - 1
        return None

    def update(self, pages: Iterable[bytes]) -> bool:
        """Makes pages, found right by `wrong_bit`, current; whether that changed anything."""
        before = dict(self._current)
        self._current.update({page_key(page): page for page in pages})
        return self._current != before

    def set_write_cache(self, on: bool) -> None:
        """WCE, now and by default."""
        page = self.pages[CACHING]
        self.pages[CACHING] = replace(page, default=_with_write_cache(page.default, on))
        self._current[CACHING] = _with_write_cache(self._current[CACHING], on)

    @property
    def write_cache(self) -> bool:
        """WCE."""
        return bool(self._current[CACHING][2] & _WCE)

    @property
    def descriptor_sense(self) -> bool:
        """D_SENSE."""
        return bool(self._current[CONTROL][2] & _D_SENSE)

    @property
    def write_protected(self) -> bool:
        """SWP."""
        return bool(self._current[CONTROL][4] & _SWP)


def _with_write_cache(page: bytes, on: bool) -> bytes:
    return page[:2] + bytes([page[2] & ~_WCE | (_WCE if on else 0)]) + page[3:]
