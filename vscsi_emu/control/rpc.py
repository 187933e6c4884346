"""JSON-RPC 2.0: from a line to the line that answers it. Knows nothing of sockets."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from vscsi_emu.backends.uri import did_you_mean
from vscsi_emu.control import schema
from vscsi_emu.control.method import Method, ParameterError
from vscsi_emu.disk import OperationError

if TYPE_CHECKING:
    from vscsi_emu.control.context import Context

log = logging.getLogger(__name__)

MAX_BATCH: Final = 1000
"""Requests of one batch."""

PARSE_ERROR: Final = -32700
INVALID_REQUEST: Final = -32600
METHOD_NOT_FOUND: Final = -32601
INVALID_PARAMS: Final = -32602
INTERNAL_ERROR: Final = -32603
OPERATION_FAILED: Final = -32000
"""The call was understood, but what it asks cannot be done now."""

_MISSING: Final = object()


class RpcError(Exception):
    """An error response. `data`: ``{"parameter": name}`` where one is at fault."""

    def __init__(self, code: int, message: str, data: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.data = data

    @property
    def parameter(self) -> str | None:
        """Name of the parameter at fault."""
        return (self.data or {}).get("parameter")


def encode(message: object) -> bytes:
    """One line. All of it is ASCII: names of files may be no UTF-8."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def notification(name: str, params: dict[str, Any]) -> bytes:
    """A line that wants no answer."""
    return encode({"jsonrpc": "2.0", "method": name, "params": params})


def refusal(error: RpcError, id: object = None) -> bytes:
    """The line of an error response."""
    return encode(_failure(error, id))


class Dispatcher:
    """Answers requests by `methods`, one after the other."""

    def __init__(self, methods: Mapping[str, Method[Any, Any]], context: Context) -> None:
        self._methods = methods
        self._context = context

    async def answer(self, line: bytes) -> bytes | None:
        """The answer to a line, if it wants one. Never raises for what the line says."""
        try:
            message = json.loads(line, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            return refusal(RpcError(PARSE_ERROR, f"this is no JSON: {error}"))
        if not isinstance(message, list):
            reply = await self._request(message)
            return None if reply is None else encode(reply)
        if not 1 <= len(message) <= MAX_BATCH:
            text = f"a batch has 1 to {MAX_BATCH} requests, not {len(message)}"
            return refusal(RpcError(INVALID_REQUEST, text))
        replies = [await self._request(request) for request in message]
        wanted = [reply for reply in replies if reply is not None]
        return encode(wanted) if wanted else None

    async def _request(self, request: object) -> dict[str, Any] | None:
        if not isinstance(request, dict):
            return _failure(RpcError(INVALID_REQUEST, "a request is an object"), None)
        id = request.get("id", _MISSING)
        try:
            _check(request)
            result = await self._call(request["method"], request.get("params", {}))
            reply = {"jsonrpc": "2.0", "id": id, "result": schema.to_json(result)}
        except RpcError as error:
            reply = _failure(error, id)
            if error.code == INVALID_REQUEST:
                # Whether it was meant to be a notification cannot be told.
                return reply
        return None if id is _MISSING else reply

    async def _call(self, name: str, params: object) -> object:
        method = self._methods.get(name)
        if method is None:
            near = did_you_mean(name, self._methods)
            raise RpcError(METHOD_NOT_FOUND, f"there is no method {name!r}{near}")
        try:
            return await method(self._context, **method.bind(params))
        except ParameterError as error:
            raise RpcError(INVALID_PARAMS, str(error), _data(error.parameter)) from None
        except OperationError as error:
            code = OPERATION_FAILED if error.parameter is None else INVALID_PARAMS
            raise RpcError(code, str(error), _data(error.parameter)) from None
        except Exception as error:
            log.exception("internal error in %s", name)
            raise RpcError(INTERNAL_ERROR, f"internal error in {name}; the log has it") from error


def _check(request: dict[str, Any]) -> None:
    if request.get("jsonrpc") != "2.0":
        raise RpcError(INVALID_REQUEST, 'a request has "jsonrpc": "2.0"')
    if not isinstance(request.get("method"), str):
        raise RpcError(INVALID_REQUEST, "method is no text")
    if type(request.get("id")) not in (str, int, float, type(None)):
        raise RpcError(INVALID_REQUEST, "id is neither text nor a number")


def _failure(error: RpcError, id: object) -> dict[str, Any]:
    body: dict[str, Any] = {"code": error.code, "message": error.message}
    if error.data is not None:
        body["data"] = error.data
    known = id if type(id) in (str, int, float) else None
    return {"jsonrpc": "2.0", "id": known, "error": body}


def _data(parameter: str | None) -> dict[str, Any] | None:
    return None if parameter is None else {"parameter": parameter}


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not in JSON")
