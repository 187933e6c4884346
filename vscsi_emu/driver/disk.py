"""A disk as a block layer uses it: blocks in and out, cut to what the device takes (SBC-5)."""

import struct
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

from vscsi_emu.driver.dma import DmaExhausted
from vscsi_emu.driver.request import Result
from vscsi_emu.driver.scan import CHECK_CONDITION, UNIT_ATTENTION, retried, sense_key
from vscsi_emu.driver.virtio_scsi import REQUEST_QUEUE, InFlight, VirtioScsi

_CAPACITY_LENGTH: Final = 32
_RETRIES: Final = 8

_Submit = Callable[[int, int, int], InFlight[Result]]
"""(LBA, blocks, queue) → a command on its way."""


_Retry = Callable[[], InFlight[Result]]


class DiskError(RuntimeError):
    """A command that moved no data, with what the device said."""


class Disk:
    """One logical unit. `blocks` of `block_size` bytes, as of the last `refresh`."""

    def __init__(self, device: VirtioScsi, target: int, lun: int) -> None:
        self.device = device
        self.target = target
        self.lun = lun
        self.blocks = 0
        self.block_size = 0
        self.refresh()

    def refresh(self) -> None:
        """Reads the capacity (READ CAPACITY (16))."""
        cdb = struct.pack(">BBQIBB", 0x9E, 0x10, 0, _CAPACITY_LENGTH, 0, 0)
        result = retried(self.device, self.target, self.lun, cdb, _CAPACITY_LENGTH)
        self._expect_good(result, "READ CAPACITY")
        last, self.block_size = struct.unpack_from(">QI", result.data)
        self.blocks = last + 1

    def read(self, lba: int, blocks: int) -> bytes:
        def submit(at: int, count: int, queue: int) -> InFlight[Result]:
            length = count * self.block_size
            return self._submit(_cdb(0x88, at, count), queue, data_in_length=length)

        return b"".join(result.data for result in self._run("READ", lba, blocks, submit))

    def write(self, lba: int, data: bytes) -> None:
        """`data`: whole blocks."""
        blocks, rest = divmod(len(data), self.block_size)
        if rest:
            raise ValueError(f"{len(data)} bytes are not blocks of {self.block_size}")

        def submit(at: int, count: int, queue: int) -> InFlight[Result]:
            start = (at - lba) * self.block_size
            piece = data[start : start + count * self.block_size]
            return self._submit(_cdb(0x8A, at, count), queue, data_out=piece)

        for _ in self._run("WRITE", lba, blocks, submit):
            pass

    def flush(self) -> None:
        """SYNCHRONIZE CACHE (16) of all blocks."""
        result = retried(self.device, self.target, self.lun, _cdb(0x91, 0, 0), 0)
        self._expect_good(result, "SYNCHRONIZE CACHE")

    def _submit(
        self, cdb: bytes, queue: int, *, data_out: bytes = b"", data_in_length: int = 0
    ) -> InFlight[Result]:
        return self.device.submit(
            self.target,
            self.lun,
            cdb,
            data_out=data_out,
            data_in_length=data_in_length,
            queue=queue,
        )

    def _run(self, what: str, lba: int, blocks: int, submit: _Submit) -> Iterator[Result]:
        """Pieces go out on all request queues in turn, as many as there is memory for; results
        come in order."""
        if not 0 <= lba <= lba + blocks <= self.blocks:
            raise ValueError(f"blocks {lba} to {lba + blocks} are not all on this disk")
        step = self.device.max_transfer(self.block_size)
        queues = len(self.device.queues) - REQUEST_QUEUE
        waiting: deque[tuple[InFlight[Result], _Retry, str]] = deque()
        for number, at in enumerate(range(lba, lba + blocks, step)):
            count = min(step, lba + blocks - at)
            again = partial(submit, at, count, REQUEST_QUEUE + number % queues)
            while (item := _unless_exhausted(again, bool(waiting))) is None:
                yield self._finish(*waiting.popleft())
            waiting.append((item, again, f"{what} of {count} blocks from {at}"))
        while waiting:
            yield self._finish(*waiting.popleft())

    def _finish(self, item: InFlight[Result], again: _Retry, what: str) -> Result:
        result = self.device.wait(item)
        for _ in range(_RETRIES):
            if not _attention(result):
                break
            result = self.device.wait(again())
        self._expect_good(result, what)
        return result

    def _expect_good(self, result: Result, what: str) -> None:
        if result.response or result.status:
            raise DiskError(
                f"{self.target}:{self.lun}: {what}: response {result.response}, "
                f"status {result.status:#04x}, sense {result.sense.hex() or 'none'}"
            )


def _unless_exhausted(submit: _Retry, others: bool) -> InFlight[Result] | None:
    """None: guest memory is full, but `others` will give theirs back."""
    try:
        return submit()
    except DmaExhausted:
        if not others:
            raise
        return None


def _attention(result: Result) -> bool:
    return result.status == CHECK_CONDITION and sense_key(result.sense) == UNIT_ATTENTION


def _cdb(opcode: int, lba: int, blocks: int) -> bytes:
    """READ, WRITE or SYNCHRONIZE CACHE (16)."""
    return struct.pack(">BBQIBB", opcode, 0, lba, blocks, 0, 0)
