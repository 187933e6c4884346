"""``vscsi-emu qtest``."""

from __future__ import annotations

import logging

import click

from vscsi_emu.cli.number import NUMBER


@click.command()
@click.option("--socket", "path", metavar="PATH", required=True, help="Unix socket of the client.")
@click.option("--connect", is_flag=True, help="The client listens there, as QEMU's own tests do.")
@click.option("--legacy", is_flag=True, help="Registers of version 1 instead of 2.")
@click.option(
    "--base", type=NUMBER, default="0xfeb00e00", show_default=True, help="Address of registers."
)
@click.option("--irq", type=NUMBER, default="23", show_default=True, help="Interrupt line.")
@click.option(
    "--memory", metavar="SIZE", default="64M", show_default=True, help="RAM, from address 0."
)
@click.option(
    "--lun", "luns", multiple=True, metavar="[TARGET:LUN=]URI[,KEY=VALUE…]", help="A disk; repeats."
)
@click.option("--queues", type=int, default=1, show_default=True, help="Request queues.")
@click.option("-q", "--quiet", is_flag=True, help="Log warnings only.")
def qtest(
    path: str,
    connect: bool,
    legacy: bool,
    base: int,
    irq: int,
    memory: str,
    luns: tuple[str, ...],
    queues: int,
    quiet: bool,
) -> None:
    """Serve an HBA's virtio-mmio registers, and guest memory, in QEMU's qtest protocol.

    Another process plays the CPU: by text lines it loads and stores at physical addresses and
    hears of the interrupt line. Disks are given as to `vscsi-emu serve`.

    \b
    Example:
      vscsi-emu qtest --socket /tmp/qtest.sock --lun mem:64M &
      echo 'readl 0xfeb00e00' | socat - UNIX-CONNECT:/tmp/qtest.sock
    """
    from vscsi_emu.backends.uri import SpecError, parse_size
    from vscsi_emu.config import ConfigError, from_arguments
    from vscsi_emu.qtest import run
    from vscsi_emu.service import StartError
    from vscsi_emu.virtio.mmio_registers import LEGACY, MODERN

    logging.basicConfig(
        level=logging.WARNING if quiet else logging.INFO, format="vscsi-emu: %(message)s"
    )
    if not luns:
        raise click.UsageError("no disk given; add for example --lun mem:64M")
    if irq < 0:
        raise click.UsageError(f"--irq {irq}: lines are counted from 0")
    try:
        size = parse_size(memory)
    except SpecError as error:
        raise click.UsageError(f"--memory {memory}: {error}") from None
    try:
        run(
            from_arguments(luns, queues=queues),
            path,
            connect=connect,
            version=LEGACY if legacy else MODERN,
            base=base,
            irq=irq,
            memory=size,
        )
    except (ConfigError, StartError) as error:
        raise click.ClickException(str(error)) from None
