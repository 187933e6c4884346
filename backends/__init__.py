"""Backends: from a URI to a storage engine, its identity and its limits.

A backend opens and probes; it moves no data. One module a scheme, found through the entry point
group ``vscsi_emu.backends``, so that other packages can add theirs::

    [project.entry-points."vscsi_emu.backends"]
    nbd = "my_package:NbdBackend"
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points

from vscsi_emu.backends.base import Backend, BackendError
from vscsi_emu.backends.uri import LunSpec, SpecError

__all__ = ["Backend", "BackendError", "LunSpec", "SpecError", "backend_class", "open_backend"]

GROUP = "vscsi_emu.backends"


@cache
def schemes() -> Mapping[str, EntryPoint]:
    """Every scheme that is installed."""
    return {point.name: point for point in entry_points(group=GROUP)}


@cache
def backend_class(scheme: str) -> type[Backend]:
    """The class that serves `scheme`, imported on first use. `KeyError` for an unknown one."""
    loaded = schemes()[scheme].load()
    if not (isinstance(loaded, type) and issubclass(loaded, Backend)):
        raise TypeError(f"entry point {GROUP}:{scheme} is no subclass of vscsi_emu Backend")
    return loaded


def open_backend(spec: LunSpec, *, name: str) -> Backend:
    """Opens what `spec` names. `name` tells apart units that have no name of their own, such as
    two memory disks: it must differ between them and be the same at every start.

    Raises `BackendError` or `SpecError`, in words for the user.
    """
    backend = backend_class(spec.scheme)(spec, name)
    try:
        # The cache below the space: what a power failure loses has been counted.
        if spec.volatile_cache:
            backend.install_cache()
        elif spec.tear is not None:
            raise SpecError(f"{spec}: tear is of a volatile cache; add volatile-cache=on")
        backend.limit_space()
    except OSError as error:
        backend.close()
        raise BackendError(f"{spec}: cannot be measured: {error.strerror}") from None
    except BaseException:
        backend.close()
        raise
    return backend
