"""QEMU, emulating a whole PC, as a guest: Debian's kernel for virtual machines."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
from collections.abc import Sequence
from pathlib import Path

from .debian import cache_directory, cloud_kernel, generic_kernel, locked, qemu
from .errors import GuestUnavailable
from .guest import SETTLE, Launch, LinuxGuest
from .initramfs import Archive, find_program
from .modules import load_order, module_directory

MODULES = ("qemu_fw_cfg", "virtio_pci", "scsi_mod", "sd_mod", "sg", "virtio_scsi", "ext4")
SCRIPT = "opt/org.vscsi-emu/script"
PROGRAMS = (
    "busybox",
    "blkdiscard",
    "blockdev",
    "e2fsck",
    "fio",
    "lsscsi",
    "mkfs.ext4",
    "sg_inq",
    "sg_luns",
    "sg_modes",
    "sg_opcodes",
    "sg_readcap",
    "sg_reset",
    "sg_vpd",
)
INSTALL = "apt-get install busybox-static dmsetup e2fsprogs fio lsscsi sg3-utils util-linux"

# Output and exit code leave through serial ports: closing one waits until it is empty, while a
# virtio port may still hold data when the machine powers off.
_INIT = """\
#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t devtmpfs devtmpfs /dev
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tmpfs tmpfs /tmp
mkdir -p /dev/shm && mount -t tmpfs tmpfs /dev/shm
ln -s /proc/self/fd /dev/fd
{load}
{settle}
stty -F /dev/ttyS1 raw
mkdir -p /tmp/mnt && cd /tmp
sh /sys/firmware/qemu_fw_cfg/by_name/{script}/raw </dev/null >/dev/ttyS1 2>&1
echo $? >/dev/ttyS2
poweroff -f
"""


class QemuGuest(LinuxGuest):
    """QEMU without KVM, so that it runs anywhere and its virtio is QEMU's own.

    `sockets` are the vhost-user sockets of the HBAs; `properties` go to each of their devices
    (``num_queues=4``, as ``vscsi-emu serve`` prints them). `arguments` are further ones of QEMU's,
    `programs` further ones of this machine that scripts may run, `modules` further ones of the
    kernel's. With `all_drivers` that is Debian's for any machine, of which the one for virtual
    machines is a small part.
    """

    name = "qemu"

    def __init__(
        self,
        sockets: Sequence[Path] = (),
        *,
        properties: str = "",
        arguments: Sequence[str] = (),
        programs: Sequence[str] = (),
        modules: Sequence[str] = (),
        all_drivers: bool = False,
        memory_mib: int = 512,
    ) -> None:
        self._sockets = [Path(socket).absolute() for socket in sockets]
        self._properties = f",{properties}" if properties else ""
        self._arguments = list(arguments)
        self._programs = (*PROGRAMS, *programs)
        self._modules = (*MODULES, *modules)
        self._kernel = generic_kernel if all_drivers else cloud_kernel
        self._memory_mib = memory_mib

    def require(self) -> None:
        if platform.machine() != "x86_64":
            raise GuestUnavailable(f"the QEMU guest is an x86-64 PC, this is {platform.machine()}")
        for name in self._programs:
            _program(name)
        self._kernel()
        emulator()

    def _prepare(self, directory: Path, script: str, output: int) -> Launch:
        kernel = self._kernel()
        (directory / "script").write_text(script)
        program, environment, firmware = emulator()
        memory = f"memory-backend-memfd,id=ram,size={self._memory_mib}M,share=on"
        return Launch(
            [
                str(program),
                *firmware,
                *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
                *("-machine", "q35,memory-backend=ram", "-accel", "tcg", "-cpu", "max"),
                *("-m", f"{self._memory_mib}M", "-object", memory),
                *("-kernel", str(next(kernel.glob("boot/vmlinuz-*")))),
                *("-initrd", str(_initramfs(kernel, self._programs, self._modules))),
                *("-append", "console=ttyS0 loglevel=7 panic=-1 no_timer_check"),
                *("-fw_cfg", f"name={SCRIPT},file=script"),
                *("-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"),
                *("-serial", "file:output", "-serial", "file:status"),
                *self._devices(),
                *self._arguments,
            ],
            environment,
        )

    def _devices(self) -> list[str]:
        arguments: list[str] = []
        for number, path in enumerate(self._sockets):
            arguments += ["-chardev", f"socket,id=hba{number},path={path}"]
            arguments += [
                "-device",
                f"vhost-user-scsi-pci,id=scsi{number},chardev=hba{number}{self._properties}",
            ]
        return arguments


def emulator() -> tuple[Path, dict[str, str], list[str]]:
    """QEMU itself, its environment, and where it finds its firmware."""
    if installed := shutil.which(
        "qemu-system-x86_64", path=f"{os.environ.get('PATH', '')}:/usr/bin"
    ):
        return Path(installed), {}, []
    root = qemu()
    libraries = ":".join(str(path) for path in root.glob("**/lib/x86_64-linux-gnu"))
    firmware = ["-L", str(root / "usr/share/qemu"), "-L", str(root / "usr/share/seabios")]
    return root / "usr/bin/qemu-system-x86_64", {"LD_LIBRARY_PATH": libraries}, firmware


def _initramfs(kernel: Path, names: Sequence[str], modules: Sequence[str]) -> Path:
    """What all guests share, made once for a kernel, its modules and a set of programs."""
    directory = module_directory(kernel / "lib/modules")
    programs = [_program(name) for name in names]
    made_of: list[object] = [directory.name, modules, _INIT, SETTLE, names]
    made_of += [(program, program.stat().st_mtime_ns) for program in programs]
    digest = hashlib.sha256(repr(made_of).encode()).hexdigest()[:16]
    path = cache_directory() / f"initramfs-{digest}.cpio"
    with locked(path.with_suffix(".lock")):
        if not path.exists():
            scratch = path.with_suffix(".new")
            scratch.write_bytes(_build(directory, programs, modules))
            scratch.rename(path)
    return path


def _program(name: str) -> Path:
    if found := find_program(name):
        return found
    raise GuestUnavailable(f"{name}, which the QEMU guest needs, is not installed: {INSTALL}")


def _build(directory: Path, programs: Sequence[Path], modules: Sequence[str]) -> bytes:
    archive = Archive()
    for place in ("dev", "proc", "sys", "tmp", "sbin"):
        archive.add(place, b"", 0o040755)
    for program in programs:
        archive.add_program(program)
    archive.link("/bin/busybox", "/usr/bin/busybox")
    load = []
    for path in load_order(directory, modules):
        archive.copy(path, f"/modules/{path.name}")
        option = " scan=sync" if path.stem == "scsi_mod" else ""
        load.append(f"insmod /modules/{path.name}{option}")
    archive.add("/init", _INIT.format(load="\n".join(load), settle=SETTLE, script=SCRIPT).encode())
    return archive.to_bytes()
