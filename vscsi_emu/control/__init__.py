"""Control while it runs: the monitor, its methods, and clients.

with Client("/tmp/monitor.sock") as monitor:
    monitor.lun_add(luns=["0:1=mem:64M"])
    monitor.lun_resize(lun="0:1", size="128M")
"""

from __future__ import annotations

from vscsi_emu.control.client import AsyncClient, Client
from vscsi_emu.control.rpc import RpcError

__all__ = ["AsyncClient", "Client", "RpcError"]
