"""Self-tests of a logical unit, and what came of the latest of them (SPC-4 5.15, 7.3.16)."""

from __future__ import annotations

import asyncio
import enum
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vscsi_emu import _dataplane
from vscsi_emu.scsi.sense import Asc, ScsiError, SenseKey

if TYPE_CHECKING:
    from vscsi_emu.scsi.unit import LogicalUnit

REMEMBERED: Final = 20
"""Results."""
NOWHERE: Final = 0xFFFF_FFFF_FFFF_FFFF
"""ADDRESS OF FIRST FAILURE where there is none."""
_SECONDS_AN_HOUR: Final = 3600


class SelfTestCode(enum.IntEnum):
    """SELF-TEST CODE of SEND DIAGNOSTIC (SPC-4 6.42)."""

    NONE = 0b000
    BACKGROUND_SHORT = 0b001
    BACKGROUND_EXTENDED = 0b010
    ABORT_BACKGROUND = 0b100
    FOREGROUND_SHORT = 0b101
    FOREGROUND_EXTENDED = 0b110

    @property
    def background(self) -> bool:
        return self in (SelfTestCode.BACKGROUND_SHORT, SelfTestCode.BACKGROUND_EXTENDED)

    @property
    def extended(self) -> bool:
        return self in (SelfTestCode.BACKGROUND_EXTENDED, SelfTestCode.FOREGROUND_EXTENDED)


class Result(enum.IntEnum):
    """SELF-TEST RESULTS."""

    PASSED = 0x0
    ABORTED_BY_SEND_DIAGNOSTIC = 0x1
    ABORTED = 0x2
    UNABLE = 0x3
    FIRST_SEGMENT_FAILED = 0x5
    SECOND_SEGMENT_FAILED = 0x6
    IN_PROGRESS = 0xF


@dataclass(slots=True)
class SelfTest:
    """One of them. First segment: what was written is made durable. Second, of an extended one:
    the whole medium is read."""

    code: SelfTestCode
    result: Result = Result.IN_PROGRESS
    hours: int = 0
    """ACCUMULATED POWER ON HOURS when it ended."""
    address: int = NOWHERE
    key: int = SenseKey.NO_SENSE
    asc: int = Asc.NO_ADDITIONAL_SENSE


class SelfTests:
    """Of one unit. One runs at a time."""

    def __init__(self, unit: LogicalUnit) -> None:
        self._unit = unit
        self._latest: deque[SelfTest] = deque(maxlen=REMEMBERED)
        self._scan: _dataplane.Scan | None = None
        self._running: SelfTest | None = None

    def __iter__(self) -> Iterator[SelfTest]:
        """The latest first."""
        return iter(self._latest)

    @property
    def in_progress(self) -> ScsiError | None:
        """What REQUEST SENSE says of the one that runs."""
        if self._running is None:
            return None
        progress = self._scan.progress if self._scan is not None else 0
        return ScsiError(SenseKey.NOT_READY, Asc.SELF_TEST_IN_PROGRESS, progress=progress)

    @property
    def in_foreground(self) -> ScsiError | None:
        """Why other commands are not processed meanwhile."""
        if self._running is None or self._running.code.background:
            return None
        return self.in_progress

    async def run(self, code: SelfTestCode) -> None:
        """`ScsiError` HARDWARE ERROR if it fails."""
        test = self._running = SelfTest(code)
        self._latest.appendleft(test)
        self._unit.update_gates()
        try:
            await self._test(test)
        except asyncio.CancelledError:
            self.abort()
            raise
        finally:
            if test.result is Result.IN_PROGRESS:
                test.result = Result.PASSED
            test.hours = int(self._unit.powered_on // _SECONDS_AN_HOUR)
            if self._running is test:
                self._running = self._scan = None
                self._unit.update_gates()
        if test.result is not Result.PASSED:
            raise ScsiError(SenseKey.HARDWARE_ERROR, Asc.LOGICAL_UNIT_FAILED_SELF_TEST)

    def abort(self, result: Result = Result.ABORTED) -> bool:
        """Ends the one that runs; whether there was one."""
        if self._running is None:
            return False
        self._running.result = result
        if self._scan is not None:
            self._scan.cancel()
        self._running = self._scan = None
        self._unit.update_gates()
        return True

    async def _test(self, test: SelfTest) -> None:
        try:
            await self._unit.flush()
        except ScsiError as error:
            self._failed(test, Result.FIRST_SEGMENT_FAILED, error.key, error.code)
            return
        if test.code.extended and test is self._running:
            await self._read(test)

    async def _read(self, test: SelfTest) -> None:
        scan = self._scan = _dataplane.Scan(self._unit.data_plane)
        try:
            bad = await asyncio.to_thread(scan.run)
        except InterruptedError:
            return
        except OSError:
            self._failed(test, Result.UNABLE, SenseKey.HARDWARE_ERROR, Asc.INTERNAL_TARGET_FAILURE)
            return
        if bad is not None:
            address, key, asc = bad
            self._failed(test, Result.SECOND_SEGMENT_FAILED, key, asc, address)

    @staticmethod
    def _failed(test: SelfTest, result: Result, key: int, asc: int, address: int = NOWHERE) -> None:
        if test.result is Result.IN_PROGRESS:
            test.result, test.key, test.asc, test.address = result, key, asc, address
