"""What a program writes to keep the bytes of a disk itself: see `Storage`."""

from __future__ import annotations


class Storage:
    """The bytes of one disk, kept by Python. Served as ``python:MODULE:CLASS`` or
    ``python:FILE.py:CLASS``; the key ``argument=TEXT``, if given, is the class's one argument.

    Methods run on a thread of their own, `threads` of them at a time, and may block. Offsets and
    lengths are in bytes, whole blocks, within `size`, and at most 1 MiB for `read` and `write`.
    What they raise becomes the command's sense data: `vscsi_emu.ScsiError` says which; an
    `OSError` means what it does for a file (EIO is a medium error with the LBA, ENOSPC a lack of
    space, EAGAIN is BUSY); anything else is an INTERNAL TARGET FAILURE, and logged.
    """

    block_size: int = 512
    """Logical block length in bytes, unless the user names another."""
    threads: int = 1
    """How many methods run at a time."""
    size: int
    """In bytes; changed by `resize` only."""

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes, from `offset` on."""
        raise NotImplementedError

    def write(self, offset: int, data: bytes) -> None:
        """Keeps `data`; it need not be durable before `flush`."""
        raise NotImplementedError

    def flush(self) -> None:
        """What was written before is durable on return."""

    def discard(self, offset: int, length: int) -> None:
        """Frees a range, which reads as zeros afterwards. A class that overrides it is served as
        thinly provisioned."""
        raise NotImplementedError

    def resize(self, size: int) -> None:
        """Makes `size` bytes of it (`lun.resize`): what is new reads as zeros, what is beyond the
        end is lost, and the attribute `size` says so on return. No other method runs meanwhile. A
        class that does not override it cannot be resized."""
        raise NotImplementedError

    def close(self) -> None:
        """After the last call. Everything else waits for it."""
