"""Mode pages of a direct access block device and what may change (SPC-6, SBC-4 6.5)."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from vscsi_emu.scsi.store import SavedStateError, StateStore, load, save

ALL_PAGES: Final = 0x3F
ALL_SUBPAGES: Final = 0xFF
_SPF: Final = 0x40
_PS: Final = 0x80
_SECTION: Final = "mode-pages"

CACHING: Final = (0x08, 0x00)
CONTROL: Final = (0x0A, 0x00)
ERROR_RECOVERY: Final = (0x01, 0x00)
PROVISIONING: Final = (0x1C, 0x02)

Key = tuple[int, int]
"""(page code, subpage code)."""


class PageControl(enum.IntEnum):
    """PC of MODE SENSE (SPC-6)."""

    CURRENT = 0
    CHANGEABLE = 1
    DEFAULT = 2
    SAVED = 3


class Qerr(enum.IntEnum):
    """What becomes of other commands when one ends with CHECK CONDITION."""

    NOTHING = 0
    ABORTS_ALL = 1
    ABORTS_OWN = 3
    """Those of its own nexus."""


@dataclass(frozen=True, slots=True)
class ModePage:
    """One page: its default value and, bit by bit, what MODE SELECT may change; header included."""

    default: bytes
    changeable: bytes
    reserved: tuple[tuple[int, int, int], ...] = ()
    """(offset, mask, value) of values that changeable bits may not have."""

    @property
    def key(self) -> Key:
        return page_key(self.default)

    @property
    def can_change(self) -> bool:
        return any(self.changeable[page_header_size(self.changeable[0]) :])

    def fitted(self, page: bytes) -> bytes:
        """`page` where this one may change, the default elsewhere."""
        default, mask = int.from_bytes(self.default), int.from_bytes(self.changeable)
        mask &= (1 << 8 * (len(page) - page_header_size(page[0]))) - 1
        return (default & ~mask | int.from_bytes(page) & mask).to_bytes(len(page))


def page_key(page: bytes) -> Key:
    """The key in a page's (or subpage's) header."""
    return page[0] & 0x3F, page[1] if page[0] & _SPF else 0


def page_header_size(first: int) -> int:
    """Bytes of a page's header up to and with PAGE LENGTH, from its first byte."""
    return 4 if first & _SPF else 2


def _page(
    key: Key,
    length: int,
    values: Mapping[int, int],
    changes: Mapping[int, int],
    *reserved: tuple[int, int, int],
) -> ModePage:
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
    return ModePage(bytes(default), bytes(mask), reserved)


_AWRE_ARRE: Final = 0xC0
_LBPERE: Final = 0x80
_WCE: Final = 0x04
_D_SENSE: Final = 0x04
_GLTSD: Final = 0x02
_UNRESTRICTED_REORDERING: Final = 0x10
_QERR: Final = 0x06
_RESERVED_QERR: Final = 0x04
_SWP: Final = 0x08
_TAS: Final = 0x40
_TCMOS: Final = 0x04
_SCSIP: Final = 0x02
_IALUAE: Final = 0x01
_DEXCPT: Final = 0x08


def direct_access_pages(
    *, write_cache: bool, provisioning: ModePage | None = None
) -> tuple[ModePage, ...]:
    """The pages in the order that MODE SENSE returns them in."""
    thresholds = _LBPERE if provisioning else 0
    return (
        # Storage below us reallocates without being told.
        _page(ERROR_RECOVERY, 0x0A, {2: _AWRE_ARRE, 7: thresholds}, {7: thresholds}),
        # Disconnect-reconnect: this transport has nothing to tune.
        _page((0x02, 0), 0x0E, {}, {}),
        _page(CACHING, 0x12, {2: _WCE if write_cache else 0}, {2: _WCE}),
        # TST stays 000b: one task set for all nexuses.
        _page(
            CONTROL,
            0x0A,
            {2: _GLTSD, 3: _UNRESTRICTED_REORDERING},
            {2: _D_SENSE, 3: _UNRESTRICTED_REORDERING | _QERR, 4: _SWP, 5: _TAS},
            (3, _QERR, _RESERVED_QERR),
        ),
        # Control extension.
        _page((0x0A, 0x01), 0x1C, {4: _TCMOS | _SCSIP | _IALUAE}, {}),
        # Power condition: no timers.
        _page((0x1A, 0), 0x26, {}, {}),
        # Informational exceptions control: none are reported.
        _page((0x1C, 0), 0x0A, {2: _DEXCPT}, {}),
        *([provisioning] if provisioning else []),
    )


