"""A driver's error handling under test: a disk stops answering, and comes back at the first, second
or third step of the driver's recovery, or never. The HBA's log says which steps it saw.

pytest examples/test_error_path.py
"""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from vscsi_emu.driver.attach import attach
from vscsi_emu.driver.request import Result
from vscsi_emu.virtio.scsi import TmfType, encode_lun

TEST_UNIT_READY = bytes(6)
STEPS = ("abort", "unit reset", "host reset")
RESET = b"\x29\x03"  # BUS DEVICE RESET FUNCTION OCCURRED, which goes before a loss of the nexus
REPORTED = {"abort": b"", "unit reset": RESET, "host reset": RESET}
"""ASC and ASCQ of the first answer afterwards."""


class Offline(Exception):
    """All was tried."""


class ErrorHandler:
    """What is tested: Linux's escalation, in small. After each step the unit must answer."""

    def __init__(self, socket: Path, timeout: float, done: Callable[[str], None]) -> None:
        self.socket, self.timeout, self.done = socket, timeout, done
        self.session = ExitStack()
        self.reset()

    def execute(self, cdb: bytes) -> Result:
        item = self.device.submit(0, 0, cdb)
        try:
            return self.device.wait(item, self.timeout)
        except TimeoutError:
            pass
        self.step("abort", lambda: self.manage(TmfType.ABORT_TASK, item.tag))
        return self.recover()

    def recover(self) -> Result:
        if (answer := self.ask()) is None:
            self.step("unit reset", lambda: self.manage(TmfType.LOGICAL_UNIT_RESET))
        if answer is None and (answer := self.ask()) is None:
            self.step("host reset", self.reset)
        if answer is None and (answer := self.ask()) is None:
            raise Offline
        return answer

    def step(self, name: str, action: Callable[[], object]) -> None:
        action()
        self.done(name)

    def manage(self, function: TmfType, tag: int = 0) -> None:
        self.device.wait(self.device.submit_task_management(function, encode_lun(0, 0), tag))

    def reset(self) -> None:
        """Starts over: all that was in flight is gone, and the HBA sees a loss of the nexus."""
        self.session.close()
        self.device = self.session.enter_context(attach(self.socket)).device

    def ask(self) -> Result | None:
        try:
            return self.device.wait(self.device.submit(0, 0, TEST_UNIT_READY), self.timeout)
        except TimeoutError:
            return None


@pytest.mark.hba("mem:1M")
@pytest.mark.parametrize("cured_by", [*STEPS, None])
def test_each_step_is_taken_until_one_helps(hba, cured_by):
    taken = []

    def done(step):
        taken.append(step)
        if step == cured_by:
            hba.control.lun_resume(lun="0:0")

    handler = ErrorHandler(hba.socket, 0.3, done)
    with handler.session:
        handler.execute(TEST_UNIT_READY)  # takes the unit attention of a new nexus
        hba.control.lun_pause(lun="0:0")  # from now on, nothing is answered
        if cured_by is None:
            with pytest.raises(Offline):
                handler.execute(TEST_UNIT_READY)
        else:
            answer = handler.execute(TEST_UNIT_READY)
            assert answer.sense[12:14] == REPORTED[cured_by]

    steps = STEPS[: STEPS.index(cured_by) + 1] if cured_by else STEPS
    assert taken == list(steps)
    seen = [record.function for record in hba.control.tmf_log()]
    assert seen == ["ABORT_TASK", "LOGICAL_UNIT_RESET"][: len(steps)]
