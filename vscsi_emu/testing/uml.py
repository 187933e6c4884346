"""User-Mode Linux as a guest: the host's own programs on another kernel."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Sequence
from pathlib import Path

from .errors import GuestUnavailable
from .guest import SETTLE, Launch, LinuxGuest
from .modules import load_order, module_directory

INSTALL = "apt-get install user-mode-linux busybox-static"
MODULE_TREE = Path("/usr/lib/uml/modules")
MODULES = ("scsi_mod", "sd_mod", "sg", "virtio_scsi")
VIRTIO_ID_SCSI = 8

# The host's root is mounted read-only; what a script may write to is memory. tty1 leads to the
# output file, and unlike a file on hostfs it holds nothing back until it is closed.
_INIT = """\
#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sysfs /sys
for d in /tmp /run /var/tmp /srv; do mount -t tmpfs tmpfs $d; done
mount -t hostfs -o {directory} none /srv
stty -F /dev/tty1 raw
{load}
{settle}
mkdir -p /tmp/mnt && cd /tmp
sh /srv/script </dev/null >/dev/tty1 2>&1
echo $? >/srv/status
{busybox} poweroff -f
"""


class UmlGuest(LinuxGuest):
    """Debian's ``user-mode-linux`` with the host's root file system, read-only: that keeps
    accidents from the host, not a script that means harm and remounts it.

    `sockets` are the vhost-user sockets of the HBAs it finds, in this order; `modules` further ones
    of the kernel's to load (``raid1``, ``st``).
    """

    name = "uml"

    def __init__(
        self,
        sockets: Sequence[Path] = (),
        *,
        modules: Sequence[str] = (),
        memory_mib: int = 384,
    ) -> None:
        self._sockets = [Path(socket).absolute() for socket in sockets]
        self._modules = (*MODULES, *modules)
        self._memory_mib = memory_mib

    def require(self) -> None:
        _kernel()
        _busybox()
        module_directory(MODULE_TREE)

    def _prepare(self, directory: Path, script: str, output: int) -> Launch:
        kernel, busybox = _kernel(), _busybox()
        modules = load_order(module_directory(MODULE_TREE), self._modules)
        # scan=sync: loading the HBA's driver returns when its logical units are known.
        load = "\n".join(
            f"{busybox} insmod {path}{' scan=sync' if path.stem == 'scsi_mod' else ''}"
            for path in modules
        )
        init = directory / "init"
        init.write_text(
            _INIT.format(directory=directory, load=load, settle=SETTLE, busybox=busybox)
        )
        init.chmod(0o755)
        (directory / "script").write_text(script)
        return Launch(
            [
                str(kernel),
                f"mem={self._memory_mib}M",
                "rootfstype=hostfs",
                "rootflags=/",
                "ro",
                f"init={init}",
                "con0=null,fd:1",
                f"con1=null,fd:{output}",
                "con=null",
                "ssl=null",
                f"uml_dir={directory}/",
                "umid=uml",
                "loglevel=5",
                *(f"virtio_uml.device={path}:{VIRTIO_ID_SCSI}" for path in self._sockets),
            ]
        )


def _kernel() -> Path:
    if platform.machine() not in ("x86_64", "i386", "i686"):
        raise GuestUnavailable(f"User-Mode Linux does not run on {platform.machine()}")
    for name in ("linux.uml", "linux"):
        if found := shutil.which(name, path="/usr/local/bin:/usr/bin"):
            return Path(found)
    raise GuestUnavailable(f"User-Mode Linux is not installed: {INSTALL}")


def _busybox() -> Path:
    if found := shutil.which("busybox", path="/usr/local/bin:/usr/bin:/bin"):
        return Path(found)
    raise GuestUnavailable(f"busybox is not installed: {INSTALL}")
