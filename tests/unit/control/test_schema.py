"""Types as JSON and as text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import pytest

from vscsi_emu.control.schema import (
    SchemaError,
    describe,
    from_json,
    from_text,
    to_json,
    type_name,
)


@dataclass(frozen=True)
class Inner:
    size: int
    note: str | None = None


@dataclass(frozen=True)
class Outer:
    inner: list[Inner]
    table: dict[str, float]


GOOD: list[tuple[Any, Any, Any]] = [
    (int, 5, 5),
    (float, 5, 5.0),
    (bool, True, True),
    (str | None, None, None),
    (int | str, "1G", "1G"),
    (Literal["a", "b"], "b", "b"),
    (list[int], [1, 2], [1, 2]),
    (dict[str, int], {"a": 1}, {"a": 1}),
    (Inner, {"size": 1}, Inner(1)),
    (
        Outer,
        {"inner": [{"size": 1, "note": "x"}], "table": {"t": 2}},
        Outer([Inner(1, "x")], {"t": 2.0}),
    ),
]


@pytest.mark.parametrize(("kind", "value", "expected"), GOOD)
def test_what_fits_is_taken(kind: Any, value: Any, expected: Any) -> None:
    got = from_json(kind, value, "p")
    assert got == expected
    assert type(got) is type(expected)
    assert from_json(kind, to_json(got), "p") == expected


BAD: list[tuple[Any, Any, str]] = [
    (int, True, "p: true is not a whole number"),
    (int, 1.5, "p: 1.5 is not a whole number"),
    (int, "1", 'p: "1" is not a whole number'),
    (bool, 0, "p: 0 is not true or false"),
    (str, None, "p: null is not text"),
    (int | None, "x", 'p: "x" is not a whole number'),
    (int | str, None, "p: null is not a whole number or text"),
    (Literal["read", "write"], "raed", 'one of "read", "write" (did you mean \'read\'?)'),
    (list[int], 3, "p: 3 is no list"),
    (list[int], [1, "x"], 'p[1]: "x"'),
    (dict[str, int], {"a": "x"}, 'p.a: "x"'),
    (Inner, {}, "p.size: is missing"),
    (Inner, {"size": 1, "siz": 2}, "p.siz: is unknown (did you mean 'size'?)"),
    (Inner, [], "p: [] is no object"),
    (Outer, {"inner": [{"size": None}], "table": {}}, "p.inner[0].size: null"),
]


@pytest.mark.parametrize(("kind", "value", "text"), BAD)
def test_what_does_not_fit_is_named(kind: Any, value: Any, text: str) -> None:
    with pytest.raises(SchemaError) as caught:
        from_json(kind, value, "p")
    assert text in str(caught.value)


TEXTS: list[tuple[Any, list[str], Any]] = [
    (str, ["5"], "5"),
    (str, ["on"], "on"),
    (int, ["5"], 5),
    (int | str, ["5"], 5),
    (int | str, ["5M"], "5M"),
    (bool | None, ["on"], True),
    (bool | None, ["off"], False),
    (bool, ["true"], True),
    (float, ["2"], 2.0),
    (list[str], ["a", "[b"], ["a", "[b"]),
    (list[str] | None, ["a"], ["a"]),
    (Literal["a", "b"], ["a"], "a"),
]


@pytest.mark.parametrize(("kind", "texts", "expected"), TEXTS)
def test_text_becomes_what_the_type_says(kind: Any, texts: list[str], expected: Any) -> None:
    assert from_text(kind, texts, "p") == expected


def test_only_lists_are_given_twice() -> None:
    with pytest.raises(SchemaError, match="twice"):
        from_text(int, ["1", "2"], "p")


def test_descriptions() -> None:
    assert describe(list[Inner]) == {
        "type": "array",
        "items": {
            "type": "object",
            "title": "Inner",
            "properties": {
                "size": {"type": "integer"},
                "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            },
            "required": ["size"],
        },
    }
    assert describe(Literal["a"]) == {"enum": ["a"]}
    assert type_name(dict[str, list[int | None]]) == "dict[str, list[int | null]]"
