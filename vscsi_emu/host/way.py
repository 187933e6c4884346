"""Which way commands go to a device."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vscsi_emu.host.devices import ScsiDevice

Interface = Literal["block", "sg", "bsg"]


@dataclass(frozen=True, slots=True)
class Way:
    """A node, and what its driver does with data."""

    interface: Interface
    node: Path
    reason: str


_MERITS: dict[Interface, str] = {
    "block": "SG_IO maps guest memory, nothing is copied; each command keeps a thread busy",
    "sg": "asynchronous, no thread waits; data are copied once",
    "bsg": "takes no list of segments: data are copied, each command keeps a thread busy",
}


def way(device: ScsiDevice) -> Way | None:
    """The best way that this process may go, or could go were it let: None without any node."""
    nodes: dict[Interface, Path | None] = {
        "block": device.block,
        "sg": device.sg,
        "bsg": device.bsg,
    }
    there = [(interface, node) for interface, node in nodes.items() if node is not None]
    if not there:
        return None
    usable = [(interface, node) for interface, node in there if permitted(node)]
    interface, node = (usable or there)[0]
    passed_over = [
        f"{better} may not be used" for _, better in there[: there.index((interface, node))]
    ]
    if interface != "block" and device.block is None:
        passed_over.insert(0, f"no block node ({device.type_name})")
    return Way(interface, node, "; ".join([*passed_over, _MERITS[interface]]))


def permitted(node: Path) -> bool:
    """Whether this process may read and write `node`, which must exist."""
    return os.access(node, os.R_OK | os.W_OK, effective_ids=True)
