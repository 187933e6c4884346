"""``vscsi-emu serve``."""

from __future__ import annotations

import json
import logging
from functools import partial
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from vscsi_emu.service import Beside

CAPABILITIES = {"type": "scsi"}
"""VHostUserBackendCapabilities of QEMU's docs/interop/vhost-user.json."""

_LEVELS = (logging.ERROR, logging.WARNING, logging.INFO, logging.DEBUG)


class _BackendProgram(click.Command):
    """Follows the conventions for vhost-user back-end programs."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # It ignores all other options and arguments, wrong ones too.
        if "--print-capabilities" in args:
            click.echo(json.dumps(CAPABILITIES))
            ctx.exit()
        return super().parse_args(ctx, args)


@click.command(cls=_BackendProgram, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--socket-path", metavar="PATH", help="Listen on this Unix socket.")
@click.option("--fd", type=int, metavar="FDNUM", help="Use this open socket instead.")
@click.option("--config", metavar="FILE", help="Serve what this hba.toml says instead.")
@click.option(
    "--lun", "luns", multiple=True, metavar="[TARGET:LUN=]URI[,KEY=VALUE…]", help="A disk; repeats."
)
@click.option("--queues", type=int, show_default="1", help="Request queues; one a guest CPU.")
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Threads that do the work.  [default: one a queue, at most one a host CPU]",
)
@click.option(
    "--io-uring/--no-io-uring", default=True, show_default=True, help="Off: use a thread pool."
)
@click.option(
    "--in-band",
    is_flag=True,
    help="Offer in-band notifications: for User-Mode Linux in time-travel mode, slower otherwise.",
)
@click.option(
    "--access-platform",
    is_flag=True,
    help="Offer ACCESS_PLATFORM: for front ends that answer IOTLB misses (QEMU's iommu_platform).",
)
@click.option("--max-sectors", type=int, help="Longest request, in 512 bytes: less than by itself.")
@click.option("--seg-max", type=int, help="Most segments of a request, likewise.")
@click.option("--cmd-per-lun", type=int, help="Most commands in flight of a disk, likewise.")
@click.option(
    "--passthrough",
    type=click.Choice(["safe", "readonly", "all"]),
    help="Which commands pass to host devices, where their keys do not say.  [default: safe]",
)
@click.option("--force", is_flag=True, help="Serve host devices although the host uses them.")
@click.option("--monitor", metavar="PATH", help="Listen there for `vscsi-emu ctl`.")
@click.option("--metrics", metavar="[HOST:]PORT", help="Serve Prometheus's GET /metrics there.")
@click.option("--print-capabilities", is_flag=True, help="Print them as JSON and exit.")
@click.option("-v", "--verbose", count=True, help="Log every vhost-user message.")
@click.option("-q", "--quiet", count=True, help="Log warnings only; -qq: errors only.")
def serve(
    socket_path: str | None,
    fd: int | None,
    config: str | None,
    luns: tuple[str, ...],
    queues: int | None,
    workers: int | None,
    io_uring: bool,
    in_band: bool,
    access_platform: bool,
    max_sectors: int | None,
    seg_max: int | None,
    cmd_per_lun: int | None,
    passthrough: str | None,
    force: bool,
    monitor: str | None,
    metrics: str | None,
    print_capabilities: bool,
    verbose: int,
    quiet: int,
) -> None:
    """Serve disks as a virtio-scsi HBA, until SIGTERM.

    A URI is a path (or file:PATH) of a raw image or a block device, mem:SIZE for a RAM disk, or
    null:SIZE, which stores nothing; sg:DEVICE passes commands to a SCSI device of the host, named
    by its node, wwn-0x… or by-id/…. Write a comma in a path twice. A disk without TARGET:LUN
    becomes LUN 0 of the first target that has none.

    \b
    Keys:
      ro                          write-protected
      block-size=512|4096         logical block size
      serial=, wwn=               unit serial number; NAA name, 16 hex digits
      vendor=, product=           INQUIRY names, up to 8 and 16 characters
      rotation-rate=              0 unknown, 1 solid state, else rpm
      discard=on|off              whether UNMAP frees space
      lbprz=on|off                say that unmapped blocks read as zeros: guests may then
                                  zero by unmapping
      cdb-32=on|off               READ, WRITE, VERIFY, WRITE SAME with 32-byte CDBs
      removable                   the medium can be ejected
      thin=SIZE                   space that its blocks may take; writes that need more fail
      pool=NAME                   units with this name share that space
      soft-threshold=PERCENT      of it in use at which guests are told, 80 by default
      physical-block-size=        a multiple of block-size
      cache=writeback|writethrough
                                  what the disk says of its write cache at first
      max-sectors=, seg-max=, cmd-per-lun=
                                  what guests are told at most of this disk, as the options
      queue-depth=                commands in the task set; more get TASK SET FULL
      iops=, bps=                 the most commands, and bytes, a second
      iops-burst=, bps-burst=     what may come at once after a pause
      volatile-cache              writes are lost by power.fail until they are flushed
      tear=                       bytes that survive it whole; a physical block by default
      direct=on|off               O_DIRECT (files only)
      passthrough=safe|readonly|all
                                  which commands pass (host devices only)
      force=on|off                serve a device that the host uses (host devices only)
      state=FILE                  keeps persistent reservations, and that SANITIZE failed, over
                                  restarts; beside an image, IMAGE.state by default

    \b
    Examples:
      vscsi-emu serve --socket-path /tmp/hba.sock --lun disk.img
      vscsi-emu serve --socket-path /tmp/hba.sock --queues 4 \\
          --lun disk.img,ro --lun 3:2=mem:256M,block-size=4096
      vscsi-emu serve --config hba.toml

    \b
    hba.toml says the same, for any number of HBAs:
      [[lun]]
      id = "root"
      uri = "disk.img"
      block-size = 4096
      [[hba]]
      socket = "/tmp/hba.sock"
      queues = 4
      luns = {"0:0" = "root"}
    """
    from vscsi_emu.config import ConfigError, from_arguments, from_file
    from vscsi_emu.service import StartError, run

    level = _LEVELS[max(0, min(2 + verbose - quiet, len(_LEVELS) - 1))]
    logging.basicConfig(level=level, format="vscsi-emu: %(message)s")
    ways = {"--socket-path": socket_path, "--fd": fd, "--config": config}
    given = [name for name, value in ways.items() if value is not None]
    if len(given) != 1:
        raise click.UsageError(
            f"{' and '.join(given) or 'nothing'} given; give one of {', '.join(ways)}"
        )
    limits = {"max-sectors": max_sectors, "seg-max": seg_max, "cmd-per-lun": cmd_per_lun}
    caps = {name: cap for name, cap in limits.items() if cap is not None}
    try:
        if config is not None:
            theirs = luns or queues is not None or in_band or access_platform or caps
            if theirs or passthrough is not None or force:
                raise click.UsageError(
                    "--lun, --queues, --in-band, --access-platform, limits, --passthrough and "
                    "--force go into the file of --config"
                )
            wanted = from_file(config)
        elif not luns and monitor is None:
            raise click.UsageError("no disk given; add for example --lun mem:64M")
        else:
            wanted = from_arguments(
                luns,
                socket=socket_path,
                fd=fd,
                queues=1 if queues is None else queues,
                in_band=in_band,
                access_platform=access_platform,
                caps=caps,
                passthrough=passthrough,
                force=force,
            )
        run(wanted, workers=workers, io_uring=io_uring, beside=_beside(monitor, metrics))
    except (ConfigError, StartError) as error:
        raise click.ClickException(str(error)) from None


def _beside(monitor: str | None, metrics: str | None) -> list[Beside]:
    found: list[Beside] = []
    if monitor is not None:
        from vscsi_emu.control.server import Monitor

        found.append(partial(Monitor, path=monitor))
    if metrics is not None:
        from vscsi_emu.control.metrics import Metrics

        found.append(partial(Metrics, address=metrics))
    return found
