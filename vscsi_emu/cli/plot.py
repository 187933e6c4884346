"""``vscsi-emu plot``."""

from __future__ import annotations

import click


@click.command()
@click.argument("file")
@click.option("-o", "--output", required=True, metavar="IMAGE", help="A .png, .svg or .pdf.")
@click.option("--lun", metavar="TARGET:LUN", help="Only this one's commands.")
def plot(file: str, output: str, lun: str | None) -> None:
    """Draw latency over time, and which LBAs were used when.

    FILE is what `vscsi-emu trace -w` wrote. Needs matplotlib: pip install 'vscsi-emu[plot]'.
    """
    from vscsi_emu.capture.plot import draw
    from vscsi_emu.cli.captured import captured

    commands = captured(file, lun)
    try:
        draw(commands, output, title=f"{file}: {len(commands)} commands")
    except ImportError:
        raise click.ClickException(
            "matplotlib is not installed; pip install 'vscsi-emu[plot]'"
        ) from None
    except ValueError as error:
        raise click.ClickException(f"{output}: {error}") from None
    except OSError as error:
        raise click.ClickException(f"{output}: {error.strerror or error}") from None
