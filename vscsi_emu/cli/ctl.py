"""``vscsi-emu ctl``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from vscsi_emu.cli.monitor import monitor_client

if TYPE_CHECKING:
    from vscsi_emu.control.method import Method


@click.command()
@click.option("--monitor", metavar="PATH", help="Socket that `serve --monitor` listens on.")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON instead of a report.")
@click.option(
    "--timeout", type=float, default=120.0, show_default=True, help="Seconds for the call."
)
@click.argument("name", metavar="METHOD")
@click.argument("arguments", metavar="[KEY=VALUE]…", nargs=-1)
def ctl(
    monitor: str | None, as_json: bool, timeout: float, name: str, arguments: tuple[str, ...]
) -> None:
    """Call a method of a running server's monitor.

    A value is text, a number, on or off, or JSON; a list is given by repeating its key.

    \b
    Examples:
      vscsi-emu ctl methods
      vscsi-emu ctl --monitor /tmp/m lun.add luns=3:2=mem:64M luns=disk.img,ro
      vscsi-emu ctl --monitor /tmp/m lun.resize lun=3:2 size=128M
      vscsi-emu ctl --monitor /tmp/m events.subscribe
    """
    from vscsi_emu.backends.uri import did_you_mean
    from vscsi_emu.control.methods import METHODS

    if name == "methods":
        _print_methods(as_json)
        return
    if name not in METHODS:
        raise click.UsageError(
            f"there is no method {name!r}{did_you_mean(name, METHODS)}; see vscsi-emu ctl methods"
        )
    method = METHODS[name]
    params = _parameters(method, arguments)
    if monitor is None:
        raise click.UsageError("give the server's --monitor PATH")
    _call(monitor, method, params, as_json, timeout)


def _parameters(method: Method[Any, Any], arguments: tuple[str, ...]) -> dict[str, Any]:
    from vscsi_emu.backends.uri import did_you_mean
    from vscsi_emu.control.method import ParameterError
    from vscsi_emu.control.schema import SchemaError, from_text

    kinds = {parameter.name: parameter.kind for parameter in method.parameters}
    texts: dict[str, list[str]] = {}
    for argument in arguments:
        key, has_value, value = argument.partition("=")
        key = key.replace("-", "_")
        if key not in kinds:
            raise click.UsageError(
                f"{method.name} has no parameter {key!r}{did_you_mean(key, kinds)}; "
                f"it takes {', '.join(kinds) or 'none'}"
            )
        texts.setdefault(key, []).append(value if has_value else "on")
    try:
        params = {key: from_text(kinds[key], values, key) for key, values in texts.items()}
        method.bind(params)
    except (SchemaError, ParameterError) as error:
        raise click.UsageError(str(error)) from None
    return params


def _call(
    path: str, method: Method[Any, Any], params: dict[str, Any], as_json: bool, timeout: float
) -> None:
    from vscsi_emu.control.schema import to_json

    with monitor_client(path, timeout=timeout) as client:
        result = to_json(client.invoke(method, params))
        if isinstance(result, str) and not as_json:
            click.echo(result, nl=False)
        elif result is not None or as_json:
            click.echo(json.dumps(result, indent=None if as_json else 2))
        if method.name == "events.subscribe":
            while True:
                click.echo(json.dumps(to_json(client.next_event())))


def _print_methods(as_json: bool) -> None:
    from vscsi_emu.control.methods import METHODS

    if as_json:
        described = [method.describe() for method in METHODS.values()]
        click.echo(json.dumps({"jsonrpc": "2.0", "methods": described}, indent=2))
        return
    for method in METHODS.values():
        click.echo(method.signature)
        for line in method.doc.splitlines():
            click.echo(f"    {line}")
