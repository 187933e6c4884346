"""``sg:NAME``: a SCSI device of the host, whose commands pass."""

from __future__ import annotations

import errno
import grp
import logging
import os
import stat
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import ClassVar, Final

from vscsi_emu import _dataplane
from vscsi_emu.backends.base import Backend, BackendError
from vscsi_emu.backends.uri import LunSpec, SpecError, parse_switch
from vscsi_emu.host.devices import SECTOR
from vscsi_emu.host.errors import HostError
from vscsi_emu.host.find import find
from vscsi_emu.host.limits import QueueLimits, queue_limits
from vscsi_emu.passthrough.capacity import NONE, Capacity, read_capacity
from vscsi_emu.scsi.passing import Level, rules

log = logging.getLogger(__name__)

_MAX_THREADS: Final = 256
_CAP_SYS_RAWIO: Final = 17
_SG_IO_HDR, _SG_IO_V4 = 3, 4
_PAGE_UNMAP_BLOCKS: Final = slice(20, 24)
_PAGE_UNMAP_DESCRIPTORS: Final = slice(24, 28)
_PAGE_WRITE_SAME: Final = slice(36, 44)
_UNLIMITED: Final = 0xFFFF_FFFF


class SgBackend(Backend):
    """A disk, tape, changer, CD-ROM or enclosure, by its node, address or name."""

    KEYS: ClassVar[Mapping[str, str]] = {
        "passthrough": "readonly|safe|all: which commands pass",
        "force": "on|off: serve it although the host uses it",
    }

    def __init__(self, spec: LunSpec, name: str) -> None:
        super().__init__(spec, name)
        self.level: Final = _level(spec)
        self._force = _switch(spec, "force")
        try:
            self.device: Final = find(spec.location)
        except HostError as error:
            raise BackendError(f"{spec}: {error}") from None
        if self.device.wwid:
            self.name = self.device.wwid
        node = self._node()
        self.limits: Final = queue_limits(self.device)
        self.transfer_limits: Final = _transfer_limits(self.limits)
        with ExitStack() as stack:
            self._hold(stack)
            fd = self._open(node, stack)
            self.passthrough: Final = _dataplane.Passthrough(
                fd,
                _SG_IO_V4 if node == self.device.bsg else _SG_IO_HDR,
                self.transfer_limits,
                threads=min(self.limits.cmd_per_lun.value, _MAX_THREADS),
                rules=rules(self.device.type),
            )
            stack.callback(self.passthrough.close)
            self.capacity: Final = self._capacity()
            self._open_until_closed = stack.pop_all()
        self.engine = _dataplane.Engine.passthrough(self.passthrough)

    def close(self) -> None:
        self._open_until_closed.close()

    def _capacity(self) -> Capacity:
        if not self.device.has_blocks:
            return NONE
        found = read_capacity(self.passthrough)
        self.passthrough.set_capacity(found.block_size, found.blocks)
        return found

    def _node(self) -> Path:
        """The one that was named, else that of the block driver, which spares a copy."""
        named = Path(os.path.realpath(self.spec.location))
        if named in self.device.nodes:
            if named in self.device.other_nodes:
                raise BackendError(
                    f"{self.spec} takes no SCSI commands from outside; use sg:{self.device.sg}"
                )
            return named
        for node in (self.device.block, self.device.sg, self.device.bsg):
            if node is not None and node.exists():
                return node
        raise BackendError(f"{self.spec}: there is no node of it in /dev; is the sg module loaded?")

    def _hold(self, stack: ExitStack) -> None:
        """Takes the disk from the host, so that nothing there mounts or holds it meanwhile."""
        block = self.device.block
        if block is None or self._force or not block.exists():
            return
        try:
            fd = os.open(block, os.O_RDONLY | os.O_EXCL | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise BackendError(
                    f"{self.spec}: the host has {block} mounted or otherwise in use; release it, "
                    "or add force=on, which may destroy what is on it"
                ) from None
            if error.errno == errno.ENOMEDIUM:
                return
            raise BackendError(f"{self.spec}: {_explain(error, block)}") from None
        stack.callback(os.close, fd)

    def _open(self, node: Path, stack: ExitStack) -> int:
        writes = self.level > Level.READONLY or node != self.device.block
        mode = os.O_RDWR if writes else os.O_RDONLY
        try:
            fd = os.open(node, mode | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise BackendError(f"{self.spec}: {_explain(error, node)}") from None
        stack.callback(os.close, fd)
        if not _has_capability(_CAP_SYS_RAWIO):
            if node == self.device.bsg:
                raise BackendError(
                    f"{self.spec}: a bsg node needs CAP_SYS_RAWIO; run with it, or use another node"
                )
            log.warning(
                "%s: without CAP_SYS_RAWIO the host's kernel refuses commands that it does not "
                "know for harmless, such as PERSISTENT RESERVE OUT",
                self.spec,
            )
        return fd


def _level(spec: LunSpec) -> Level:
    text = spec.extra.get("passthrough", "readonly" if spec.read_only else "safe")
    names = {level.name.lower(): level for level in Level}
    if text not in names:
        raise SpecError(f"passthrough: {text!r} is none of {', '.join(names)}")
    if spec.read_only and names[text] is not Level.READONLY:
        raise SpecError(f"passthrough={text} and ro contradict each other")
    return names[text]


def _switch(spec: LunSpec, key: str) -> bool:
    try:
        return parse_switch(spec.extra.get(key, "off"))
    except SpecError as error:
        raise SpecError(f"{key}: {error}") from None


def _transfer_limits(limits: QueueLimits) -> _dataplane.PassthroughLimits:
    page = (limits.block_limits or b"").ljust(64, b"\0")

    def number(field: slice) -> int:
        value = int.from_bytes(page[field])
        return 0 if value == _UNLIMITED else value

    return _dataplane.PassthroughLimits(
        max_bytes=limits.max_sectors.value * SECTOR,
        max_segments=limits.seg_max.value,
        dma_alignment=limits.dma_alignment.value,
        virt_boundary=limits.virt_boundary_mask.value,
        max_cdb=limits.cdb_length.value,
        max_write_same_blocks=number(_PAGE_WRITE_SAME),
        max_unmap_blocks=number(_PAGE_UNMAP_BLOCKS),
        max_unmap_descriptors=number(_PAGE_UNMAP_DESCRIPTORS),
    )


def _explain(error: OSError, node: Path) -> str:
    if error.errno not in (errno.EACCES, errno.EPERM):
        return f"{node}: {error.strerror}"
    try:
        status = node.stat()
    except OSError:
        return f"{node}: {error.strerror}"
    if error.errno == errno.EPERM:
        return f"{node}: the device is not allowed here (a container's device cgroup)"
    if status.st_mode & stat.S_IRGRP and status.st_mode & stat.S_IWGRP:
        group = _group(status.st_gid)
        return f"{node} may be used by group {group}: usermod -aG {group} USER"
    rule = f'KERNEL=="{node.name}", GROUP="disk", MODE="0660"'
    return f"{node} is for its owner only; add a udev rule: {rule}"


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def _has_capability(number: int) -> bool:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> number & 1)
    return True
