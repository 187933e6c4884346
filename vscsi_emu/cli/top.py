"""``vscsi-emu top``."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import click

from vscsi_emu.cli.console import table_console
from vscsi_emu.cli.monitor import monitor_client, monitor_option

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType
    from rich.table import Table

    from vscsi_emu.control.rates import Interval, Rates


@click.command()
@monitor_option
@click.option(
    "--interval",
    type=click.FloatRange(min=0.1, max=3600),
    default=1.0,
    show_default=True,
    help="Seconds between two looks.",
)
@click.option("--once", is_flag=True, help="One interval, then end.")
@click.option("--json", "as_json", is_flag=True, help="A line of JSON for each interval.")
def top(monitor: str, interval: float, once: bool, as_json: bool) -> None:
    """Watch what a running server's LUNs and queues do.

    Latencies are from where a worker begins to take a queue's commands to where it shows the driver
    which of them have ended. LUN "none" has the commands that were for no LUN. A gate that is
    closed sends the commands of its class through Python: for a unit attention, a reservation, a
    pause.

    \b
    Examples:
      vscsi-emu top --monitor /tmp/m
      vscsi-emu top --monitor /tmp/m --once --json | jq '.luns[].p99'
    """
    from rich.live import Live

    from vscsi_emu.control.rates import between
    from vscsi_emu.control.schema import to_json

    console = table_console()
    with monitor_client(monitor) as client:
        before = client.stats_query(histograms=True)

        def look() -> Interval:
            nonlocal before
            time.sleep(interval)
            after = client.stats_query(histograms=True)
            shown, before = between(before, after), after
            return shown

        if as_json or once:
            while True:
                shown = look()
                if as_json:
                    click.echo(json.dumps(to_json(shown)))
                else:
                    console.print(render(shown))
                if once:
                    return
        with Live(console=console, screen=console.is_terminal, auto_refresh=False) as live:
            live.update("waiting for the first interval …", refresh=True)
            while True:
                live.update(render(look()), refresh=True)


def render(interval: Interval) -> RenderableType:
    """Two tables: busy LUNs first, what was for none, then queues."""
    from rich.console import Group

    luns = sorted(interval.luns, key=_iops, reverse=True)
    luns += [stray for stray in interval.strays if stray.p50 is not None or stray.in_flight]
    return Group(_table("LUN", luns, gates=True), _table("queue", interval.queues, gates=False))


def _table(what: str, rows: Sequence[Rates], *, gates: bool) -> Table:
    from rich.table import Table

    table = Table("HBA", what, box=None, header_style="bold", pad_edge=False)
    columns = ["read/s", "write/s", "other/s", "rMB/s", "wMB/s", "p50", "p99", "p99.9"]
    for column in [*columns, "in flight", "errors"]:
        table.add_column(column, justify="right")
    if gates:
        table.add_column("closed gates")
    for row in rows:
        name = row.name if row.id in (None, row.name) else f"{row.name} {row.id}"
        cells = [row.hba, name]
        cells += [f"{value:,.0f}" for value in (row.read_iops, row.write_iops, row.other_iops)]
        cells += [f"{value / 1e6:,.1f}" for value in (row.read_bytes, row.write_bytes)]
        cells += [show_latency(value) for value in (row.p50, row.p99, row.p999)]
        cells += [str(row.in_flight), str(row.errors)]
        if gates:
            cells.append(" ".join(row.closed) or "-")
        table.add_row(*cells)
    return table


def _iops(row: Rates) -> float:
    return row.read_iops + row.write_iops + row.other_iops


def show_latency(nanoseconds: int | None) -> str:
    """In the unit that leaves the fewest digits."""
    if nanoseconds is None:
        return "-"
    for unit, size in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
        if nanoseconds >= size:
            return f"{nanoseconds / size:.3g} {unit}"
    return f"{nanoseconds} ns"
