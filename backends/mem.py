"""``mem:SIZE``: a RAM disk. Its contents end with the server."""

from __future__ import annotations

from vscsi_emu import _dataplane
from vscsi_emu.backends.base import Backend, BackendError
from vscsi_emu.backends.uri import LunSpec, SpecError, parse_size


class SizedBackend(Backend):
    """Storage that is nothing but its size."""

    @property
    def fixed(self) -> None:
        return None

    def set_size(self, size: int) -> None:
        pass  # the engine's is all there is

    def located(self, size: int) -> str:
        return str(size)


class MemBackend(SizedBackend):
    """Sparse anonymous memory."""

    def __init__(self, spec: LunSpec, name: str) -> None:
        super().__init__(spec, f"{spec}#{name}")
        size = sized(self)
        try:
            self.engine = _dataplane.Engine.memory(size)
        except (OSError, _dataplane.DataplaneError) as error:
            raise BackendError(f"{spec}: cannot have that much memory: {error}") from None


def sized(backend: Backend) -> int:
    """The size that the backend's location says, in whole blocks."""
    try:
        size = parse_size(backend.spec.location)
    except SpecError as error:
        raise SpecError(f"{backend.spec}: {error}") from None
    backend.check_size(size, f"name a multiple of {backend.block_size}")
    return size
