"""What a logical unit is called: standard INQUIRY data, VPD pages 80h and 83h."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

VENDOR_SIZE: Final = 8
PRODUCT_SIZE: Final = 16
REVISION_SIZE: Final = 4
MAX_SERIAL: Final = 36

_NAA_SIZES: Final = {0x2: 8, 0x3: 8, 0x5: 8, 0x6: 16}
"""Bytes of each NAA format (SPC-6)."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Names of a logical unit. Text is printable ASCII; shorter text is padded with spaces.

    `naa` is 8 bytes for the NAA formats 2h, 3h and 5h, 16 bytes for 6h.
    """

    serial: str
    naa: bytes
    vendor: str = "VSCSIEMU"
    product: str = "Virtual disk"
    revision: str = "0001"

    def __post_init__(self) -> None:
        _check_text("vendor", self.vendor, VENDOR_SIZE)
        _check_text("product", self.product, PRODUCT_SIZE)
        _check_text("revision", self.revision, REVISION_SIZE)
        _check_text("serial", self.serial, MAX_SERIAL)
        check_naa(self.naa)

    @property
    def vendor_field(self) -> bytes:
        """T10 VENDOR IDENTIFICATION, 8 bytes."""
        return self.vendor.encode("ascii").ljust(VENDOR_SIZE)

    @property
    def product_field(self) -> bytes:
        """PRODUCT IDENTIFICATION, 16 bytes."""
        return self.product.encode("ascii").ljust(PRODUCT_SIZE)

    @property
    def revision_field(self) -> bytes:
        """PRODUCT REVISION LEVEL, 4 bytes."""
        return self.revision.encode("ascii").ljust(REVISION_SIZE)

    @property
    def serial_field(self) -> bytes:
        """PRODUCT SERIAL NUMBER, as long as the serial is."""
        return self.serial.encode("ascii")


def check_naa(naa: bytes) -> None:
    """Raises `ValueError` unless these bytes are an NAA name."""
    size = _NAA_SIZES.get(naa[0] >> 4) if naa else None
    if size is None:
        raise ValueError(
            f"{naa.hex() or 'nothing'} is no NAA name: it must start with 2, 3, 5 or 6"
        )
    if len(naa) != size:
        raise ValueError(
            f"NAA name {naa.hex()} has {len(naa)} bytes; one that starts with "
            f"{naa[0] >> 4:X} has {size}"
        )


def _check_text(what: str, text: str, longest: int) -> None:
    if not 1 <= len(text) <= longest or not all(" " <= char <= "~" for char in text):
        raise ValueError(f"{what} {text!r} is not 1 to {longest} printable ASCII characters")
