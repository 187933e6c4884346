"""``vscsi-emu demo``."""

from __future__ import annotations

import click


@click.command()
@click.option(
    "--guest",
    type=click.Choice(["uml", "qemu"]),
    default="uml",
    show_default=True,
    help="User-Mode Linux, or QEMU emulating a PC.",
)
def demo(guest: str) -> None:
    """Show an HBA at work: serve two disks, boot Linux against them, and use them.

    Needs no root and touches nothing but temporary files.
    """
    from rich.console import Console

    from vscsi_emu.testing import GuestError, ServerError
    from vscsi_emu.testing.demo import run

    try:
        run(guest, Console())
    except (GuestError, ServerError) as error:
        raise click.ClickException(
            "\n".join([str(error), *getattr(error, "__notes__", [])])
        ) from error
