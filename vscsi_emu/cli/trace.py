"""``vscsi-emu trace``."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from vscsi_emu.cli.monitor import monitor_client, monitor_option

if TYPE_CHECKING:
    from vscsi_emu.control.trace import TracedCommand

_LOOK_SECONDS = 0.2


@click.command()
@monitor_option
@click.option("--lun", multiple=True, metavar="LUN", help="TARGET:LUN or an id; repeats.")
@click.option("--hba", metavar="HBA", help="Where there are several: socket or number.")
@click.option(
    "--opcode", multiple=True, metavar="COMMAND", help="As in READ(10), read or 0x28; repeats."
)
@click.option("--errors", is_flag=True, help="Only commands that do not end with GOOD.")
@click.option(
    "--min-latency", type=float, default=0.0, metavar="MS", help="Only those that take so long."
)
@click.option("--data", type=int, metavar="BYTES", help="First bytes of data to keep of each.")
@click.option("-w", "--write", "path", metavar="FILE", help="Write pcapng instead of printing.")
@click.option("-c", "--count", type=click.IntRange(min=1), help="End after so many commands.")
@click.option("--duration", type=float, metavar="SECONDS", help="End after so long.")
@click.option("--json", "as_json", is_flag=True, help="A line of JSON for each command.")
def trace(
    monitor: str,
    lun: tuple[str, ...],
    hba: str | None,
    opcode: tuple[str, ...],
    errors: bool,
    min_latency: float,
    data: int | None,
    path: str | None,
    count: int | None,
    duration: float | None,
    as_json: bool,
) -> None:
    """Print a running server's commands as they end, or write them for Wireshark.

    A line has the time of day, HBA, LUN, the command with its fields, status and sense, data moved,
    and how long it took. A file has 64 KiB of the data of each command unless --data says less.

    \b
    Examples:
      vscsi-emu trace --monitor /tmp/m --opcode write --min-latency 10
      vscsi-emu trace --monitor /tmp/m --errors
      vscsi-emu trace --monitor /tmp/m -w out.pcapng && wireshark out.pcapng
    """
    from vscsi_emu.control.trace import MAX_DATA

    if data is None:
        data = MAX_DATA if path else 0
    left = count
    end = None if duration is None else time.monotonic() + duration
    with _output(path, as_json) as show, monitor_client(monitor) as client:
        client.trace_start(
            lun=list(lun) or None,
            hba=hba,
            opcode=list(opcode) or None,
            errors=errors,
            min_latency=min_latency / 1000,
            data_bytes=data,
        )
        while left != 0 and (end is None or time.monotonic() < end):
            found = client.next_trace(_LOOK_SECONDS)
            if found is None:
                continue
            commands, lost = found
            show(commands[:left])
            left = None if left is None else left - len(commands[:left])
            if lost:
                click.echo(f"{lost} commands were lost: too many in too short a time", err=True)


@contextmanager
def _output(path: str | None, as_json: bool) -> Iterator[Callable[[list[TracedCommand]], None]]:
    """What commands are given to."""
    if path is None:
        yield _print_json if as_json else _print
        return
    from vscsi_emu.capture import CaptureWriter

    try:
        with open(path, "wb") as file:
            yield CaptureWriter(file).write
    except OSError as error:
        raise click.ClickException(f"{path}: {error.strerror or error}") from None


def _print(commands: list[TracedCommand]) -> None:
    for command in commands:
        seconds, rest = divmod(command.time, 1_000_000_000)
        clock = time.strftime("%H:%M:%S", time.localtime(seconds))
        click.echo(f"{clock}.{rest // 1000:06d} {command.hba} {command}")


def _print_json(commands: list[TracedCommand]) -> None:
    from vscsi_emu.control.schema import to_json

    for command in commands:
        click.echo(json.dumps(to_json(command)))
