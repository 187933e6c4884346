"""vscsi-emu: a virtio-scsi HBA in user space.

with Hba("mem:64M", socket="/tmp/hba.sock") as hba:
    print(hba.how_to_attach())
"""

from __future__ import annotations

from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

__all__ = [
    "AsyncHba",
    "Config",
    "Device",
    "Hba",
    "ScsiError",
    "Service",
    "Storage",
    "from_arguments",
    "from_file",
]

if TYPE_CHECKING:
    from vscsi_emu.api import AsyncHba, Hba
    from vscsi_emu.backends.storage import Storage
    from vscsi_emu.config import Config, from_arguments, from_file
    from vscsi_emu.scsi.device import Device
    from vscsi_emu.scsi.sense import ScsiError
    from vscsi_emu.service import Service
else:
    # On first use: the command line must not pay for what it does not need.
    _HOMES: Final = MappingProxyType(
        {
            "AsyncHba": "vscsi_emu.api",
            "Config": "vscsi_emu.config",
            "Device": "vscsi_emu.scsi.device",
            "Hba": "vscsi_emu.api",
            "ScsiError": "vscsi_emu.scsi.sense",
            "Service": "vscsi_emu.service",
            "Storage": "vscsi_emu.backends.storage",
            "from_arguments": "vscsi_emu.config",
            "from_file": "vscsi_emu.config",
        }
    )

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(_HOMES[name]), name)
