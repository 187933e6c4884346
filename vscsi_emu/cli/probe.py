"""``vscsi-emu probe``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console

    from vscsi_emu.host.probe import Probe

_UNITS = {
    "max_sectors": "of 512 bytes",
    "max_segment_size": "bytes",
    "dma_alignment": "mask",
    "virt_boundary_mask": "mask",
    "cdb_length": "bytes",
    "timeout": "s",
}


@click.command()
@click.argument("device")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def probe(device: str, as_json: bool) -> None:
    """Show what limits a guest of DEVICE, where each limit comes from, and what it is told.

    DEVICE is /dev/sgN, /dev/sdX, /dev/bsg/H:C:T:L, H:C:T:L, wwn-0x… or by-id/….
    """
    from vscsi_emu.host import report
    from vscsi_emu.host.errors import HostError
    from vscsi_emu.host.find import find
    from vscsi_emu.host.probe import probe as look

    try:
        found = look(find(device))
    except HostError as error:
        raise click.ClickException(str(error)) from None
    if as_json:
        click.echo(json.dumps(report.probe(found), indent=2))
    else:
        _print(found)


def _print(found: Probe) -> None:
    from rich.console import Console

    from vscsi_emu.cli.devices import size_text

    console = Console(soft_wrap=True, highlight=False, markup=False)
    device = found.device
    console.print(
        f"{device}  {device.address}  {device.type_name}  {device.vendor} {device.model} "
        f"{device.revision}  {device.wwn or '-'}  {size_text(device.size)}  via {device.transport}"
    )
    console.print(f"in use   {str(found.use) or 'no'}")
    if found.way is None:
        console.print("way      none: no node leads to it; is a driver bound? (modprobe sg)")
    else:
        console.print(f"way      {found.way.interface} {found.way.node}: {found.way.reason}")
    for missing in found.access.missing if found.access else ():
        console.print(f"missing  {missing}")
    console.print()
    _print_limits(console, found)
    space = found.config
    console.print(
        f"\nconfig space   max_sectors {space.max_sectors}  seg_max {space.seg_max}  "
        f"cmd_per_lun {space.cmd_per_lun}"
    )
    if found.block_limits is not None:
        console.print("Block Limits   as a guest reads the VPD page")
        for start in range(0, len(found.block_limits), 16):
            row = found.block_limits[start : start + 16]
            console.print(f"    {start:02x}  {row.hex(' ')}")
    console.print(f"QEMU           {found.qemu_device}")


def _print_limits(console: Console, found: Probe) -> None:
    """Every candidate beside its limit, the one that won marked."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    table.add_column("limit")
    table.add_column("value", justify="right")
    table.add_column("from")
    for limit in found.limits:
        unit = _UNITS.get(limit.name, "")
        for position, candidate in enumerate(limit.candidates):
            won = candidate.source == limit.source
            mark = "←" if won else "" if candidate.binds else "(does not bind)"
            table.add_row(
                Text(f"{limit.name} {unit}".strip() if not position else ""),
                Text(str(candidate.value)),
                Text(f"{candidate.source} {mark}".rstrip(), style="bold" if won else ""),
            )
    console.print(table)
