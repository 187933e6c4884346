"""``vscsi-emu demo``."""

from __future__ import annotations

import click


@click.command()
@click.option(
    "--guest",
    type=click.Choice(["uml", "qemu", "builtin"]),
    help="User-Mode Linux, QEMU emulating a PC, or our own driver in this process, which needs no "
    "kernel.  [default: uml; builtin where that is not installed]",
)
@click.option("-v", "--verbose", is_flag=True, help="builtin: show all that the guest does.")
def demo(guest: str | None, verbose: bool) -> None:
    """Show an HBA at work: serve disks, boot a guest against them, and use them.

    Needs no root and touches nothing but temporary files.
    """
    from rich.console import Console

    from vscsi_emu.testing import GuestError, ServerError
    from vscsi_emu.testing.initramfs import find_program

    console = Console()
    if guest is None:
        guest = "uml" if find_program("linux.uml") else "builtin"
    try:
        if guest == "builtin":
            from vscsi_emu.testing import builtin

            builtin.run(console, verbose=verbose)
        else:
            from vscsi_emu.testing.demo import run

            run(guest, console)
    except (GuestError, ServerError) as error:
        raise click.ClickException(
            "\n".join([str(error), *getattr(error, "__notes__", [])])
        ) from error
