"""QEMU's qtest protocol: registers and guest memory of our HBA for another process."""

from vscsi_emu.transport.qtest.address_space import AddressSpace
from vscsi_emu.transport.qtest.commands import Commands
from vscsi_emu.transport.qtest.server import QtestServer

__all__ = ["AddressSpace", "Commands", "QtestServer"]
