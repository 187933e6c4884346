"""Space that ``thin=`` bounds: of one unit, or a pool that several share by name."""

from __future__ import annotations

import hashlib
from typing import Final
from weakref import WeakValueDictionary

from vscsi_emu import _dataplane
from vscsi_emu.backends.uri import LunSpec, SpecError
from vscsi_emu.scsi.provisioning import SOFT_THRESHOLD, ThinSpace

_pools: Final[WeakValueDictionary[str, _dataplane.Space]] = WeakValueDictionary()
"""Of this process, each as long as a unit uses it."""


def thin_space(spec: LunSpec) -> ThinSpace | None:
    """What `spec` asks for. Raises `SpecError`."""
    if spec.thin is None:
        if spec.pool is not None:
            raise SpecError(f"{spec}: pool {spec.pool!r} needs its size; add thin=SIZE")
        if spec.soft_threshold is not None:
            raise SpecError(f"{spec}: soft-threshold needs a space to be a part of; add thin=SIZE")
        return None
    soft_threshold = spec.soft_threshold or SOFT_THRESHOLD
    if spec.pool is None:
        return ThinSpace(_dataplane.Space(spec.thin), soft_threshold=soft_threshold)
    return ThinSpace(_pool(spec, spec.pool, spec.thin), _naa(spec.pool), soft_threshold)


def _pool(spec: LunSpec, name: str, size: int) -> _dataplane.Space:
    pool = _pools.get(name)
    if pool is None:
        pool = _pools[name] = _dataplane.Space(size)
    if pool.limit != size:
        raise SpecError(
            f"{spec}: pool {name!r} has {pool.limit} bytes already; give each of its units the "
            "same thin="
        )
    return pool


def _naa(pool: str) -> bytes:
    """A locally assigned name (SPC-6 7.7.6.6.4), the same at every start."""
    digest = hashlib.sha256(f"pool {pool}".encode()).digest()
    return bytes([0x30 | digest[0] & 0xF]) + digest[1:8]