class ModePages:
    """The mode pages of one logical unit, shared by all its nexuses (VPD page 87h says so).

    `store` None: nothing is saved over a restart, so no page has PS set. Raises `SavedStateError`.
    """

    def __init__(self, pages: Iterable[ModePage], store: StateStore | None = None) -> None:
        self.pages: Final = {page.key: page for page in pages}
        self._store = store
        self._lock = asyncio.Lock()
        self._saved = _from_json(load(store, _SECTION), self.pages)
        self._current = dict(self._saved)

    def reset(self) -> None:
        """To the saved values, which are the default ones where none were ever saved."""
        self._current = dict(self._saved)

    @property
    def savable(self) -> bool:
        return self._store is not None

    def value(self, key: Key, control: PageControl = PageControl.CURRENT) -> bytes:
        """A page as MODE SELECT takes it."""
        page = self.pages[key]
        return {
            PageControl.CURRENT: self._current[key],
            PageControl.CHANGEABLE: page.changeable,
            PageControl.DEFAULT: page.default,
            PageControl.SAVED: self._saved[key],
        }[control]

    def sense(self, key: Key, control: PageControl) -> bytes:
        """A page as MODE SENSE returns it."""
        page = self.value(key, control)
        ps = _PS if self.savable and self.pages[key].can_change else 0
        return bytes([ps | page[0]]) + page[1:]

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
        """Byte offset and bit of the first unchangeable bit that `page` wants changed, or of a
        reserved value.

        `page` has the key and the length of one that exists.
        """
        key = page_key(page)
        current, mask = self._current[key], self.pages[key].changeable
        for offset in range(page_header_size(page[0]), len(page)):
            if wrong := (page[offset] ^ current[offset]) & ~mask[offset]:
                return offset, wrong.bit_length() - 1
        for offset, bits, value in self.pages[key].reserved:
            if page[offset] & bits == value:
                return offset, bits.bit_length() - 1
        return None

    async def save(self, pages: Iterable[bytes]) -> None:
        """Saves all current pages, and `pages` as if they were current. `ScsiError` if it fails:
        the old values are then still saved."""
        async with self._lock:
            saved = {**self._current, **{page_key(page): page for page in pages}}
            await save(self._store, _SECTION, _to_json(saved))
            self._saved = saved

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
    def notifies_thresholds(self) -> bool:
        """LBPERE."""
        return bool(self._current[ERROR_RECOVERY][7] & _LBPERE)

    @property
    def write_protected(self) -> bool:
        """SWP."""
        return bool(self._current[CONTROL][4] & _SWP)

    @property
    def restricted_reordering(self) -> bool:
        """QUEUE ALGORITHM MODIFIER is 0h."""
        return not self._current[CONTROL][3] & _UNRESTRICTED_REORDERING

    @property
    def qerr(self) -> Qerr:
        """QERR."""
        return Qerr((self._current[CONTROL][3] & _QERR) >> 1)

    @property
    def task_aborted_status(self) -> bool:
        """TAS."""
        return bool(self._current[CONTROL][5] & _TAS)


# ── The store's form ───────────────────────────────────────────────────────────────────────────


def _name(key: Key) -> str:
    return f"{key[0]:02x}{key[1]:02x}"


def _to_json(pages: Mapping[Key, bytes]) -> dict[str, str]:
    return {_name(key): page.hex() for key, page in pages.items()}


def _from_json(saved: Any, pages: Mapping[Key, ModePage]) -> dict[Key, bytes]:
    """Saved values of what may still change, default ones of all else: versions differ in pages
    and in what may change."""
    values = {key: page.default for key, page in pages.items()}
    if saved is None:
        return values
    try:
        for key, page in pages.items():
            raw = bytes.fromhex(saved.get(_name(key), page.default.hex()))
            header = page_header_size(page.default[0])
            if len(raw) != len(page.default) or raw[:header] != page.default[:header]:
                raise ValueError(f"page {_name(key)}")
            values[key] = page.fitted(raw)
    except (AttributeError, TypeError, ValueError) as error:
        raise SavedStateError(f"saved mode pages are damaged: {error!r}") from None
    return values


def _with_write_cache(page: bytes, on: bool) -> bytes:
    return page[:2] + bytes([page[2] & ~_WCE | (_WCE if on else 0)]) + page[3:]
