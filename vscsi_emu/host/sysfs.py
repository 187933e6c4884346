"""Files in sysfs and procfs: each may be missing, and any may vanish with its device."""

from __future__ import annotations

from pathlib import Path


def data(path: Path) -> bytes | None:
    """What the attribute holds; None where it is missing, forbidden, or its device is gone."""
    try:
        return path.read_bytes()
    except OSError:
        return None


def text(path: Path) -> str | None:
    """As `data`, stripped."""
    raw = data(path)
    return None if raw is None else raw.decode(errors="replace").strip()


def number(path: Path) -> int | None:
    """As `data`, a number: decimal, or hexadecimal with 0x."""
    try:
        return int(text(path) or "", 0)
    except ValueError:
        return None


def inode(directory: Path) -> int | None:
    """What the kernel numbers a directory with; another one of the same name has another."""
    try:
        return directory.stat().st_ino
    except OSError:
        return None


def names(directory: Path) -> list[str]:
    """What is in a directory, sorted; nothing where there is none."""
    try:
        return sorted(entry.name for entry in directory.iterdir())
    except OSError:
        return []


def node(device: Path, dev: Path) -> Path | None:
    """The device node of a class device, as the kernel names it. It need not be there: who fills
    `dev` may hold it back from a container."""
    for line in (text(device / "uevent") or "").splitlines():
        key, _, value = line.partition("=")
        if key == "DEVNAME":
            return dev / value
    return None
