"""``vscsi-emu devicetree``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vscsi_emu.cli.number import NUMBER

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vscsi_emu.transport.describe import MmioInstance


@click.command()
@click.option("--base", type=NUMBER, default="0x0a000000", show_default=True)
@click.option("--size", type=NUMBER, default="0x200", show_default=True, help="Of each, in bytes.")
@click.option(
    "--irq",
    type=NUMBER,
    default="16",
    show_default=True,
    help="Shared peripheral interrupt of the first; with cmdline, as the kernel counts.",
)
@click.option("--count", type=click.IntRange(min=1), default=1, show_default=True)
@click.option(
    "--dma-coherent/--no-dma-coherent",
    default=True,
    show_default=True,
    help="Whether the guest may rely on the device seeing its caches. Emulated ones do.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["dts", "dtb", "overlay", "cmdline"]),
    default="dts",
    show_default=True,
)
@click.option(
    "--interrupt-parent",
    metavar="LABEL",
    default="gic",
    show_default=True,
    help="With overlay: the interrupt controller's label in your tree.",
)
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Default: stdout."
)
def devicetree(
    base: int,
    size: int,
    irq: int,
    count: int,
    dma_coherent: bool,
    form: str,
    interrupt_parent: str,
    output: Path | None,
) -> None:
    """Describe virtio-mmio devices to a guest.

    \b
    dts      a tree with an Arm GIC and the devices, as source
    dtb      the same, flattened
    overlay  the devices alone, for fdtoverlay
    cmdline  what goes on Linux's command line
    """
    from vscsi_emu.transport.describe import MmioInstance, consecutive

    try:
        instances = consecutive(MmioInstance(base, irq, size, dma_coherent), count)
        data = _describe(instances, form, interrupt_parent)
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    if output is None:
        if form in ("dtb", "overlay") and sys.stdout.isatty():
            raise click.UsageError(f"{form} is binary; write it to a file with -o")
        click.echo(data, nl=False)
    else:
        try:
            output.write_bytes(data)
        except OSError as error:
            raise click.FileError(str(output), error.strerror or str(error)) from None


def _describe(instances: Sequence[MmioInstance], form: str, interrupt_parent: str) -> bytes:
    from vscsi_emu.transport.describe import kernel_parameters, overlay, tree

    match form:
        case "dts":
            return str(tree(instances).to_dts()).encode()
        case "dtb":
            return bytes(tree(instances).to_dtb())
        case "overlay":
            return bytes(overlay(instances, interrupt_parent=interrupt_parent).to_dtb())
        case _:
            return f"{kernel_parameters(instances)}\n".encode()
