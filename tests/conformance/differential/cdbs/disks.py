"""The three disks: ours in this process, QEMU's over qtest, Linux's scsi_debug in a guest."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.conformance.differential import machine, processes
from tests.conformance.differential.cdbs import asking, medium, sg_node
from tests.conformance.differential.cdbs.asking import Answer, Question, Reply
from vscsi_emu.config import from_arguments
from vscsi_emu.driver.dma import DmaAllocator
from vscsi_emu.driver.mmio import VirtioMmioBus
from vscsi_emu.driver.request import RESPONSE_FIXED
from vscsi_emu.driver.virtio_scsi import VirtioScsi
from vscsi_emu.inprocess import RAM, InProcess
from vscsi_emu.testing import GuestUnavailable, UmlGuest
from vscsi_emu.testing.modules import load_order, module_directory
from vscsi_emu.testing.uml import MODULE_TREE
from vscsi_emu.virtio.mmio_registers import MODERN

_MIB: Final = medium.BLOCKS * medium.BLOCK >> 20
_HEAP: Final = 1 << 20
_GUEST_SECONDS: Final = 120.0
LINUX_VERSION: Final = "6.1"
"""The one that the document is about: Debian 12's User-Mode Linux."""


def ours(questions: Sequence[Question]) -> list[Answer]:
    with InProcess(from_arguments([f"0:0=mem:{_MIB}M,cdb-32=on"])) as process:
        (slot,) = process.slots
        heap = DmaAllocator(_HEAP, RAM - _HEAP)
        bus = VirtioMmioBus(slot, slot.base, heap, MODERN)
        driver = VirtioScsi(bus)

        def send(cdb: bytes, data_out: bytes, room: int) -> Reply:
            result = driver.execute(0, 0, cdb, data_out=data_out, data_in_length=room)
            refused = f"response {result.response}" if result.response else ""
            return Reply(result.status, result.sense, result.residual, result.data, refused)

        return list(asking.answers(send, questions))


def qemu(questions: Sequence[Question], directory: Path) -> list[Answer]:
    """`directory`: for QEMU's files, empty."""
    with processes.qemu(directory, MODERN, blocks=medium.BLOCKS) as device:
        driver = device.driver()

        def send(cdb: bytes, data_out: bytes, room: int) -> Reply:
            item = driver.submit(0, 0, cdb, data_out=data_out, data_in_length=room)
            result = driver.wait(item)
            # Its residuals are wrong (docs/qemu-differences.md): look what was written.
            data = item.ticket.reply[RESPONSE_FIXED + driver.config.sense_size :]
            data = data.rstrip(bytes([machine.UNTOUCHED]))
            refused = f"response {result.response}" if result.response else ""
            residual = room - len(data) if room else None
            return Reply(result.status, result.sense, residual, data, refused)

        return list(asking.answers(send, questions))


# What of this package runs in the guest, under its own name.
_PACKAGE: Final = Path(__file__).parents[4]
_SHIPPED: Final = (asking.__file__, medium.__file__, sg_node.__file__)
_OPTIONS: Final = f"dev_size_mb={_MIB} lbpu=1 lbpws=1 lbpws10=1 delay=0 strict=1 no_uld=1"


def can_be_asked(disk: str, question: Question) -> bool:
    """Not scsi_debug for the status of LBA 2^64 - 1: its sum with a length wraps, and the kernel
    that it runs in never comes back."""
    cdb = question.cdb
    wraps = (cdb[0], cdb[1] & 0x1F) == (0x9E, 0x12) and cdb[2:10] == bytes([0xFF] * 8)
    return disk != "scsi_debug" or not wraps


def require_scsi_debug() -> None:
    """`GuestUnavailable` unless it is the one that docs/scsi-differences.md is about."""
    UmlGuest().require()
    version = module_directory(MODULE_TREE).name
    if not version.startswith(f"{LINUX_VERSION}."):
        raise GuestUnavailable(f"the document is about Linux {LINUX_VERSION}, this is {version}")


def scsi_debug(questions: Sequence[Question]) -> list[Answer]:
    """With `strict`, so that it looks at reserved bits; none but those that `can_be_asked`. Raises
    as `LinuxGuest.run` does."""
    modules = load_order(module_directory(MODULE_TREE), ["scsi_debug"])
    lines = ["mkdir /tmp/code"]
    for path in modules:
        options = _OPTIONS if path == modules[-1] else ""
        lines.append(f"busybox insmod {path} {options} 2>/dev/null")
    for file in _SHIPPED:
        name = Path(file).relative_to(_PACKAGE)
        lines += [f"mkdir -p /tmp/code/{name.parent}", f"cat >/tmp/code/{name} <<'END'"]
        lines += [Path(file).read_text(), "END"]
    lines += ["cat >/tmp/questions <<'END'", sg_node.pack(list(questions)), "END"]
    python = os.path.realpath(sys.executable)
    lines.append(f"cd /tmp/code && {python} -B -m {sg_node.__name__} $(sg '*:*') /tmp/questions")
    result = UmlGuest().run("\n".join(lines), _GUEST_SECONDS).check()
    return sg_node.unpack_answers(result.output)
