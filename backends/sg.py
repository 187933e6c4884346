"""``sg:NAME``: a SCSI device of the host, whose commands pass."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import ClassVar, Final

from vscsi_emu import _dataplane
from vscsi_emu.backends.base import Backend, BackendError
from vscsi_emu.backends.uri import LunSpec, SpecError, parse_switch
from vscsi_emu.host.access import access
from vscsi_emu.host.devices import SECTOR, ScsiDevice, at
from vscsi_emu.host.errors import HostError
from vscsi_emu.host.find import find
from vscsi_emu.host.limits import QueueLimits, queue_limits
from vscsi_emu.host.use import use
from vscsi_emu.host.way import way
from vscsi_emu.passthrough.capacity import NONE, Capacity, read_capacity
from vscsi_emu.scsi.passing import Level, rules

log = logging.getLogger(__name__)

_MAX_DEPTH: Final = 256
_SG_IO_HDR, _SG_IO_V4 = 3, 4
_PAGE_BYTES: Final = 64
_UNMAP_BLOCKS: Final = slice(20, 24)
_UNMAP_DESCRIPTORS: Final = slice(24, 28)
_WRITE_SAME: Final = slice(36, 44)
_UNLIMITED: Final = 0xFFFF_FFFF


class SgBackend(Backend):
    """A disk, tape, changer, CD-ROM or enclosure, by its node, address or name."""

    can_lose_power = False
    KEYS: ClassVar[Mapping[str, str]] = {
        "passthrough": "readonly|safe|all: which commands pass",
        "force": "on|off: serve it although the host uses it",
    }

    def __init__(self, spec: LunSpec, name: str, *, serving: bool = False) -> None:
        """`serving`: there are guests already, which nothing here may hold up."""
        super().__init__(spec, name)
        self.level: Final = _level(spec)
        self._force = _switch(spec, "force")
        try:
            self.device: Final = find(spec.location)
        except HostError as error:
            raise BackendError(f"{spec}: {error}") from None
        if self.device.wwid:
            self.name = self.device.wwid
        self.node: Final = self._node()
        self._check_access(self.node)
        with ExitStack() as stack:
            self._hold(stack)
            # Sends commands, so after it is ours.
            self.limits = queue_limits(self.device, commands=not serving)
            self.transfer_limits = _transfer_limits(self.limits)
            self.passthrough: Final = _dataplane.Passthrough(
                self._open(self.node, stack),
                _SG_IO_V4 if self.node == self.device.bsg else _SG_IO_HDR,
                self.transfer_limits,
                depth=max(1, min(self.limits.cmd_per_lun.value, _MAX_DEPTH)),
                rules=rules(self.device.type),
                asynchronous=self.node == self.device.sg,
            )
            stack.callback(self.passthrough.close)
            self.capacity: Final = self._capacity()
            self.block_size = self.capacity.block_size or self.block_size
            self._until_closed = stack.pop_all()
        self.engine = _dataplane.Engine.passthrough(self.passthrough)

    def limit(self, name: str) -> tuple[int, str] | None:
        for found in self.limits:
            if found.name == name:
                return found.value, f"{found.source} of {self.spec}"
        return None

    def reread_limits(self) -> bool:
        """Whether the host's limits are others now: commands that begin keep to them. May wait for
        the host."""
        found = queue_limits(self.device, commands=False, before=self.limits)
        # Of a device that goes, some of what limits it goes first.
        own, now = self.device, at(self.device.address, self.device.roots)
        whole = now is not None and now.block == own.block
        pairs = zip(found, self.limits, strict=True)
        if not (whole and self.is_there and any(a.value != b.value for a, b in pairs)):
            return False
        self.limits, self.transfer_limits = found, _transfer_limits(found)
        self.passthrough.set_limits(self.transfer_limits)
        return True

    @property
    def is_there(self) -> bool:
        """Whether the host still has the device that was opened, with the node that is used."""
        own, now = self.device, at(self.device.address, self.device.roots)
        if now is None or not now.stays:
            return False
        return own.instance == now.instance and self.node in now.nodes

    def is_it(self, device: ScsiDevice) -> bool:
        """Whether this is the device, by name where it has one: addresses are given anew."""
        own = self.device
        if own.wwid or device.wwid:
            return own.wwid == device.wwid
        return (own.address, own.vendor, own.model) == (
            device.address,
            device.vendor,
            device.model,
        )

    def like_node(self, device: ScsiDevice) -> Path | None:
        """The node of `device`, which may be this one come back, that is of the same kind."""
        own = self.device
        for mine, theirs in (
            (own.block, device.block),
            (own.sg, device.sg),
            (own.bsg, device.bsg),
        ):
            if mine == self.node:
                return theirs
        return None

    def close(self) -> None:
        self._until_closed.close()

    def _capacity(self) -> Capacity:
        if not self.device.has_blocks:
            return NONE
        found = read_capacity(self.passthrough)
        self.passthrough.set_capacity(found.block_size, found.blocks)
        return found

    def _node(self) -> Path:
        """The one that was named, else the best there is."""
        named = Path(os.path.realpath(self.spec.location))
        if named in self.device.other_nodes:
            raise BackendError(f"{self.spec}: its driver passes no commands; use sg:{self.device}")
        if named in self.device.nodes:
            return named
        best = way(self.device)
        if best is None:
            raise BackendError(f"{self.spec} has no node that takes commands; load module sg")
        return best.node

    def _check_access(self, node: Path) -> None:
        found = access(self.device, node)
        if not found.granted or (node == self.device.bsg and not found.raw_io):
            raise BackendError(f"{self.spec}: missing {'; '.join(found.missing)}")
        for sentence in found.missing:
            log.warning("%s: missing %s", self.spec, sentence)

    def _hold(self, stack: ExitStack) -> None:
        """Takes the disk, so that nothing on the host mounts or holds it meanwhile."""
        block = self.device.block
        if block is None or self._force or not block.exists():
            return
        try:
            fd = os.open(block, os.O_RDONLY | os.O_EXCL | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise BackendError(f"{self.spec}: {block}: {error.strerror}") from None
            raise BackendError(
                f"{self.spec} is in use on the host ({use(self.device)}); release it, or add "
                "force=on, which may destroy what is on it"
            ) from None
        stack.callback(os.close, fd)

    def _open(self, node: Path, stack: ExitStack) -> int:
        # Other drivers want it writable for commands that only read, too.
        reads = self.level is Level.READONLY and node == self.device.block
        mode = os.O_RDONLY if reads else os.O_RDWR
        try:
            fd = os.open(node, mode | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise BackendError(f"{self.spec}: {node}: {error.strerror}") from None
        stack.callback(os.close, fd)
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
    page = (limits.block_limits or b"").ljust(_PAGE_BYTES, b"\0")

    def number(field: slice) -> int:
        value = int.from_bytes(page[field])
        return 0 if value == _UNLIMITED else value

    return _dataplane.PassthroughLimits(
        max_bytes=limits.max_sectors.value * SECTOR,
        max_segments=limits.seg_max.value,
        dma_alignment=limits.dma_alignment.value,
        virt_boundary=limits.virt_boundary_mask.value,
        max_cdb=limits.cdb_length.value,
        max_write_same_blocks=number(_WRITE_SAME),
        max_unmap_blocks=number(_UNMAP_BLOCKS),
        max_unmap_descriptors=number(_UNMAP_DESCRIPTORS),
    )
