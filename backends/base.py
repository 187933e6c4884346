"""What every backend is."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from vscsi_emu.backends.space import thin_space
from vscsi_emu.backends.uri import LunSpec, SpecError

if TYPE_CHECKING:
    from vscsi_emu._dataplane import Engine
    from vscsi_emu.scsi.provisioning import ThinSpace


class BackendError(Exception):
    """Storage that cannot be opened; one line that names it and the fix."""


class Backend:
    """Storage behind one logical unit. A subclass sets `engine` and `name` when it opens."""

    KEYS: ClassVar[Mapping[str, str]] = {}
    """Keys of this scheme only, each with a line of help."""

    engine: Engine
    name: str
    """What the default identity is derived from: the same at every start, unique to the data."""
    thin: ThinSpace | None = None
    """What bounds the space that `engine` takes."""
    block_size: int = 512
    """Logical block length in bytes."""
    rotation_rate: int = 1
    """MEDIUM ROTATION RATE when the user names none: 1 is a solid state medium (SBC-4 6.6.2)."""

    def __init__(self, spec: LunSpec, name: str) -> None:
        self.spec = spec
        self.name = name
        if spec.block_size is not None:
            self.block_size = spec.block_size
        if spec.rotation_rate is not None:
            self.rotation_rate = spec.rotation_rate

    @property
    def blocks(self) -> int:
        return self.engine.size // self.block_size

    @property
    def physical_block_exponent(self) -> int:
        """A physical block has two to the power of this logical ones."""
        return ((self.spec.physical_block_size or 0) // self.block_size or 1).bit_length() - 1

    @property
    def naa(self) -> str:
        """16 hex digits: the NAA name given, or a locally assigned one (SPC-6)."""
        return self.spec.naa or "3" + hashlib.sha256(self.name.encode()).hexdigest()[:15]

    @property
    def serial(self) -> str:
        return self.spec.serial or self.naa

    @property
    def state_path(self) -> str | None:
        """Path of the file that keeps the unit's state over restarts; None: it is forgotten."""
        return self.spec.state

    def limit(self, name: str) -> tuple[int, str] | None:
        """What the host gives for a field of the configuration space, and where it says so."""
        return None

    def limit_space(self) -> None:
        """Once `engine` is open: obeys `thin=`. Raises `SpecError` where that cannot be."""
        self.thin = thin_space(self.spec)
        if self.thin is None:
            return
        if not (self.spec.discard and self.engine.can_discard):
            raise SpecError(f"{self.spec}: thin= needs space that can be freed; leave it out here")
        self.engine = self.engine.thin(self.thin.space)

    @property
    def writable(self) -> bool:
        """Whether it was opened such that a unit may be set to writable."""
        return True

    @property
    def resizable(self) -> bool:
        """Whether `set_size` may work."""
        return False

    def set_size(self, size: int) -> None:
        """Makes what holds the bytes `size` bytes long, apart from `engine.size`: before that if it
        grows, after it if it shrinks. Blocks. `BackendError` where that is not possible."""
        raise BackendError(f"{self.spec} cannot be resized")

    def located(self, size: int) -> str:
        """`LunSpec.location` of the same storage with `size` bytes."""
        return self.spec.location

    def flush(self) -> None:
        """Makes everything written durable. Blocks: call it off the event loop."""

    def close(self) -> None:
        """Gives the storage back. After the last I/O."""

    def check_size(self, size: int, fix: str) -> None:
        """Raises `SpecError` unless `size` bytes are whole blocks, at least one."""
        if not size:
            raise SpecError(f"{self.spec} is empty; {fix}")
        physical = self.spec.physical_block_size
        if physical is not None and physical < self.block_size:
            raise SpecError(
                f"{self.spec}: physical-block-size {physical} is below the block size "
                f"{self.block_size}"
            )
        if size % self.block_size:
            raise SpecError(
                f"{self.spec}: {size} bytes are not a multiple of the block size "
                f"{self.block_size}; {fix}"
            )
