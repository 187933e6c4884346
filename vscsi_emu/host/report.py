"""Findings as JSON can hold them."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vscsi_emu.host.devices import ScsiDevice
    from vscsi_emu.host.limits import Limit
    from vscsi_emu.host.monitor import Change
    from vscsi_emu.host.probe import Probe
    from vscsi_emu.host.use import Use


def device(found: ScsiDevice) -> dict[str, Any]:
    """A device without its uses. Sizes in bytes."""
    return {
        "address": str(found.address),
        "sg": _text(found.sg),
        "block": _text(found.block),
        "bsg": _text(found.bsg),
        "other_nodes": [str(node) for node in found.other_nodes],
        "type": found.type_name,
        "vendor": found.vendor,
        "model": found.model,
        "revision": found.revision,
        "serial": found.serial,
        "wwn": found.wwn,
        "wwid": found.wwid,
        "transport": found.transport,
        "state": found.state,
        "size": found.size,
        "block_size": found.block_size,
    }


def device_in_use(found: ScsiDevice, use: Use) -> dict[str, Any]:
    """A device and who uses it."""
    return {**device(found), "use": {**asdict(use), "taken": use.taken}}


def change(seen: Change) -> dict[str, Any]:
    """A change: the device and what is new about it."""
    return {
        "event": seen.kind,
        "changed": list(seen.changed),
        "attention": seen.attention,
        "device": device(seen.device),
    }


def probe(found: Probe) -> dict[str, Any]:
    """A probe. The page in hexadecimal, CDBs and segments in bytes, timeout in seconds."""
    return {
        "device": device_in_use(found.device, found.use),
        "limits": {limit.name: _limit(limit) for limit in found.limits},
        "way": None if found.way is None else {**asdict(found.way), "node": str(found.way.node)},
        "access": None if found.access is None else asdict(found.access),
        "config": asdict(found.config),
        "block_limits": None if found.block_limits is None else found.block_limits.hex(),
        "qemu": found.qemu_device,
    }


def _limit(limit: Limit) -> dict[str, Any]:
    return {
        "value": limit.value,
        "source": limit.source,
        "candidates": [asdict(candidate) for candidate in limit.candidates],
    }


def _text(value: object) -> str | None:
    return None if value is None else str(value)
