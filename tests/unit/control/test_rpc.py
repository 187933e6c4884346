"""JSON-RPC 2.0, without a socket."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any, cast

import pytest

from vscsi_emu.control.method import Method, method
from vscsi_emu.control.rpc import MAX_BATCH, Dispatcher
from vscsi_emu.disk import OperationError

if TYPE_CHECKING:
    from vscsi_emu.control.context import Context


@method("math.add")
async def add(context: Context, a: int, b: int = 1) -> int:
    """Adds."""
    cast("list[int]", context).append(a)
    return a + b


@method("math.fail")
async def fail(context: Context, how: str | None = None) -> None:
    """Fails."""
    raise OperationError("it is so", how)


@method("math.break")
async def crash(context: Context) -> None:
    """A bug."""
    raise LookupError


METHODS: dict[str, Method[Any, Any]] = {m.name: m for m in (add, fail, crash)}


def answer(message: object) -> Any:
    return talk(message)[0]


def talk(message: object) -> tuple[Any, list[int]]:
    """The answer, and the first arguments that `math.add` was called with."""
    calls: list[int] = []
    line = message if isinstance(message, bytes) else json.dumps(message).encode()
    dispatcher = Dispatcher(METHODS, cast("Context", calls))
    reply = asyncio.run(dispatcher.answer(line))
    assert reply is None or reply.endswith(b"\n")
    return (None if reply is None else json.loads(reply)), calls


def request(name: object = "math.add", params: object = None, **more: object) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": 7, "method": name, "params": params or {"a": 1}, **more}


def test_parameters_by_name_and_by_position() -> None:
    for params in ({"a": 2, "b": 3}, [2, 3]):
        assert answer(request(params=params)) == {"jsonrpc": "2.0", "id": 7, "result": 5}
    assert answer(request(params=[2]))["result"] == 3


@pytest.mark.parametrize("id", ["x", 0, -3, 1.5, None])
def test_ids_come_back(id: object) -> None:
    assert answer(request(id=id))["id"] == id


def test_notifications_are_done_and_not_answered() -> None:
    note = {"jsonrpc": "2.0", "method": "math.add", "params": [4]}
    assert talk(note) == (None, [4])
    assert talk({**note, "params": ["wrong"]}) == (None, [])
    assert talk({**note, "method": "none"}) == (None, [])
    assert talk([note, note]) == (None, [4, 4])


def test_a_batch_is_answered_as_one() -> None:
    note = {"jsonrpc": "2.0", "method": "math.add", "params": [4]}
    replies = answer([request(params=[1]), note, 5, request("none", id="n")])
    assert [reply["id"] for reply in replies] == [7, None, "n"]
    assert [reply.get("error", {}).get("code") for reply in replies] == [None, -32600, -32601]


@pytest.mark.parametrize("batch", [[], [request()] * (MAX_BATCH + 1)], ids=["empty", "too long"])
def test_batches_have_bounds(batch: list[object]) -> None:
    reply, calls = talk(batch)
    assert reply["error"]["code"] == -32600
    assert not calls


BAD_LINES = [
    (b"", -32700),
    (b"{", -32700),
    (b"\xff\xfe", -32700),
    (b"[" * 100_000, -32700),
    (b'{"jsonrpc": "2.0", "id": NaN, "method": "math.add"}', -32700),
    (b"9" * 10_000, -32700),
    (b"5", -32600),
    (b"null", -32600),
    (json.dumps({"id": 1, "method": "math.add"}).encode(), -32600),
    (json.dumps(request(jsonrpc="1.0")).encode(), -32600),
    (json.dumps(request(5)).encode(), -32600),
    (json.dumps(request(id=True)).encode(), -32600),
    (json.dumps(request(id=[])).encode(), -32600),
]


@pytest.mark.parametrize(("line", "code"), BAD_LINES, ids=[str(n) for n in range(len(BAD_LINES))])
def test_garbage_is_refused(line: bytes, code: int) -> None:
    reply = answer(line)
    assert reply["error"]["code"] == code
    assert reply["jsonrpc"] == "2.0"


BAD_PARAMS: list[tuple[object, str | None, str]] = [
    ({"a": "x"}, "a", "not a whole number"),
    ({"b": 1}, "a", "missing"),
    ({"a": 1, "bb": 2}, "bb", "did you mean 'b'?"),
    ([1, 2, 3], None, "takes 2 parameters"),
    ("text", None, "neither an object nor a list"),
]


@pytest.mark.parametrize(("params", "parameter", "text"), BAD_PARAMS)
def test_bad_parameters_are_named(params: object, parameter: str | None, text: str) -> None:
    error = answer(request(params=params))["error"]
    assert error["code"] == -32602
    assert text in error["message"]
    assert error.get("data") == (parameter and {"parameter": parameter})


def test_unknown_methods_suggest_a_near_one() -> None:
    error = answer(request("math.ad"))["error"]
    assert error == {
        "code": -32601,
        "message": "there is no method 'math.ad' (did you mean 'math.add'?)",
    }


def test_what_cannot_be_done_now() -> None:
    error = answer({"jsonrpc": "2.0", "id": 1, "method": "math.fail"})["error"]
    assert error == {"code": -32000, "message": "it is so"}
    error = answer(request("math.fail", ["how"]))["error"]
    assert (error["code"], error["data"]) == (-32602, {"parameter": "how"})


def test_a_bug_is_answered_too() -> None:
    error = answer({"jsonrpc": "2.0", "id": 1, "method": "math.break"})["error"]
    assert error["code"] == -32603
