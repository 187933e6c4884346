"""What to serve: ``hba.toml``, or the command line's shorthand for it."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from vscsi_emu.backends.uri import (
    MAX_TARGET,
    Address,
    LunSpec,
    SpecError,
    did_you_mean,
    parse_address,
    parse_lun,
    parse_uri,
    with_key,
)
from vscsi_emu.scsi.port_groups import MAX_PORT_GROUP

MAX_QUEUES: Final = 254
"""Request queues of one HBA: vhost-user numbers 256 rings, two of which are not for requests."""

MAX_HBAS: Final = 255
"""Of one process, so that relative target port identifiers stay within 16 bits."""

_LUN_KEYS: Final = ("id", "uri")
CAPS: Final[tuple[str, ...]] = ("max-sectors", "seg-max", "cmd-per-lun")
"""Limits of the configuration space that may be lowered."""
_HBA_KEYS: Final = (
    "socket",
    "queues",
    "luns",
    "initiator",
    "port-group",
    "in-band",
    "access-platform",
    *CAPS,
)


class ConfigError(ValueError):
    """A configuration that cannot be served; names the file, the table and the key."""


@dataclass(frozen=True, slots=True)
class LunConfig:
    """A logical unit. `name` is the same at every start and differs between units: default
    identities come from it where the storage has no name of its own."""

    name: str
    spec: LunSpec
    unit_id: str | None = None

    @property
    def id(self) -> str:
        """What people call it."""
        return self.unit_id or self.name


@dataclass(frozen=True, slots=True)
class HbaConfig:
    """An HBA: where it is reached, and which unit is at which (target, LUN)."""

    socket: str | None
    """Path of its vhost-user socket, or None with `fd`. Neither: another transport serves it."""
    fd: int | None
    queues: int
    luns: Mapping[Address, str]
    """The `LunConfig.name` of each address."""
    initiator: str | None = None
    """NAA name of its initiator port, 16 hex digits; derived from the socket when None."""
    port_group: int | None = None
    """Target port group of its targets, 1 to 65535; its place among the HBAs, from 1,
    when None."""
    in_band: bool = False
    """Offer in-band notifications: slower, for front ends that need them."""
    access_platform: bool = False
    """Offer ACCESS_PLATFORM: for front ends that put the device behind an IOMMU, and answer IOTLB
    misses."""
    caps: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    """By the name in `CAPS`: what the driver is told at most, whatever its units take."""


@dataclass(frozen=True, slots=True)
class Config:
    luns: tuple[LunConfig, ...]
    hbas: tuple[HbaConfig, ...]


def from_arguments(
    luns: Iterable[str],
    *,
    socket: str | None = None,
    fd: int | None = None,
    queues: int = 1,
    in_band: bool = False,
    access_platform: bool = False,
    caps: Mapping[str, int] | None = None,
) -> Config:
    """One HBA with the units of ``--lun`` arguments.

    A unit without an address becomes LUN 0 of the first target that has none, as QEMU numbers its
    own disks: Linux then shows them as 0:0:0:0, 0:0:1:0, …. Raises `ConfigError`.
    """
    check_queues(queues, "--queues")
    for name, cap in (caps or {}).items():
        _check_cap(cap, f"--{name}")
    parsed: list[tuple[Address | None, LunSpec]] = []
    for text in luns:
        try:
            parsed.append(parse_lun(text))
        except SpecError as error:
            raise ConfigError(f"--lun {text}: {error}") from None
    try:
        table = place(parsed)
    except ConfigError as error:
        raise ConfigError(f"--lun {error}") from None
    # Memory disks of two servers must not look like one disk with two paths.
    origin = os.path.abspath(socket) if socket else f"fd {fd}"
    names = {address: f"{origin}#{_show(address)}" for address in table}
    return Config(
        tuple(
            LunConfig(names[address], spec, default_id(address)) for address, spec in table.items()
        ),
        (
            HbaConfig(
                socket,
                fd,
                queues,
                names,
                in_band=in_band,
                access_platform=access_platform,
                caps=caps or {},
            ),
        ),
    )


def place(
    luns: Iterable[tuple[Address | None, LunSpec]], *, taken: Container[Address] = ()
) -> dict[Address, LunSpec]:
    """Units by address. One without becomes LUN 0 of the first target that has none.

    `taken`: addresses that have units already. Raises `ConfigError`.
    """
    table: dict[Address, LunSpec] = {}
    bare: list[LunSpec] = []
    for address, spec in luns:
        if address is None:
            bare.append(spec)
        elif address in table or address in taken:
            at = _show(address)
            first = f"{table[address]} is" if address in table else "another unit is"
            raise ConfigError(
                f"{at}={spec}: {first} at {at} already; give one of them another address"
            )
        else:
            table[address] = spec
    targets = range(MAX_TARGET + 1)
    free = (n for n in targets if (n, 0) not in table and (n, 0) not in taken)
    for spec in bare:
        target = next(free, -1)
        if target < 0:
            raise ConfigError(f"{spec}: no target is free; give TARGET:LUN=")
        table[target, 0] = spec
    return table


def from_file(path: str) -> Config:
    """What an ``hba.toml`` says. Raises `ConfigError`."""
    try:
        with open(path, "rb") as file:
            document = tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None
    return _Reader(path).read(document)


class _Reader:
    """Reads one file; its errors say where in that file they are."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._folder = Path(path).absolute().parent

    def read(self, document: dict[str, Any]) -> Config:
        self._known(document, ("lun", "hba"), "")
        luns: dict[str, LunConfig] = {}
        for index, table in enumerate(self._tables(document, "lun")):
            lun = self._lun(table, f"[[lun]] number {index + 1}")
            name = table["id"]
            if name in luns:
                raise self._error(f"[[lun]] {name!r}", "id", "is given twice")
            luns[name] = lun
        hbas = [
            self._hba(table, f"[[hba]] number {index + 1}", luns)
            for index, table in enumerate(self._tables(document, "hba"))
        ]
        if not hbas:
            raise ConfigError(f"{self._path}: no [[hba]] table; add one with socket and luns")
        sockets = [hba.socket for hba in hbas]
        for hba in hbas:
            if sockets.count(hba.socket) > 1:
                raise ConfigError(f"{self._path}: two [[hba]] tables have socket {hba.socket!r}")
        self._distinct_initiators(hbas)
        if len(hbas) > MAX_HBAS:
            raise ConfigError(f"{self._path}: {len(hbas)} [[hba]] tables; use at most {MAX_HBAS}")
        return Config(tuple(luns.values()), tuple(hbas))

    def _distinct_initiators(self, hbas: Iterable[HbaConfig]) -> None:
        """Reservations tell initiator ports apart by these names."""
        seen: set[str] = set()
        for name in (hba.initiator.lower() for hba in hbas if hba.initiator is not None):
            if name in seen:
                raise ConfigError(f"{self._path}: two [[hba]] tables have initiator {name!r}")
            seen.add(name)

    def _lun(self, table: dict[str, Any], where: str) -> LunConfig:
        name = self._string(table, "id", where)
        where = f"[[lun]] {name!r}"
        uri = self._string(table, "uri", where)
        try:
            spec = parse_uri(uri)
        except SpecError as error:
            raise self._error(where, "uri", str(error)) from None
        if spec.scheme == "file":
            spec = LunSpec("file", str(self._folder / spec.location))
        for key, value in table.items():
            if key in _LUN_KEYS:
                continue
            try:
                spec = with_key(spec, key, _as_text(value))
            except SpecError as error:
                raise self._error(where, key, str(error)) from None
        if spec.state is not None:
            spec = replace(spec, state=str(self._folder / spec.state))
        return LunConfig(f"{Path(self._path).absolute()}#{name}", spec, name)

    def _hba(self, table: dict[str, Any], where: str, units: Mapping[str, LunConfig]) -> HbaConfig:
        socket = str(self._folder / self._string(table, "socket", where))
        where = f"[[hba]] {table['socket']!r}"
        self._known(table, _HBA_KEYS, where)
        queues = table.get("queues", 1)
        if not isinstance(queues, int) or isinstance(queues, bool):
            raise self._error(where, "queues", f"{queues!r} is not a whole number")
        try:
            check_queues(queues, "queues")
        except ConfigError as error:
            raise ConfigError(f"{self._path}: {where}: {error}") from None
        port_group = table.get("port-group")
        if port_group is not None and not _is_port_group(port_group):
            problem = f"{port_group!r} is not a whole number from 1 to {MAX_PORT_GROUP}"
            raise self._error(where, "port-group", problem)
        in_band = self._flag(table, "in-band", where)
        access_platform = self._flag(table, "access-platform", where)
        initiator = self._string(table, "initiator", where) if "initiator" in table else None
        if initiator is not None and not re.fullmatch(r"[235][0-9a-fA-F]{15}", initiator):
            problem = f"{initiator!r} is not 16 hex digits that start with 2, 3 or 5 (an NAA name)"
            raise self._error(where, "initiator", problem)
        luns = table.get("luns")
        if not isinstance(luns, dict):
            raise self._error(where, "luns", 'is no table such as {"0:0" = "id of a [[lun]]"}')
        mapped: dict[Address, str] = {}
        for text, unit in luns.items():
            try:
                address = parse_address(text)
            except SpecError as error:
                raise self._error(where, "luns", str(error)) from None
            if address in mapped:
                raise self._error(where, "luns", f"{_show(address)} is given twice")
            if not isinstance(unit, str) or unit not in units:
                raise self._error(
                    where,
                    "luns",
                    f"no [[lun]] has id {unit!r}{did_you_mean(str(unit), units)}; "
                    f"known: {', '.join(units) or 'none'}",
                )
            mapped[address] = units[unit].name
        caps = {name: self._cap(table, name, where) for name in CAPS if name in table}
        return HbaConfig(
            socket, None, queues, mapped, initiator, port_group, in_band, access_platform, caps
        )

    def _cap(self, table: dict[str, Any], key: str, where: str) -> int:
        value = table[key]
        if not isinstance(value, int) or isinstance(value, bool):
            raise self._error(where, key, f"{value!r} is not a whole number")
        try:
            _check_cap(value, key)
        except ConfigError as error:
            raise ConfigError(f"{self._path}: {where}: {error}") from None
        return value

    def _flag(self, table: dict[str, Any], key: str, where: str) -> bool:
        value = table.get(key, False)
        if not isinstance(value, bool):
            raise self._error(where, key, f"{value!r} is not true or false")
        return value

    def _tables(self, document: dict[str, Any], name: str) -> list[dict[str, Any]]:
        tables = document.get(name, [])
        if not isinstance(tables, list) or not all(isinstance(t, dict) for t in tables):
            raise ConfigError(f"{self._path}: write [[{name}]], with two brackets")
        return tables

    def _string(self, table: dict[str, Any], key: str, where: str) -> str:
        value = table.get(key)
        if not isinstance(value, str) or not value:
            raise self._error(where, key, "is missing" if value is None else "is no text")
        return value

    def _known(self, table: dict[str, Any], valid: tuple[str, ...], where: str) -> None:
        for key in table:
            if key not in valid:
                raise self._error(
                    where,
                    key,
                    f"is unknown{did_you_mean(key, list(valid))}; valid: {', '.join(valid)}",
                )

    def _error(self, where: str, key: str, text: str) -> ConfigError:
        return ConfigError(
            ": ".join(part for part in (self._path, where, key) if part) + f": {text}"
        )


def _is_port_group(value: object) -> bool:
    return type(value) is int and 1 <= value <= MAX_PORT_GROUP


def check_queues(queues: int, name: str) -> None:
    if not 1 <= queues <= MAX_QUEUES:
        raise ConfigError(f"{name} {queues}: use 1 to {MAX_QUEUES}")


def _check_cap(cap: int, name: str) -> None:
    if cap < 1:
        raise ConfigError(f"{name} {cap}: use 1 or more")


def default_id(address: Address) -> str:
    """What a unit that was given none is called, by its first address."""
    return f"disk-{address[0]}-{address[1]}"


def _as_text(value: object) -> str:
    """A TOML value as the command line would have it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value)


def _show(address: Address) -> str:
    return f"{address[0]}:{address[1]}"
