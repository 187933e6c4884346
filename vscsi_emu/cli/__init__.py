"""The command line. Each command is imported when it is asked for, as `serve` must start fast."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import click

COMMANDS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "serve": "vscsi_emu.cli.serve",
        "ctl": "vscsi_emu.cli.ctl",
        "top": "vscsi_emu.cli.top",
        "trace": "vscsi_emu.cli.trace",
        "replay": "vscsi_emu.cli.replay",
        "plot": "vscsi_emu.cli.plot",
        "demo": "vscsi_emu.cli.demo",
        "qtest": "vscsi_emu.cli.qtest",
        "devicetree": "vscsi_emu.cli.devicetree",
        "devices": "vscsi_emu.cli.devices",
        "probe": "vscsi_emu.cli.probe",
    }
)
"""Command → the module that holds a click command of that name."""


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return load(cmd_name) if cmd_name in COMMANDS else None


def load(name: str) -> click.Command:
    """The command called `name`."""
    command = getattr(importlib.import_module(COMMANDS[name]), name)
    assert isinstance(command, click.Command)
    return command


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="vscsi-emu", prog_name="vscsi-emu")
def main() -> None:
    """A virtio-scsi HBA in user space.

    Serves disks to a virtual machine over a vhost-user socket; try it with

    \b
        vscsi-emu demo
        vscsi-emu serve --socket-path /tmp/hba.sock --lun disk.img
    """


def vhost_user() -> None:
    """``vscsi-emu-vhost-user``: `serve` as a vhost-user back-end program for management tools."""
    load("serve").main(prog_name="vscsi-emu-vhost-user")
