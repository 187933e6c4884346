"""One declaration a method: a typed function. Its signature is the schema of its parameters, from
which follow the check of calls, the command line, the clients and the documentation.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Concatenate, Final, Generic, ParamSpec, TypeVar

from vscsi_emu.backends.uri import did_you_mean
from vscsi_emu.control import schema

if TYPE_CHECKING:
    from vscsi_emu.control.context import Context

P = ParamSpec("P")
R = TypeVar("R")

REQUIRED: Final = inspect.Parameter.empty


class ParameterError(ValueError):
    """A call that does not fit; `parameter` names the one at fault, None: all of them."""

    def __init__(self, text: str, parameter: str | None = None) -> None:
        super().__init__(text)
        self.parameter = parameter


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a method."""

    name: str
    kind: Any
    default: Any

    @property
    def required(self) -> bool:
        return self.default is REQUIRED


class Method(Generic[P, R]):
    """A method of the monitor. Called with a `Context`, it does its work in this process."""

    def __init__(
        self, name: str, function: Callable[Concatenate[Context, P], Awaitable[R]]
    ) -> None:
        self.name: Final = name
        self._function = function

    def __call__(self, context: Context, *args: P.args, **kwargs: P.kwargs) -> Awaitable[R]:
        return self._function(context, *args, **kwargs)

    @property
    def doc(self) -> str:
        """What it does, in one paragraph a line."""
        text = inspect.cleandoc(self._function.__doc__ or "")
        return "\n".join(part.replace("\n", " ") for part in text.split("\n\n"))

    @cached_property
    def parameters(self) -> tuple[Parameter, ...]:
        # The first one is the context, whose type is for the type checker only.
        found = list(inspect.signature(self._function).parameters.values())[1:]
        return tuple(Parameter(p.name, self._type(p.annotation), p.default) for p in found)

    @cached_property
    def result(self) -> Any:
        """The type of its result."""
        return self._type(inspect.signature(self._function).return_annotation)

    def _type(self, annotation: str) -> Any:
        module = sys.modules[self._function.__module__]
        kind = eval(annotation, vars(module))  # our own source text, as get_type_hints does
        return type(None) if kind is None else kind

    def params(self, *args: P.args, **kwargs: P.kwargs) -> dict[str, Any]:
        """The arguments of a call in Python, as JSON by name."""
        names = [parameter.name for parameter in self.parameters]
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        return {name: schema.to_json(value) for name, value in given.items()}

    def bind(self, params: object) -> dict[str, Any]:
        """The arguments of a call that JSON gave, by name or in order. `ParameterError`."""
        known = {parameter.name: parameter for parameter in self.parameters}
        if isinstance(params, list):
            if len(params) > len(known):
                raise ParameterError(f"{self.name} takes {len(known)} parameters, not more")
            params = dict(zip(known, params, strict=False))
        if not isinstance(params, Mapping):
            raise ParameterError("params is neither an object nor a list")
        for name in params:
            if name not in known:
                raise ParameterError(
                    f"{self.name} has no parameter {name!r}{did_you_mean(name, known)}; "
                    f"it takes {', '.join(known) or 'none'}",
                    name,
                )
        for parameter in self.parameters:
            if parameter.required and parameter.name not in params:
                raise ParameterError(f"{parameter.name} is missing", parameter.name)
        try:
            return {
                name: schema.from_json(known[name].kind, value, name)
                for name, value in params.items()
            }
        except schema.SchemaError as error:
            raise ParameterError(str(error), error.path.split(".")[0].split("[")[0]) from None

    def describe(self) -> dict[str, Any]:
        """The declaration as JSON: parameters and result as JSON Schema."""
        return {
            "name": self.name,
            "doc": self.doc,
            "params": [
                {
                    "name": parameter.name,
                    "schema": schema.describe(parameter.kind),
                    **({} if parameter.required else {"default": parameter.default}),
                }
                for parameter in self.parameters
            ],
            "result": schema.describe(self.result),
        }

    @property
    def signature(self) -> str:
        """For people: parameters with types and defaults, and the result's type."""
        parts = []
        for parameter in self.parameters:
            default = "" if parameter.required else f" = {json.dumps(parameter.default)}"
            parts.append(f"{parameter.name}: {schema.type_name(parameter.kind)}{default}")
        return f"{self.name}({', '.join(parts)}) → {schema.type_name(self.result)}"


def method(
    name: str,
) -> Callable[[Callable[Concatenate[Context, P], Awaitable[R]]], Method[P, R]]:
    """Declares a method under `name`."""

    def declare(function: Callable[Concatenate[Context, P], Awaitable[R]]) -> Method[P, R]:
        return Method(name, function)

    return declare
