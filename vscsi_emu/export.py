"""A configuration as the text of an ``hba.toml``: what `config` reads, written."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING

from vscsi_emu.backends.uri import KEYS, LunSpec

if TYPE_CHECKING:
    from vscsi_emu.config import Config, HbaConfig, LunConfig

_DEFAULTS = {field.name: field.default for field in fields(LunSpec)}


class ExportError(Exception):
    """Something that an ``hba.toml`` cannot say."""


def to_toml(config: Config) -> str:
    """The text; its paths are absolute. `ExportError` for an HBA without a socket's path."""
    ids = {lun.name: lun.id for lun in config.luns}
    tables = [_table("lun", _lun(lun)) for lun in config.luns]
    tables += [_table("hba", _hba(hba, ids)) for hba in config.hbas]
    return "\n".join(tables)


def _lun(lun: LunConfig) -> Iterator[tuple[str, object]]:
    spec = lun.spec
    location = os.path.abspath(spec.location) if spec.scheme == "file" else spec.location
    yield "id", lun.id
    yield "uri", f"{spec.scheme}:{location}"
    for name, key in KEYS.items():
        value = getattr(spec, key.field)
        if value == _DEFAULTS[key.field]:
            continue
        match key.field:
            case "write_cache":
                yield name, "writeback" if value else "writethrough"
            case "state":
                yield name, os.path.abspath(value)
            case _:
                yield name, value
    yield from spec.extra.items()


def _hba(hba: HbaConfig, ids: Mapping[str, str]) -> Iterator[tuple[str, object]]:
    if hba.socket is None:
        raise ExportError("an HBA without a socket of its own path cannot stand in an hba.toml")
    yield "socket", os.path.abspath(hba.socket)
    yield "queues", hba.queues
    if hba.initiator is not None:
        yield "initiator", hba.initiator
    if hba.port_group is not None:
        yield "port-group", hba.port_group
    yield from hba.caps.items()
    if hba.in_band:
        yield "in-band", True
    if hba.access_platform:
        yield "access-platform", True
    yield "luns", {f"{target}:{lun}": ids[name] for (target, lun), name in hba.luns.items()}


def _table(name: str, entries: Iterator[tuple[str, object]]) -> str:
    return f"[[{name}]]\n" + "".join(f"{key} = {_value(value)}\n" for key, value in entries)


def _value(value: object) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case Mapping():
            return "{" + ", ".join(f"{_value(k)} = {_value(v)}" for k, v in value.items()) + "}"
        case _:
            return _string(str(value))


def _string(text: str) -> str:
    """A TOML basic string; its escapes are JSON's, and DEL is escaped too."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ExportError(f"{text!r} is no UTF-8, as all text in an hba.toml is") from None
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
