"""Numbers on the command line: decimal, or hexadecimal with 0x."""

from __future__ import annotations

from typing import Final

import click


def _number(value: str) -> int:
    try:
        return int(value, 0)
    except ValueError:
        raise click.BadParameter(f"{value!r} is no number; write it like 4096 or 0x1000") from None


NUMBER: Final = click.types.FuncParamType(_number)
NUMBER.name = "number"
