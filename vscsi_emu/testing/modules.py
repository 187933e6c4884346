"""Which kernel modules a guest loads, and in which order."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from .errors import GuestUnavailable

# `depends=` in a module's .modinfo section, as modpost writes it; read from there because an
# unpacked kernel has no modules.dep (depmod makes it when the package is installed).
_DEPENDS = re.compile(rb"\0depends=([^\0]*)\0")


def module_directory(tree: Path) -> Path:
    """The one ``<version>`` directory in `tree` that holds a kernel's modules."""
    versions = sorted(path for path in tree.glob("*") if (path / "kernel").is_dir())
    if not versions:
        raise GuestUnavailable(f"no kernel modules in {tree}")
    return versions[-1]


def load_order(directory: Path, wanted: Iterable[str]) -> list[Path]:
    """Module files for `wanted` and what they depend on, dependencies first.

    Names that the kernel has built in are left out. `directory` is ``lib/modules/<version>``.
    """
    files = {_name(path.stem): path for path in (directory / "kernel").rglob("*.ko")}
    builtin = {
        _name(Path(line).stem) for line in (directory / "modules.builtin").read_text().split()
    }
    order: dict[str, Path] = {}

    def visit(name: str) -> None:
        if name in order or name in builtin:
            return
        if name not in files:
            raise GuestUnavailable(f"kernel in {directory} has no module {name}")
        for dependency in _depends(files[name]):
            visit(dependency)
        order[name] = files[name]

    for name in wanted:
        visit(_name(name))
    return list(order.values())


def _depends(module: Path) -> list[str]:
    found = _DEPENDS.search(module.read_bytes())
    return [_name(name) for name in found[1].decode().split(",") if name] if found else []


def _name(text: str) -> str:
    return text.replace("-", "_")
