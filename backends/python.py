"""``python:MODULE:CLASS`` or ``python:FILE.py:CLASS``: a `Storage` or a `Device` of a program."""

from __future__ import annotations

import errno
import importlib
import importlib.util
import logging
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, ClassVar

from vscsi_emu import _dataplane
from vscsi_emu.backends.base import Backend, BackendError, Owner
from vscsi_emu.backends.space import thin_space
from vscsi_emu.backends.storage import Storage
from vscsi_emu.backends.uri import LunSpec, SpecError
from vscsi_emu.scsi.device import Device
from vscsi_emu.scsi.sense import Asc, ScsiError, SenseKey

if TYPE_CHECKING:
    from vscsi_emu._dataplane import Transfer

log = logging.getLogger(__name__)


class PythonBackend(Backend):
    """Makes the object. A storage is asked on threads of its own."""

    KEYS: ClassVar[Mapping[str, str]] = {"argument": "text that the class is given"}

    def __init__(self, spec: LunSpec, name: str) -> None:
        super().__init__(spec, f"{spec}#{name}")
        made = _make(spec)
        self._stop: Callable[[], None] | None = None
        if isinstance(made, Device):
            self.python_device = made
        else:
            self._set_storage(made)

    def _set_storage(self, storage: Storage) -> None:
        if self.spec.block_size is None:
            self.block_size = storage.block_size
        self.check_size(storage.size, f"let size be a multiple of {self.block_size}")
        self.storage = storage
        self._threads = ThreadPoolExecutor(storage.threads, "vscsi-storage")

    def limit_space(self) -> None:
        if thin_space(self.spec) is not None:
            raise SpecError(
                f"{self.spec}: the class bounds its own space (ENOSPC); leave out thin="
            )

    def install_cache(self) -> None:
        """`start` does it: there is no engine before."""
        if self.python_device is not None:
            raise SpecError(f"{self.spec}: it is no disk; leave out volatile-cache")

    def start(self, owner: Owner) -> None:
        if self.python_device is not None:
            return
        token = owner.add_engine(self._queue)
        self._stop = partial(owner.remove_engine, token)
        self.engine = _dataplane.Engine.python(
            owner.inbox,
            token,
            self.storage.size,
            discard=type(self.storage).discard is not Storage.discard,
        )
        if self.spec.volatile_cache:
            super().install_cache()

    @property
    def fixed(self) -> str | None:
        if self.python_device is not None:
            return "it is no disk"
        if type(self.storage).resize is Storage.resize:
            return "its class has no resize method"
        return None

    def set_size(self, size: int) -> None:
        try:
            self._threads.submit(self.storage.resize, size).result()
        except Exception as error:
            # A user's own class may raise anything at all.
            log.exception("%s: resize to %d bytes", self.spec, size)
            raise BackendError(f"{self.spec}: {type(error).__name__}: {error}") from error
        if self.storage.size != size:
            raise BackendError(
                f"{self.spec}: its resize method left size at {self.storage.size}, not {size}"
            )

    def flush(self) -> None:
        if self.python_device is None and not self.spec.read_only:
            self._threads.submit(self.storage.flush).result()

    def close(self) -> None:
        if self.python_device is not None:
            self.python_device.close()
            return
        if self._stop:
            self._stop()
        self._threads.submit(self.storage.close).result()
        self._threads.shutdown()

    def _queue(self, transfer: Transfer) -> None:
        self._threads.submit(self._serve, transfer)

    def _serve(self, transfer: Transfer) -> None:
        try:
            transfer.finish(self._done(transfer))
        except ScsiError as error:
            transfer.refuse(error.key, error.code >> 8, error.code & 0xFF)
        except OSError as error:
            transfer.fail(error.errno or errno.EIO)
        except Exception:
            log.exception("%s: internal error in %s", self.spec, transfer.kind)
            failure = Asc.INTERNAL_TARGET_FAILURE
            transfer.refuse(SenseKey.HARDWARE_ERROR, failure >> 8, failure & 0xFF)

    def _done(self, transfer: Transfer) -> bytes:
        storage, offset, length = self.storage, transfer.offset, transfer.length
        match transfer.kind:
            case "read":
                data = bytes(storage.read(offset, length))
                if len(data) != length:
                    raise ValueError(f"read gave {len(data)} bytes instead of {length}")
                return data
            case "write":
                storage.write(offset, transfer.data)
            case "flush":
                storage.flush()
            case "discard":
                storage.discard(offset, length)
        return b""


def _make(spec: LunSpec) -> Storage | Device:
    place, has_class, name = spec.location.rpartition(":")
    if not has_class or not place or not name:
        raise SpecError(f"{spec}: write python:MODULE:CLASS or python:FILE.py:CLASS")
    found = getattr(_module(spec, place), name, None)
    if not (isinstance(found, type) and issubclass(found, Storage | Device)):
        raise BackendError(f"{spec}: {place} has no class {name} that is a Storage or a Device")
    make: Callable[..., Storage | Device] = found
    argument = spec.extra.get("argument")
    try:
        made = make() if argument is None else make(argument)
    except Exception as error:
        raise BackendError(f"{spec}: {name}: {type(error).__name__}: {error}") from error
    if isinstance(made, Device):
        return made
    if made.block_size not in (512, 4096) or made.threads < 1 or not hasattr(made, "size"):
        raise BackendError(f"{spec}: {name} needs size, block_size 512 or 4096, threads >= 1")
    return made


def _module(spec: LunSpec, place: str) -> ModuleType:
    try:
        return _from_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except Exception as error:
        # A user's own module may raise anything at all.
        raise BackendError(f"{spec}: {type(error).__name__}: {error}") from error


def _from_file(path: Path) -> ModuleType:
    """The module of a file, once for all disks."""
    name = f"vscsi_emu_storage:{path.resolve()}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
