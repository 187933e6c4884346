"""What a unit's blocks hold, without any command."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from vscsi_emu import _dataplane
from vscsi_emu.scsi import LogicalUnit


@contextmanager
def _scratch(unit: LogicalUnit) -> Iterator[tuple[int, _dataplane.Lu]]:
    """A file as large as the unit: its descriptor, and the same as a unit's data plane."""
    size = unit.data_plane.engine.size
    fd = os.memfd_create("scratch")
    try:
        os.ftruncate(fd, size)
        engine = _dataplane.Engine.file(fd, size)
        yield fd, _dataplane.Lu(engine, unit.data_plane.policy, bytes(256))
    finally:
        os.close(fd)


def memory_write(unit: LogicalUnit, data: bytes, offset: int = 0) -> None:
    """In bytes."""
    with _scratch(unit) as (fd, scratch):
        os.pwrite(fd, data, offset)
        run = (offset, offset, len(data))
        _dataplane.Copy(unit.data_plane, scratch, [run], durable=False).run()


def memory_read(unit: LogicalUnit) -> bytes:
    """All of it."""
    size = unit.data_plane.engine.size
    with _scratch(unit) as (fd, scratch):
        _dataplane.Copy(scratch, unit.data_plane, [(0, 0, size)], durable=False).run()
        return os.pread(fd, size, 0)
