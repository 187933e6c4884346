"""Other targets that the suite runs on, for comparison: a fresh, thin 512 MiB disk of each."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path

from vscsi_emu.testing import GuestTimeout, QemuGuest, UmlGuest
from vscsi_emu.testing.modules import load_order, module_directory
from vscsi_emu.testing.uml import MODULE_TREE

from . import suite
from .setups import run_in

MIB = 512
NODES = "sg '*:*'"  # there is one disk only

# LIO's tree in configfs: drivers/target/target_core_configfs.c, drivers/target/loopback.
_LIO = f"""
mount -t configfs configfs /sys/kernel/config
cd /sys/kernel/config/target
mkdir -p /tmp/target/pr /tmp/target/alua
echo /tmp/target >dbroot
disk=core/fileio_0/disk port=loopback/naa.5001405000000001
mkdir -p $disk
echo fd_dev_name=/tmp/disk,fd_dev_size={MIB << 20} >$disk/control
echo 1 >$disk/enable
echo 5ca1ab1e >$disk/wwn/vpd_unit_serial
for attribute in emulate_tpu emulate_tpws; do echo 1 >$disk/attrib/$attribute; done
mkdir -p $port/tpgt_1/lun/lun_0
echo naa.5001405000000002 >$port/tpgt_1/nexus
ln -s /sys/kernel/config/target/$disk $port/tpgt_1/lun/lun_0/disk
cd /tmp
until [ -e "$({NODES})" ]; do sleep 0.1; done
"""


def _load(*modules: str, options: str = "") -> str:
    """Loads UML modules; those that are loaded already say so, and stay."""
    paths = load_order(module_directory(MODULE_TREE), modules)
    return "".join(
        f"busybox insmod {path} {options if path == paths[-1] else ''} 2>/dev/null\n"
        for path in paths
    )


def qemu(names: list[str]) -> Iterator[str]:
    """QEMU's scsi-hd."""
    with tempfile.TemporaryDirectory() as directory:
        image = Path(directory, "disk")
        with image.open("wb") as file:
            file.truncate(MIB << 20)
        drive = f"file,node-name=file,filename={image},discard=unmap"
        guest = QemuGuest(
            programs=[suite.PROGRAM, "sg_turs"],
            arguments=[
                *("-blockdev", drive, "-blockdev", "raw,node-name=disk,file=file,discard=unmap"),
                *("-device", "virtio-scsi-pci", "-device", "scsi-hd,drive=disk"),
            ],
        )
        yield from run_in(guest, suite.script(NODES, names), len(names))


def lio(names: list[str]) -> Iterator[str]:
    """Linux's LIO: fileio on tmpfs through tcm_loop."""
    script = _load("target_core_file") + _load("tcm_loop") + _LIO + suite.script(NODES, names)
    yield from run_in(UmlGuest(), script, len(names))


def scsi_debug(names: list[str]) -> Iterator[str]:
    """Linux's scsi_debug, each group of tests in a guest of its own: there is a test that the
    kernel never comes back from. It has timed out; the rest of its group goes on in another."""
    load = _load("scsi_debug", options=f"dev_size_mb={MIB} lbpu=1 lbpws=1 lbpws10=1 delay=0")
    for _, group in groupby(names, lambda name: name.split(".")[0]):
        left = list(group)
        while left:
            done = 0
            script = load + suite.script(NODES, left)
            try:
                for line in run_in(UmlGuest(memory_mib=2 * MIB), script, len(left)):
                    done += 1
                    yield line
            except GuestTimeout:
                yield suite.timed_out(left[done])
                done += 1
            left = left[done:]


PEERS: dict[str, Callable[[list[str]], Iterator[str]]] = {
    "qemu": qemu,
    "lio": lio,
    "scsi_debug": scsi_debug,
}
