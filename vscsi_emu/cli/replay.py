"""``vscsi-emu replay``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from vscsi_emu.cli.console import table_console

if TYPE_CHECKING:
    from vscsi_emu.capture.differences import DataComparison
    from vscsi_emu.capture.replay import Comparison
    from vscsi_emu.driver.virtio_scsi import VirtioScsi

_RAM = 256 << 20
_BASE = 0x4000_0000
_SHOWN = 16
"""Rows of blocks that are listed."""


class _Speed(click.ParamType):  # type: ignore[type-arg]
    name = "speed"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> object:
        if value == "max" or isinstance(value, float):
            return value
        try:
            speed = float(str(value))
        except ValueError:
            speed = 0.0
        if not 0 < speed <= 1e6:
            self.fail(f"{value!r} is neither max nor a number above 0", param, ctx)
        return speed


@click.command()
@click.argument("file")
@click.option("--lun", metavar="URI[,KEY=VALUE…]", help="Against this disk, opened here.")
@click.option("--socket", metavar="PATH", help="Against a running server's HBA, as its driver.")
@click.option("--at", metavar="TARGET:LUN", help="The LUN there.  [default: 0:0, or as recorded]")
@click.option("--of", metavar="TARGET:LUN", help="The recorded LUN whose commands are taken.")
@click.option(
    "--speed", type=_Speed(), default=1.0, help="Of the recorded pace; max: without pauses.  [1]"
)
@click.option(
    "--depth",
    type=click.IntRange(1, 128),
    default=32,
    show_default=True,
    help="Most commands at a time.",
)
@click.option("--writes", is_flag=True, help="Also what changes the disk. Its contents are lost.")
@click.option("--skip-writes", is_flag=True, help="Leave out what changes the disk.")
@click.option("--json", "as_json", is_flag=True, help="JSON instead of a table.")
def replay(
    file: str,
    lun: str | None,
    socket: str | None,
    at: str | None,
    of: str | None,
    speed: float | str,
    depth: int,
    writes: bool,
    skip_writes: bool,
    as_json: bool,
) -> None:
    """Repeat recorded commands against another LUN, and compare.

    FILE is what `vscsi-emu trace -w` wrote. Latencies are the driver's here, the device's there:
    a few microseconds more. Data that was not captured is written as zeros. What reads gave is
    compared where it was captured; with a depth above 1 commands may pass each other.

    \b
    Examples:
      vscsi-emu replay out.pcapng --lun null:1G --speed max --skip-writes
      vscsi-emu replay out.pcapng --lun copy.img --writes --speed 10
    """
    from vscsi_emu.backends.uri import SpecError, parse_address
    from vscsi_emu.capture.replay import Replay, compare, may_change
    from vscsi_emu.cli.captured import captured
    from vscsi_emu.control.schema import to_json

    if (lun is None) == (socket is None):
        raise click.UsageError("give one of --lun and --socket")
    if writes and skip_writes:
        raise click.UsageError("give one of --writes and --skip-writes")
    commands = captured(file, of)
    luns = sorted({command.address for command in commands})
    if len(luns) > 1:
        raise click.UsageError(f"{file} has commands of {', '.join(luns)}; choose one by --of")
    changing = sum(map(may_change, commands))
    if changing and not writes and not skip_writes:
        raise click.UsageError(
            f"{changing} of {len(commands)} commands may change the disk; add --writes, or "
            "--skip-writes to leave them out"
        )
    chosen = [command for command in commands if writes or not may_change(command)]
    try:
        address = parse_address(at or ("0:0" if lun else luns[0]))
    except SpecError as error:
        raise click.UsageError(str(error)) from None
    with _driver(lun, socket, address) as driver:
        pace = None if isinstance(speed, str) else speed
        run = Replay(driver, *address, speed=pace, depth=depth)
        try:
            compared = compare(run.run(chosen))
        except (TimeoutError, ValueError, RuntimeError) as error:
            raise click.ClickException(str(error)) from None
    if as_json:
        result = {
            "skipped": len(commands) - len(chosen),
            "without_data": run.without_data,
            "data": to_json(run.data.found),
            "commands": to_json(compared),
        }
        click.echo(json.dumps(result))
        return
    _show(compared)
    _show_data(run.data.found)
    if len(commands) > len(chosen):
        click.echo(f"{len(commands) - len(chosen)} commands that may change the disk were left out")
    if run.without_data:
        click.echo(f"{run.without_data} commands wrote zeros: their data was not captured whole")


@contextmanager
def _driver(lun: str | None, socket: str | None, address: tuple[int, int]) -> Iterator[VirtioScsi]:
    from vscsi_emu import _dataplane
    from vscsi_emu.config import ConfigError, from_arguments
    from vscsi_emu.driver.dma import DmaAllocator
    from vscsi_emu.driver.front_end import FrontEnd
    from vscsi_emu.driver.mmio import VirtioMmioBus
    from vscsi_emu.driver.vhost_user import VhostUserBus
    from vscsi_emu.driver.virtio_scsi import ProbeError, VirtioScsi
    from vscsi_emu.inprocess import InProcess
    from vscsi_emu.service import StartError
    from vscsi_emu.virtio.mmio_registers import MODERN

    memory = _dataplane.GuestMemory.anonymous(_RAM, _BASE)
    allocator = DmaAllocator(_BASE, _RAM)
    try:
        if lun is not None:
            target, number = address
            config = from_arguments([f"{target}:{number}={lun}"])
            with InProcess(config, memory=memory) as machine:
                [slot] = machine.slots
                with VirtioMmioBus(slot, slot.base, allocator, MODERN) as bus:
                    yield VirtioScsi(bus, timeout=60.0)
        else:
            assert socket is not None
            front_end = FrontEnd.connect(socket, timeout=10.0)
            with VhostUserBus(front_end, memory, allocator) as bus:
                yield VirtioScsi(bus, timeout=60.0)
    except (ConfigError, StartError, ProbeError) as error:
        raise click.ClickException(str(error)) from None
    except OSError as error:
        raise click.ClickException(f"{socket or lun}: {error.strerror or error}") from None


def _show_data(found: DataComparison) -> None:
    if not found.compared:
        return
    if not found.different:
        click.echo(f"{found.compared} blocks were read as recorded")
        return
    count = sum(blocks.count for blocks in found.different)
    rows = ", ".join(map(str, found.different[:_SHOWN]))
    more = f" and {len(found.different) - _SHOWN} more rows" * (len(found.different) > _SHOWN)
    click.echo(f"{count} blocks were read with other data than recorded: LBA {rows}{more}")


def _show(compared: list[Comparison]) -> None:
    from rich.table import Table

    from vscsi_emu.cli.top import show_latency

    table = Table("command", box=None, header_style="bold", pad_edge=False)
    for column in ("count", "p50 then", "now", "p99 then", "now"):
        table.add_column(column, justify="right")
    for row in compared:
        latencies = (row.recorded_p50, row.replayed_p50, row.recorded_p99, row.replayed_p99)
        table.add_row(row.name, str(row.commands), *map(show_latency, latencies))
    table_console().print(table)
    for row in compared:
        for what, count in row.different.items():
            click.echo(f"{row.name}: {count} x {what}")
