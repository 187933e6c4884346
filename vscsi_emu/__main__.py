"""``python -m vscsi_emu``."""

from vscsi_emu.cli import main

main(prog_name="vscsi-emu")
