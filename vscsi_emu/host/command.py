"""SCSI commands to a device node, before serving: `sgio` holds the GIL until the device answers."""

from __future__ import annotations

import struct
from typing import Final

_INQUIRY: Final = 0x12
_EVPD: Final = 0x01
_READ_CAPACITY_10: Final = 0x25
_READ_CAPACITY_10_SIZE: Final = 8
_PAGE_SIZE: Final = 252
_HEADER_SIZE: Final = 4


class NotInstalled(Exception):
    """Package `cython-sgio`, extra ``passthrough``, is not there."""


def vpd_page(fd: int, code: int) -> bytes | None:
    """A vital product data page with its header, at most 252 bytes; None where the device has
    none, or may not be asked. Raises `NotInstalled`."""
    page = _read(fd, struct.pack(">BBBHx", _INQUIRY, _EVPD, code, _PAGE_SIZE), _PAGE_SIZE)
    # Devices that know no pages answer with standard INQUIRY data.
    if page is None or page[1] != code:
        return None
    return page[: _HEADER_SIZE + int.from_bytes(page[2:_HEADER_SIZE], "big")]


def block_size(fd: int) -> int | None:
    """Logical block length in bytes; None where there is no medium. Raises `NotInstalled`."""
    answer = _read(fd, struct.pack(">B9x", _READ_CAPACITY_10), _READ_CAPACITY_10_SIZE)
    return None if answer is None else int.from_bytes(answer[4:], "big") or None


def _read(fd: int, cdb: bytes, size: int) -> bytes | None:
    try:
        import sgio
    except ImportError:
        raise NotInstalled from None
    buffer = bytearray(size)
    for _ in range(2):  # the first command may meet a unit attention
        try:
            with open(fd, "rb", buffering=0, closefd=False) as file:
                sgio.execute(file, cdb, None, buffer)
        except sgio.CheckConditionError:
            continue
        except (OSError, sgio.UnspecifiedError):
            return None
        return bytes(buffer)
    return None
