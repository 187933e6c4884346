"""Debian packages unpacked into a cache and used from there, never installed.

A machine may refuse ``apt-get install qemu-system-x86`` (qemu-utils from backports breaks it) or
have no root at all; downloading and unpacking needs neither.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from .errors import GuestUnavailable

CACHE_VARIABLE = "VSCSI_EMU_CACHE"
_APT_TIMEOUT = 300.0
_HARD_DEPENDENCIES = (
    "--recurse",
    "--no-recommends",
    "--no-suggests",
    "--no-conflicts",
    "--no-breaks",
    "--no-replaces",
    "--no-enhances",
)


def cache_directory() -> Path:
    """``$VSCSI_EMU_CACHE``, else ``vscsi-emu`` in the user's cache directory."""
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "vscsi-emu"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds `path` (made if absent) locked against other processes doing the same work."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def qemu() -> Path:
    """Directory holding QEMU's x86 system emulator and the libraries that this machine lacks."""
    return _unpacked("qemu-system-x86", _with_missing_dependencies)


def cloud_kernel() -> Path:
    """Directory holding Debian's kernel for virtual machines: ``boot/`` and ``lib/modules/``."""
    return _unpacked("linux-image-cloud-amd64", _meaning)


def generic_kernel() -> Path:
    """As `cloud_kernel`, the kernel for any machine: it has all drivers."""
    return _unpacked("linux-image-amd64", _meaning)


def multipath_tools() -> Path:
    """Directory holding dm-multipath's tools, udev, and the libraries that this machine lacks.

    Installed, both would look after this machine's disks.
    """
    return _unpacked("multipath-tools", _with_udev)


def _unpacked(package: str, wanted: Callable[[str], list[str]]) -> Path:
    root = cache_directory() / "debian" / package
    with locked(root.with_name(f"{package}.lock")):
        if not root.is_dir():
            _unpack(wanted(package), root)
    return root


def _with_missing_dependencies(package: str) -> list[str]:
    return [package, *sorted(_dependencies(package) - _installed() - {package})]


def _with_udev(package: str) -> list[str]:
    missing = _dependencies(package) - _installed()
    return [package, "udev", *sorted(name for name in missing if name.startswith("lib"))]


def _meaning(meta: str) -> list[str]:
    """The one package that a meta-package stands for."""
    found = re.search(r"^ +Depends: (\S+)", _apt("apt-cache", "depends", meta), re.MULTILINE)
    if not found:
        raise GuestUnavailable(f"apt-cache knows no {meta}: is this Debian, on amd64?")
    return [found[1]]


def _unpack(packages: Sequence[str], root: Path) -> None:
    # Unpacked beside its place and renamed, so that an interrupted download is never used.
    with tempfile.TemporaryDirectory(dir=root.parent, prefix=f"{root.name}.") as scratch:
        downloads, tree = Path(scratch, "debs"), Path(scratch, "tree")
        downloads.mkdir()
        tree.mkdir()
        _apt("apt-get", "-q", "download", *packages, cwd=downloads)
        for deb in downloads.glob("*.deb"):
            _apt("dpkg-deb", "--extract", str(deb), str(tree))
        tree.rename(root)


def _dependencies(package: str) -> set[str]:
    listing = _apt("apt-cache", "depends", *_HARD_DEPENDENCIES, package)
    # Packages stand at the line's start; virtual ones are in angle brackets, and cannot be fetched.
    return set(re.findall(r"^([a-z0-9][a-z0-9+.-]*)$", listing, re.MULTILINE))


def _installed() -> set[str]:
    listing = _apt("dpkg-query", "-W", "-f", "${db:Status-Abbrev}${Package}\\n")
    return {line[3:] for line in listing.splitlines() if line.startswith("ii ")}


def _apt(*command: str, cwd: Path | None = None) -> str:
    if shutil.which(command[0]) is None:
        raise GuestUnavailable(f"{command[0]} not found: guests need Debian's packages")
    try:
        done = subprocess.run(
            command, cwd=cwd, capture_output=True, text=True, timeout=_APT_TIMEOUT, check=True
        )
    except subprocess.TimeoutExpired as error:
        raise GuestUnavailable(f"{_line(command)}: no answer in {_APT_TIMEOUT:.0f} s") from error
    except subprocess.CalledProcessError as error:
        reason = error.stderr.strip().splitlines()[-1:] or ["no reason given"]
        raise GuestUnavailable(
            f"{_line(command)}: {reason[0]} (is the network up, and `apt-get update` done?)"
        ) from error
    return done.stdout


def _line(command: Sequence[str]) -> str:
    return " ".join(command[:4]) + (" …" if len(command) > 4 else "")
