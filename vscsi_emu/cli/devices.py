"""``vscsi-emu devices``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from vscsi_emu.cli.console import table_console

if TYPE_CHECKING:
    from vscsi_emu.host.devices import ScsiDevice
    from vscsi_emu.host.monitor import Change


@click.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON; with --watch one object a line.")
@click.option("--watch", is_flag=True, help="Go on: show devices that come, go or change.")
def devices(as_json: bool, watch: bool) -> None:
    """List this machine's SCSI devices, and who uses them.

    Needs no rights; with those of root it sees all users.
    """
    from vscsi_emu.host.devices import devices as find_all

    if watch:
        _watch(as_json)
    else:
        _show(find_all(), as_json)


def _watch(as_json: bool) -> None:
    import asyncio
    from contextlib import suppress

    from vscsi_emu.host import report
    from vscsi_emu.host.errors import HostError
    from vscsi_emu.host.monitor import Monitor

    async def follow(monitor: Monitor) -> None:
        async for change in monitor:
            click.echo(json.dumps(report.change(change)) if as_json else _line(change))

    try:
        # Watched first and listed then, so that nothing falls between.
        monitor = Monitor()
        _show(list(monitor.known.values()), as_json, lines=True)
        with suppress(KeyboardInterrupt):
            asyncio.run(follow(monitor))
    except HostError as error:
        raise click.ClickException(str(error)) from None


def _show(found: list[ScsiDevice], as_json: bool, lines: bool = False) -> None:
    """`lines`: as JSON, one object a line."""
    if as_json:
        _print_json(found, lines)
    elif found:
        _print_table(found)
    else:
        click.echo("This machine has no SCSI devices.")


def _print_json(found: list[ScsiDevice], lines: bool) -> None:
    from vscsi_emu.host import report
    from vscsi_emu.host.use import use

    described = [report.device_in_use(device, use(device)) for device in found]
    if not lines:
        click.echo(json.dumps(described, indent=2))
    else:
        for each in described:
            click.echo(json.dumps({"event": "present", "device": each}))


def _print_table(found: list[ScsiDevice]) -> None:
    from rich.table import Table
    from rich.text import Text

    from vscsi_emu.host.use import use

    table = Table(box=None, pad_edge=False)
    for title in ("address", "nodes", "type", "device", "serial", "wwn", "via", "size", "in use"):
        table.add_column(title, overflow="fold", justify="right" if title == "size" else "left")
    for device in found:
        row = (
            str(device.address),
            " ".join(str(node) for node in (device.sg, device.block) if node),
            device.type_name,
            " ".join(filter(None, (device.vendor, device.model, device.revision))),
            device.serial or "-",
            device.wwn or device.wwid or "-",
            device.transport,
            size_text(device.size),
            str(use(device)) or "-",
        )
        table.add_row(*map(Text, row))
    table_console().print(table)


def _line(change: Change) -> str:
    device = change.device
    words = [change.kind, str(device.address), str(device), device.type_name, device.model]
    match change.kind:
        case "changed":
            words += [
                f"{n}: {getattr(change.before, n)} → {getattr(device, n)}" for n in change.changed
            ]
        case "attention":
            words.append(change.attention or "")
        case _:
            words += [device.wwn or "", size_text(device.size)]
    return "  ".join(filter(None, words))


def size_text(size: int | None) -> str:
    """A size in bytes for people: 1.8 TiB."""
    if size is None:
        return "-"
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.4g} {unit}"
        value /= 1024
    return f"{value:.4g} TiB"
