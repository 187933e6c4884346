"""For tests: a server, an HBA with disks, and real guests (User-Mode Linux, QEMU) that each run a
script. `vscsi_emu.testing.plugin` has the same as fixtures of pytest."""

from __future__ import annotations

from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from .errors import GuestError, GuestTimeout, GuestUnavailable, ServerError
    from .guest import GuestResult, GuestRun, LinuxGuest
    from .hba import HbaProcess
    from .lab import Lab, ScsiDisk
    from .qemu import QemuGuest
    from .uml import UmlGuest

__all__ = [
    "GuestError",
    "GuestResult",
    "GuestRun",
    "GuestTimeout",
    "GuestUnavailable",
    "HbaProcess",
    "Lab",
    "LinuxGuest",
    "QemuGuest",
    "ScsiDisk",
    "ServerError",
    "UmlGuest",
]

if not TYPE_CHECKING:
    # On first use: pytest imports the plugin for every project, most of which never need it.
    _HOMES: Final = MappingProxyType(
        {
            "GuestError": "errors",
            "GuestResult": "guest",
            "GuestRun": "guest",
            "GuestTimeout": "errors",
            "GuestUnavailable": "errors",
            "HbaProcess": "hba",
            "Lab": "lab",
            "LinuxGuest": "guest",
            "QemuGuest": "qemu",
            "ScsiDisk": "lab",
            "ServerError": "errors",
            "UmlGuest": "uml",
        }
    )

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
