"""Log pages: what a unit counts and remembers (SPC-4 7.3, SBC-4 6.4).

Nothing here is saved: counts begin when the unit is made, and every page has DS and TSD set.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from vscsi_emu.scsi.self_tests import REMEMBERED
from vscsi_emu.scsi.sense import Asc, ScsiError, SenseKey

if TYPE_CHECKING:
    from vscsi_emu.scsi.unit import LogicalUnit

Key = tuple[int, int]
"""(page code, subpage code)."""

_TSD: Final = 0x20
_COUNTER: Final = _TSD | 0b10
"""A bounded data counter whose neighbours go on when it is at its maximum."""
_LIST: Final = _TSD | 0b11
"""A binary format list."""


@dataclass(frozen=True, slots=True)
class LogParameter:
    """`value` and, of a counter, its threshold: the largest one, which it never meets."""

    code: int
    control: int
    value: bytes

    @property
    def counts(self) -> bool:
        return self.control == _COUNTER

    def __bytes__(self) -> bytes:
        return struct.pack(">HBB", self.code, self.control, len(self.value)) + self.value


class ErrorLog:
    """Errors of one unit's commands since it was made, or since LOG SELECT reset them."""

    def __init__(self, unit: LogicalUnit) -> None:
        self._unit = unit
        self._ours = dict.fromkeys(_ERROR_PAGES, 0)
        """Of commands that Python ended."""
        self._forgotten = dict.fromkeys(_ERROR_PAGES, 0)

    def note(self, error: ScsiError) -> None:
        """A command ended so, or a later one reports it."""
        if error.key is SenseKey.HARDWARE_ERROR:
            self._ours[NON_MEDIUM_ERRORS] += 1
        elif error.key is SenseKey.MEDIUM_ERROR and error.code is Asc.WRITE_ERROR:
            self._ours[WRITE_ERRORS] += 1

    def __getitem__(self, page: Key) -> int:
        return self._all(page) - self._forgotten[page]

    def reset(self, page: Key) -> bool:
        """To 0; whether it was not."""
        changed = self[page] != 0
        self._forgotten[page] = self._all(page)
        return changed

    def _all(self, page: Key) -> int:
        return self._ours[page] + self._unit.data_plane.errors[_ERROR_PAGES.index(page)]


# ── The pages ──────────────────────────────────────────────────────────────────────────────────

WRITE_ERRORS: Final = (0x02, 0x00)
READ_ERRORS: Final = (0x03, 0x00)
VERIFY_ERRORS: Final = (0x05, 0x00)
NON_MEDIUM_ERRORS: Final = (0x06, 0x00)
_ERROR_PAGES: Final = (WRITE_ERRORS, READ_ERRORS, VERIFY_ERRORS, NON_MEDIUM_ERRORS)
"""In the data plane's order."""
_TOTAL_UNCORRECTED: Final = 0x0006
_NON_MEDIUM: Final = 0x0000
_NO_TEMPERATURE: Final = 0xFF
"""A virtual disk has no sensor: the value for a temperature that cannot be detected."""


def _errors(page: Key) -> Callable[[LogicalUnit], Iterator[LogParameter]]:
    code = _NON_MEDIUM if page == NON_MEDIUM_ERRORS else _TOTAL_UNCORRECTED

    def parameters(unit: LogicalUnit) -> Iterator[LogParameter]:
        yield LogParameter(code, _COUNTER, unit.errors[page].to_bytes(8))

    return parameters


_SCOPES: Final = {False: 0b01, True: 0b10}
"""Resources of this unit only, or of others too."""


def _provisioning(unit: LogicalUnit) -> Iterator[LogParameter]:
    """LBA mapping resources in threshold sets (SBC-4, Logical Block Provisioning log page)."""
    usage = unit.provisioning.usage()
    for code, count in ((0x0001, usage.available), (0x0002, usage.used)):
        if count is not None:
            value = struct.pack(">IB3x", min(count, 0xFFFF_FFFF), _SCOPES[usage.shared])
            yield LogParameter(code, _LIST, value)


def _temperature(_: LogicalUnit) -> Iterator[LogParameter]:
    yield LogParameter(0x0000, _LIST, bytes([0, _NO_TEMPERATURE]))


def _start_stop_cycles(unit: LogicalUnit) -> Iterator[LogParameter]:
    """Accumulated cycles: starts after a stop and, where the medium can go, loads."""
    yield LogParameter(0x0004, _LIST, unit.readiness.starts.to_bytes(4))
    if unit.removable:
        yield LogParameter(0x0006, _LIST, unit.readiness.loads.to_bytes(4))


def _self_test_results(unit: LogicalUnit) -> Iterator[LogParameter]:
    tests = list(unit.self_tests)
    for index in range(REMEMBERED):
        value = bytes(16)
        if index < len(tests):
            test = tests[index]
            value = struct.pack(
                ">BBHQBHx",
                test.code << 5 | test.result,
                0,
                min(test.hours, 0xFFFF),
                test.address,
                test.key,
                test.asc,
            )
        yield LogParameter(index + 1, _LIST, value)


def _background_scan(unit: LogicalUnit) -> Iterator[LogParameter]:
    """Accumulated power on minutes; no scan has been, nor is, performed."""
    minutes = int(unit.powered_on // 60)
    yield LogParameter(0x0000, _LIST, struct.pack(">IxBHHH", minutes, 0, 0, 0, 0))


def _informational_exceptions(_: LogicalUnit) -> Iterator[LogParameter]:
    """There are none to report."""
    yield LogParameter(0x0000, _LIST, bytes([0, 0, _NO_TEMPERATURE, 0]))


PAGES: Final[Mapping[Key, Callable[[LogicalUnit], Iterator[LogParameter]]]] = MappingProxyType(
    {
        **{page: _errors(page) for page in _ERROR_PAGES},
        (0x0C, 0x00): _provisioning,
        (0x0D, 0x00): _temperature,
        (0x0E, 0x00): _start_stop_cycles,
        (0x10, 0x00): _self_test_results,
        (0x15, 0x00): _background_scan,
        (0x2F, 0x00): _informational_exceptions,
    }
)
"""Parameters of each page in the order of their codes, but for the pages that list the pages."""


def reset(unit: LogicalUnit, pages: list[Key]) -> bool:
    """All of these pages that can be reset; whether anything changed."""
    changed = [unit.errors.reset(page) for page in pages if page in _ERROR_PAGES]
    return any(changed)
