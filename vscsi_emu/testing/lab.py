"""A test's surroundings: an HBA in this process, its disks, and guests attached to it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, Self

from vscsi_emu.api import Hba
from vscsi_emu.control.trace import Recent

from .faults import InjectedFault, inject, injected
from .guest import LinuxGuest
from .qemu import QemuGuest
from .uml import UmlGuest

if TYPE_CHECKING:
    from vscsi_emu.driver.host import ScsiHost
    from vscsi_emu.driver.virtio_scsi import Options
    from vscsi_emu.faults.vocabulary import KindName
    from vscsi_emu.journal import Record

_RECORDS: Final = 40
_COMMANDS: Final = 20

Kind = Literal["uml", "qemu"]


@dataclass(frozen=True, slots=True)
class ScsiDisk:
    """A disk of a test's HBA."""

    hba: Hba
    id: str
    """What `Hba.control` calls it."""
    target: int
    lun: int

    @property
    def address(self) -> tuple[int, int]:
        """(target, LUN)."""
        return self.target, self.lun

    @property
    def size(self) -> int:
        """Bytes, now."""
        (state,) = (lun for lun in self.hba.control.hba_query().luns if lun.id == self.id)
        return state.size

    def resize(self, size: int | str) -> None:
        """Another capacity, in bytes or as ``64M``."""
        self.hba.control.lun_resize(lun=self.id, size=str(size))

    def inject(self, kind: KindName, **fields: Any) -> InjectedFault:
        """From now on its commands go wrong: `vscsi_emu.testing.faults.inject`."""
        return inject(self.hba, self.id, kind, **fields)

    def injected(self, kind: KindName, **fields: Any) -> AbstractContextManager[InjectedFault]:
        """As `inject`, until the context is left."""
        return injected(self.hba, self.id, kind, **fields)

    def remove(self) -> None:
        """Unplugs it; what still runs is ended."""
        self.hba.control.lun_remove(lun=[f"{self.target}:{self.lun}"], force=True)

    def __str__(self) -> str:
        """Its address, as guests' ``disk`` and ``sg`` take it."""
        return f"{self.target}:{self.lun}"


class Lab:
    """An HBA, and who uses it. A context manager; leaving it takes everything down.

    with Lab() as lab:
        disk = lab.scsi_disk(size="64M", block_size=4096)
        lab.linux_guest("uml").run(f"mkfs.ext4 $(disk {disk})").check()

    The HBA has one front end at a time, so guests come one after the other.
    """

    def __init__(self, *luns: str, queues: int = 1, workers: int | None = None) -> None:
        """As for `Hba`."""
        self.hba: Final = Hba(*luns, queues=queues, workers=workers)
        self._records: deque[Record] = deque(maxlen=_RECORDS)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(self.hba)
            self.recent = stack.enter_context(Recent(self.hba.service))
            self.hba.call(self._watch)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is not None:
                error.add_note(self.report())
        finally:
            self._stack.close()

    async def _watch(self) -> None:
        self.hba.service.journal.watch(self._records.append)

    @property
    def socket(self) -> Path:
        """Where front ends connect."""
        return self.hba.socket

    def scsi_disk(
        self,
        size: int | str = "64M",
        *,
        block_size: int = 512,
        at: str | None = None,
        uri: str | None = None,
        faults: Sequence[KindName | Mapping[str, Any]] = (),
        **keys: str | int | bool,
    ) -> ScsiDisk:
        """Plugs a disk in: of memory, or what `uri` names. `at`: TARGET:LUN, by default LUN 0 of
        the first target that has none. `keys` are those of ``--lun``, with underscores
        (`write_cache` has the name ``cache``). `faults`: what goes wrong from the beginning, kinds
        or `{"kind": kind, **fields}` as `ScsiDisk.inject` takes them. `OperationError`."""
        parts = [uri or f"mem:{size}", f"block-size={block_size}"]
        parts += [f"{key.replace('_', '-')}={_value(value)}" for key, value in keys.items()]
        text = ",".join(part.replace(",", ",,") for part in parts)
        (added,) = self.hba.control.lun_add(luns=[f"{at}={text}" if at else text])
        target, _, lun = added.lun.partition(":")
        disk = ScsiDisk(self.hba, added.id, int(target), int(lun))
        for fault in faults:
            disk.inject(**({"kind": fault} if isinstance(fault, str) else fault))
        return disk

    def builtin_guest(self, options: Options | None = None) -> ScsiHost:
        """Our own driver in this process, the disks that are there now found; until the end."""
        return self._stack.enter_context(self.hba.driver(options))

    def linux_guest(
        self, kind: Kind = "uml", *, modules: Sequence[str] = (), memory_mib: int = 512
    ) -> LinuxGuest:
        """A Linux kernel that is attached when it runs; `modules` are further ones of it to load.
        `GuestUnavailable` where it cannot run."""
        guest: LinuxGuest
        if kind == "uml":
            guest = UmlGuest([self.socket], modules=modules, memory_mib=memory_mib)
        elif kind == "qemu":
            space = self.hba.device.config
            properties = (
                f"num_queues={space.num_queues},max_sectors={space.max_sectors},"
                f"cmd_per_lun={space.cmd_per_lun}"
            )
            guest = QemuGuest(
                [self.socket], properties=properties, modules=modules, memory_mib=memory_mib
            )
        else:
            raise ValueError(f"no guest is called {kind!r}; use 'uml' or 'qemu'")
        guest.require()
        return guest

    def report(self) -> str:
        """For people, after a failure: what there is, and what happened last."""
        state = self.hba.control.hba_query()
        (hba,) = state.hbas
        lines = [f"{hba.name}, {'' if hba.connected else 'not '}connected"]
        lines += [
            f"  {address} {lun.id}: {lun.uri}, {lun.size} bytes in blocks of {lun.block_size}"
            f"{', read-only' if lun.read_only else ''}{', paused' if lun.paused else ''}"
            for lun in state.luns
            for address in lun.at.get(hba.name, ())
        ]
        lines += [_line(record) for record in list(self._records)]
        lines += [f"  {command}" for command in self.recent(_COMMANDS)]
        return "\n".join(lines)


def _value(value: str | int | bool) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value)


def _line(record: Record) -> str:
    when = time.strftime("%H:%M:%S", time.localtime(record.time))
    milliseconds = int(record.time * 1000) % 1000
    where = record.lun or record.unit or "-"
    return f"  {when}.{milliseconds:03} {record.kind} {where}: {record.text}"
