"""What every backend is."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ClassVar, Final, Protocol

from vscsi_emu import _dataplane
from vscsi_emu.backends.space import thin_space
from vscsi_emu.backends.uri import LunSpec, SpecError

if TYPE_CHECKING:
    from vscsi_emu._dataplane import Engine, Inbox, Transfer, VolatileCache
    from vscsi_emu.scsi.device import Device
    from vscsi_emu.scsi.provisioning import ThinSpace

CACHE_SIZE: Final = 64 << 20
"""Bytes of memory that a volatile cache takes."""


class BackendError(Exception):
    """Storage that cannot be opened; one line that names it and the fix."""


class Owner(Protocol):
    """What a backend that Python answers for is served by."""

    @property
    def inbox(self) -> Inbox: ...
    def add_engine(self, handler: Callable[[Transfer], None]) -> int:
        """A token for `Engine.python`; `handler` gets each of its calls, and must not block."""

    def remove_engine(self, token: int) -> None:
        """Calls that come all the same fail."""


class Backend:
    """Storage behind one logical unit. A subclass sets `name` when it opens, and `engine` then or
    in `start`."""

    KEYS: ClassVar[Mapping[str, str]] = {}
    """Keys of this scheme only, each with a line of help."""

    engine: Engine
    python_device: Device | None = None
    """Where it is no disk; `engine` is not used then."""
    name: str
    """What the default identity is derived from: the same at every start, unique to the data."""
    thin: ThinSpace | None = None
    """What bounds the space that `engine` takes."""
    block_size: int = 512
    """Logical block length in bytes."""
    rotation_rate: int = 1
    """MEDIUM ROTATION RATE when the user names none: 1 is a solid state medium (SBC-4 6.6.2)."""

    can_lose_power: ClassVar[bool] = True
    """Whether a power failure can be played: not where a real device has a power of its own."""
    cache: VolatileCache | None = None
    """In front of what was `engine`, where the unit is to lose unflushed writes."""

    def __init__(self, spec: LunSpec, name: str) -> None:
        if spec.volatile_cache and not self.can_lose_power:
            raise SpecError(
                f"{spec}: a device has a cache and a power of its own: no volatile-cache"
            )
        self.spec = spec
        self.name = name
        if spec.block_size is not None:
            self.block_size = spec.block_size
        if spec.rotation_rate is not None:
            self.rotation_rate = spec.rotation_rate

    def start(self, owner: Owner) -> None:
        """Called once, before the first use of `engine`."""

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
    def fixed(self) -> str | None:
        """Why it cannot have another size; None where `set_size` may work."""
        return "its storage has a size of its own"

    def set_size(self, size: int) -> None:
        """Makes what holds the bytes `size` bytes long, apart from `engine.size`: before that if it
        grows, after it if it shrinks. Blocks. `BackendError` where that is not possible."""
        raise BackendError(f"{self.spec} cannot be resized: {self.fixed}")

    def located(self, size: int) -> str:
        """`LunSpec.location` of the same storage with `size` bytes."""
        return self.spec.location

    def install_cache(self) -> None:
        """Puts a volatile cache in front of the storage. What the medium writes whole is a
        physical block, as initiators assume, unless the user names another size."""
        tear = self.spec.tear or self.block_size << self.physical_block_exponent
        self.cache = _dataplane.VolatileCache(self.engine, capacity=CACHE_SIZE, tear=tear)
        self.engine = self.cache.engine

    def sync(self) -> None:
        """`flush`, of what a volatile cache holds too. Blocks."""
        if self.cache is not None:
            self.engine.flush()
        self.flush()

    def flush(self) -> None:
        """Makes durable what reached the storage. Blocks: call it off the event loop."""

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
