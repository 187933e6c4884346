"""What commands share that read a file of ``vscsi-emu trace -w``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from vscsi_emu.control.trace import TracedCommand


def captured(path: str, lun: str | None) -> list[TracedCommand]:
    """Its commands, of one LUN or of all."""
    from vscsi_emu.capture import CaptureError, read

    try:
        commands = read(path)
    except CaptureError as error:
        raise click.ClickException(str(error)) from None
    except OSError as error:
        raise click.ClickException(f"{path}: {error.strerror or error}") from None
    chosen = [command for command in commands if lun in (None, command.address)]
    if not chosen:
        seen = ", ".join(sorted({command.address for command in commands}))
        of = f" of LUN {lun}; it has those of {seen}" if commands else ""
        raise click.ClickException(f"{path} has no commands{of}")
    return chosen
