"""Types as JSON sees them: checked on the way in, written on the way out, described, read as text.

What a method may use: bool, int, float, str, None, `list`, `dict` with text keys, `Literal`, unions
of these, and dataclasses of all of them.
"""

from __future__ import annotations

import dataclasses
import json
import types
from contextlib import suppress
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from vscsi_emu.backends.uri import did_you_mean

_SCALARS: dict[Any, str] = {
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "string",
    type(None): "null",
}


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


class SchemaError(ValueError):
    """A value that is not of its type. `path` says where in the value."""

    def __init__(self, path: str, text: str) -> None:
        super().__init__(f"{path}: {text}")
        self.path = path


def to_json(value: Any) -> Any:
    """What `json` writes; dataclasses become objects."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return {field.name: to_json(getattr(value, field.name)) for field in fields}
    if isinstance(value, dict):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    return value


def from_json(kind: Any, value: Any, path: str) -> Any:
    """The value of type `kind` that JSON gave. Raises `SchemaError`."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind in _SCALARS:
        # In Python a bool is an int; here it is not.
        if type(value) is not kind:
            raise SchemaError(path, f"{_shown(value)} is not {_named(kind)}")
        return value
    if origin in (Union, types.UnionType):
        return _from_union(kind, value, path)
    if origin is Literal:
        if value not in arguments or isinstance(value, bool):
            near = did_you_mean(str(value), [str(choice) for choice in arguments])
            raise SchemaError(path, f"{_shown(value)} is not {_named(kind)}{near}")
        return value
    if origin is list:
        if not isinstance(value, list):
            raise SchemaError(path, f"{_shown(value)} is no list")
        return [from_json(arguments[0], item, f"{path}[{n}]") for n, item in enumerate(value)]
    if not isinstance(value, dict):
        raise SchemaError(path, f"{_shown(value)} is no object")
    if origin is dict:
        return {key: from_json(arguments[1], item, f"{path}.{key}") for key, item in value.items()}
    return _from_object(kind, value, path)


def _from_union(kind: Any, value: Any, path: str) -> Any:
    choices = get_args(kind)
    if value is None and type(None) in choices:
        return None
    others = [choice for choice in choices if choice is not type(None)]
    if len(others) == 1:
        return from_json(others[0], value, path)
    for choice in others:
        with suppress(SchemaError):
            return from_json(choice, value, path)
    raise SchemaError(path, f"{_shown(value)} is not {_named(kind)}")


def _from_object(kind: Any, value: dict[str, Any], path: str) -> Any:
    hints = _hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for name in value:
        if name not in fields:
            raise SchemaError(f"{path}.{name}", f"is unknown{did_you_mean(name, fields)}")
    for name, field in fields.items():
        optional = field.default is not dataclasses.MISSING
        if name not in value and not optional:
            raise SchemaError(f"{path}.{name}", "is missing")
    return kind(
        **{name: from_json(hints[name], item, f"{path}.{name}") for name, item in value.items()}
    )


def from_text(kind: Any, texts: list[str], path: str) -> Any:
    """The value that a command line gave, as one text or, for a list, several."""
    choices = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    for choice in choices:
        if get_origin(choice) is list:
            [item] = get_args(choice)
            return [from_text(item, [text], path) for text in texts]
    if len(texts) > 1:
        raise SchemaError(path, "is given twice")
    words: dict[str, object] = {"on": True, "off": False}
    candidates: list[object] = [words[texts[0]]] if texts[0] in words else []
    with suppress(ValueError):
        candidates.append(json.loads(texts[0]))
    for candidate in [*candidates, texts[0]]:
        try:
            return from_json(kind, candidate, path)
        except SchemaError:
            continue
    return from_json(kind, texts[0], path)


def describe(kind: Any) -> dict[str, Any]:
    """The type as JSON Schema."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind in _SCALARS:
        return {"type": _SCALARS[kind]}
    if origin in (Union, types.UnionType):
        return {"anyOf": [describe(choice) for choice in arguments]}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is list:
        return {"type": "array", "items": describe(arguments[0])}
    if origin is dict:
        return {"type": "object", "additionalProperties": describe(arguments[1])}
    hints = _hints(kind)
    fields = dataclasses.fields(kind)
    return {
        "type": "object",
        "title": kind.__name__,
        "properties": {field.name: describe(hints[field.name]) for field in fields},
        "required": [f.name for f in fields if f.default is dataclasses.MISSING],
    }


def type_name(kind: Any) -> str:
    """The type in a few characters, for people."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is type(None):
        return "null"
    if origin in (Union, types.UnionType):
        return " | ".join(type_name(choice) for choice in arguments)
    if origin is Literal:
        return " | ".join(json.dumps(choice) for choice in arguments)
    if origin is list:
        return f"list[{type_name(arguments[0])}]"
    if origin is dict:
        return f"dict[str, {type_name(arguments[1])}]"
    return str(kind.__name__)


def _named(kind: Any) -> str:
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(_named(choice) for choice in get_args(kind))
    if origin is Literal:
        return "one of " + ", ".join(json.dumps(choice) for choice in get_args(kind))
    return names.get(kind) or type_name(kind)


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}…"
