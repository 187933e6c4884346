"""What ``--lun`` takes: ``[TARGET:LUN=]URI[,key=value…]``.

A URI is a path, or ``scheme:location``. A comma that belongs to the location or to a value is
written twice, as in QEMU's options.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any, Final

from vscsi_emu.scsi.identity import MAX_SERIAL, PRODUCT_SIZE, VENDOR_SIZE

MAX_TARGET: Final = 255
MAX_LUN: Final = 16383
MAX_QUEUE_DEPTH: Final = 65535
MAX_PHYSICAL_BLOCK: Final = 1 << 20
MAX_RATE: Final = 1 << 48
"""Of commands and of bytes a second."""

ADDRESS: Final = re.compile(r"(\d+):(\d+)", re.ASCII)
"""TARGET:LUN."""
_SCHEME: Final = re.compile(r"([a-z][a-z0-9+.-]*):")
_SIZE: Final = re.compile(r"(\d+)([kmgt]?)(?:i?b)?", re.IGNORECASE | re.ASCII)
_UNITS: Final = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}

Address = tuple[int, int]
"""(target, LUN)."""


class SpecError(ValueError):
    """A ``--lun`` argument or ``[[lun]]`` table that cannot be served; says what to change."""


@dataclass(frozen=True, slots=True)
class LunSpec:
    """One logical unit as asked for. None: the backend or the SCSI layer chooses."""

    scheme: str
    location: str
    read_only: bool = False
    block_size: int | None = None
    physical_block_size: int | None = None
    serial: str | None = None
    naa: str | None = None
    vendor: str | None = None
    product: str | None = None
    rotation_rate: int | None = None
    discard: bool = True
    lbprz: bool = False
    cdb_32: bool = False
    removable: bool = False
    write_cache: bool = True
    volatile_cache: bool = False
    """What was not flushed is lost when the power fails (`power.fail`)."""
    tear: int | None = None
    """Bytes that the medium writes whole when the power fails."""
    thin: int | None = None
    """Bytes of space that its blocks may take."""
    pool: str | None = None
    """Name of that space, which all units with this name share."""
    soft_threshold: int | None = None
    """Percent of the space in use at which initiators are told."""
    queue_depth: int | None = None
    """The most commands in the task set, then TASK SET FULL."""
    max_sectors: int | None = None
    """What initiators are told that one transfer has at most, in 512 bytes."""
    seg_max: int | None = None
    """The same of its segments."""
    cmd_per_lun: int | None = None
    """The same of commands in flight."""
    iops: int | None = None
    """The most media commands a second."""
    iops_burst: int | None = None
    """What of these may come at once after a pause; a tenth of a second's by default."""
    bps: int | None = None
    """The most bytes a second that media commands move."""
    bps_burst: int | None = None
    """As `iops_burst`."""
    state: str | None = None
    """File that keeps what must outlive the server, such as persistent reservations."""
    extra: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Keys that only this scheme knows."""

    def __str__(self) -> str:
        return self.location if self.scheme == "file" else f"{self.scheme}:{self.location}"


# ── Values ─────────────────────────────────────────────────────────────────────────────────────


def parse_size(text: str) -> int:
    """Bytes of ``512``, ``64M``, ``3T``; suffixes are powers of 1024."""
    match = _SIZE.fullmatch(text)
    if not match or not int(match[1]):
        raise SpecError(f"{text!r} is not a size; write for example 64M or 3T")
    return int(match[1]) * _UNITS[match[2].lower()]


def parse_switch(text: str) -> bool:
    if text not in ("on", "off"):
        raise SpecError(f"{text!r} is neither on nor off")
    return text == "on"


def parse_address(text: str) -> Address:
    """(target, LUN) of ``3:2``."""
    match = ADDRESS.fullmatch(text)
    if not match:
        raise SpecError(f"{text!r} is not TARGET:LUN; write for example 0:0")
    target, lun = int(match[1]), int(match[2])
    if target > MAX_TARGET:
        raise SpecError(f"target {target} is above {MAX_TARGET}")
    if lun > MAX_LUN:
        raise SpecError(f"LUN {lun} is above {MAX_LUN}")
    return target, lun


def _block_size(text: str) -> int:
    if text not in ("512", "4096"):
        raise SpecError(f"{text!r} is not a block size; use 512 or 4096")
    return int(text)


def _physical_block_size(text: str) -> int:
    size = parse_size(text)
    if not 512 <= size <= MAX_PHYSICAL_BLOCK or size & (size - 1):
        raise SpecError(f"{text!r} is not a power of two from 512 to {MAX_PHYSICAL_BLOCK}")
    return size


def _tear(text: str) -> int:
    size = parse_size(text)
    if size > MAX_PHYSICAL_BLOCK or size & (size - 1):
        raise SpecError(f"{text!r} is not a power of two up to {MAX_PHYSICAL_BLOCK}")
    return size


def _path(text: str) -> str:
    if not text:
        raise SpecError("names no file")
    return text


def _cache(text: str) -> bool:
    if text not in ("writeback", "writethrough"):
        raise SpecError(f"{text!r} is neither writeback nor writethrough")
    return text == "writeback"


def _rotation_rate(text: str) -> int:
    # MEDIUM ROTATION RATE of VPD page B1h (SBC-4 6.6.2): the other values are reserved.
    rate = int(text) if text.isascii() and text.isdecimal() else -1
    if rate not in (0, 1) and not 0x401 <= rate <= 0xFFFE:
        raise SpecError(f"{text!r} is not 0 (unknown), 1 (solid state) or 1025 to 65534 rpm")
    return rate


def _pool(text: str) -> str:
    if not text:
        raise SpecError("names no pool")
    return text


def _percent(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= 100):
        raise SpecError(f"{text!r} is not a percentage from 1 to 100")
    return int(text)


def _queue_depth(text: str) -> int:
    depth = int(text) if text.isascii() and text.isdecimal() else 0
    if not 1 <= depth <= MAX_QUEUE_DEPTH:
        raise SpecError(f"{text!r} is not a number of commands from 1 to {MAX_QUEUE_DEPTH}")
    return depth


def _cap(text: str) -> int:
    cap = int(text) if text.isascii() and text.isdecimal() else 0
    if cap < 1:
        raise SpecError(f"{text!r} is not a number from 1")
    return cap


def _rate(text: str) -> int:
    rate = int(text) if text.isascii() and text.isdecimal() else 0
    if not 1 <= rate <= MAX_RATE:
        raise SpecError(f"{text!r} is not a number of commands from 1 to {MAX_RATE}")
    return rate


def _byte_rate(text: str) -> int:
    rate = parse_size(text)
    if rate > MAX_RATE:
        raise SpecError(f"{text!r} is more than {MAX_RATE} bytes")
    return rate


def _naa(text: str) -> str:
    digits = text.lower().removeprefix("0x").removeprefix("naa.")
    if not re.fullmatch(r"[235][0-9a-f]{15}|6[0-9a-f]{31}", digits):
        raise SpecError(
            f"{text!r} is not an NAA name: 16 hex digits that start with 2, 3 or 5, "
            "or 32 that start with 6"
        )
    return digits


def _ascii(longest: int) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if not 1 <= len(text) <= longest or not all(" " <= char <= "~" for char in text):
            raise SpecError(f"{text!r} is not 1 to {longest} printable ASCII characters")
        return text

    return parse


@dataclass(frozen=True, slots=True)
class _Key:
    """A key of the grammar: the field it sets, how its value is read."""

    field: str
    parse: Callable[[str], Any]
    bare: str | None = None
    """The value of the key written alone."""


KEYS: Final[Mapping[str, _Key]] = MappingProxyType(
    {
        "ro": _Key("read_only", parse_switch, bare="on"),
        "block-size": _Key("block_size", _block_size),
        "physical-block-size": _Key("physical_block_size", _physical_block_size),
        "serial": _Key("serial", _ascii(MAX_SERIAL)),
        "wwn": _Key("naa", _naa),
        "vendor": _Key("vendor", _ascii(VENDOR_SIZE)),
        "product": _Key("product", _ascii(PRODUCT_SIZE)),
        "rotation-rate": _Key("rotation_rate", _rotation_rate),
        "discard": _Key("discard", parse_switch),
        "lbprz": _Key("lbprz", parse_switch),
        "cdb-32": _Key("cdb_32", parse_switch),
        "thin": _Key("thin", parse_size),
        "pool": _Key("pool", _pool),
        "soft-threshold": _Key("soft_threshold", _percent),
        "removable": _Key("removable", parse_switch, bare="on"),
        "cache": _Key("write_cache", _cache),
        "volatile-cache": _Key("volatile_cache", parse_switch, bare="on"),
        "tear": _Key("tear", _tear),
        "queue-depth": _Key("queue_depth", _queue_depth),
        "max-sectors": _Key("max_sectors", _cap),
        "seg-max": _Key("seg_max", _cap),
        "cmd-per-lun": _Key("cmd_per_lun", _cap),
        "iops": _Key("iops", _rate),
        "iops-burst": _Key("iops_burst", _rate),
        "bps": _Key("bps", _byte_rate),
        "bps-burst": _Key("bps_burst", _byte_rate),
        "state": _Key("state", _path),
    }
)
"""The keys that every scheme takes."""


# ── The grammar ────────────────────────────────────────────────────────────────────────────────


def parse_lun(text: str) -> tuple[Address | None, LunSpec]:
    """The address, if one is given, and the logical unit of a ``--lun`` argument."""
    address: Address | None = None
    rest = text
    place, has_address, behind = text.partition("=")
    if has_address and ADDRESS.fullmatch(place):
        address, rest = parse_address(place), behind
    uri, *options = _split_commas(rest)
    spec = parse_uri(uri)
    for option in options:
        key, has_value, value = option.partition("=")
        spec = with_key(spec, key, value if has_value else None)
    return address, spec


def parse_uri(uri: str) -> LunSpec:
    """A path, or ``scheme:location``."""
    from vscsi_emu.backends import schemes

    match = _SCHEME.match(uri)
    scheme, location = (match[1], uri[match.end() :]) if match else ("file", uri)
    if scheme not in schemes():
        raise SpecError(
            f"unknown scheme {scheme!r} in {uri!r}{did_you_mean(scheme, schemes())}; "
            f"known: {', '.join(sorted(schemes()))} (for a path with a colon: file:{uri})"
        )
    if not location:
        raise SpecError(f"{uri!r} names nothing; write a path, or for example mem:64M")
    return LunSpec(scheme, location)


def with_key(spec: LunSpec, name: str, value: str | None) -> LunSpec:
    """`spec` with one key more. `value` None: the key was written alone."""
    from vscsi_emu.backends import backend_class

    own = backend_class(spec.scheme).KEYS
    key = KEYS.get(name)
    if key is None and name not in own:
        valid = [*KEYS, *own]
        raise SpecError(
            f"unknown key {name!r} for {spec}{did_you_mean(name, valid)}; "
            f"valid: {', '.join(sorted(valid))}"
        )
    if value is None:
        value = key.bare if key else None
        if value is None:
            raise SpecError(f"key {name!r} needs a value: {name}=…")
    if key is None:
        return replace(spec, extra=MappingProxyType({**spec.extra, name: value}))
    try:
        return replace(spec, **{key.field: key.parse(value)})
    except SpecError as error:
        raise SpecError(f"{name}: {error}") from None


def did_you_mean(name: str, valid: Mapping[str, object] | list[str]) -> str:
    close = difflib.get_close_matches(name, list(valid), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _split_commas(text: str) -> list[str]:
    """Splits at single commas; a doubled comma stands for one."""
    return [part.replace("\0", ",") for part in text.replace(",,", "\0").split(",")]


assert {key.field for key in KEYS.values()} <= {f.name for f in fields(LunSpec)}
