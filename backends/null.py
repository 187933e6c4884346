"""``null:SIZE``: reads zeros, forgets writes; measures everything but storage."""

from __future__ import annotations

from vscsi_emu import _dataplane
from vscsi_emu.backends.mem import SizedBackend, sized
from vscsi_emu.backends.uri import LunSpec


class NullBackend(SizedBackend):
    """No storage at all."""

    def __init__(self, spec: LunSpec, name: str) -> None:
        super().__init__(spec, f"{spec}#{name}")
        self.engine = _dataplane.Engine.null(sized(self))
