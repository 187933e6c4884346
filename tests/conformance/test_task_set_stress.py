"""Everything at once: whatever is sent is answered, whatever else happens. Seeded."""

from __future__ import annotations

import random
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.conformance import cdb
from tests.conformance.task_set import (
    ACA,
    ACA_ACTIVE,
    BAD_LBA,
    BUSY,
    HEAD,
    ORDERED,
    SIMPLE,
    TASK_ABORTED,
    TASK_SET_FULL,
    Node,
    read,
    rig,
)
from vscsi_emu.driver.request import Result
from vscsi_emu.driver.virtio_scsi import REQUEST_QUEUE, InFlight
from vscsi_emu.virtio.scsi import Response, TmfType, encode_lun

SECONDS = 2.0
MOST = 40
"""Commands of a node in flight."""
STATUSES = {
    cdb.GOOD,
    cdb.CHECK_CONDITION,
    BUSY,
    ACA_ACTIVE,
    TASK_SET_FULL,
    TASK_ABORTED,
}
RESPONSES = {Response.OK, Response.ABORTED, Response.RESET}


class Sender:
    """A node that sends what chance says, and checks all that comes back."""

    def __init__(self, node: Node, luns: tuple[int, ...], chance: random.Random) -> None:
        self.node, self.device = node, node.device
        self.luns, self.chance = luns, chance
        self.commands: list[InFlight[Result]] = []
        self.functions: list[InFlight[int]] = []
        self.seen: Counter[tuple[int, int]] = Counter()

    def step(self) -> None:
        if len(self.commands) < MOST:
            self.send()
        if self.chance.random() < 0.04 and len(self.functions) < 4:
            self.manage()
        self.take()

    def send(self) -> None:
        pick = self.chance.random()
        naca = self.chance.random() < 0.1
        attribute = self.chance.choices([SIMPLE, ORDERED, HEAD, ACA], [70, 12, 12, 6])[0]
        lba = self.chance.randrange(2000)
        raw, out, length = read(lba, naca=naca), b"", 512
        if pick < 0.1:
            raw = read(BAD_LBA, naca=naca)
        elif pick < 0.3:
            raw, length = cdb.test_unit_ready(), 0
        elif pick < 0.5:
            raw, out, length = cdb.write_16(lba, 1), bytes(512), 0
        elif pick < 0.6:
            # COMPARE AND WRITE: alone on the medium.
            raw = bytes([0x89, 0]) + lba.to_bytes(8) + bytes(3) + b"\x01" + bytes(2)
            out, length = bytes(1024), 0
        elif pick < 0.62:
            raw, out, length = bytes([0x15, 0x10, 0, 0, 16, 0]), self.control_page(), 0
        self.commands.append(
            self.node.send(
                raw,
                attribute,
                data_out=out,
                data_in_length=length,
                queue=self.chance.randrange(2),
                lun=self.chance.choice(self.luns),
            )
        )

    def control_page(self) -> bytes:
        flags = self.chance.choice([0x00, 0x10]) | self.chance.choice([0, 1, 3]) << 1
        tas = self.chance.choice([0, 0x40])
        return bytes(4) + bytes([0x0A, 0x0A, 0x02, flags, 0, tas]) + bytes(6)

    def manage(self) -> None:
        function = self.chance.choice(list(TmfType))
        lun = encode_lun(0, self.chance.choice(self.luns))
        tag = self.chance.choice(self.commands).tag if self.commands else 0
        self.functions.append(self.device.submit_task_management(function, lun, tag))

    def clear_aca(self, lun: int) -> None:
        function = self.device.submit_task_management(TmfType.CLEAR_ACA, encode_lun(0, lun))
        self.functions.append(function)

    def take(self) -> None:
        for queue in (0, REQUEST_QUEUE, REQUEST_QUEUE + 1):
            self.device.reap(queue)
        for item in [item for item in self.commands if item.done]:
            self.commands.remove(item)
            self.check(item.parse(item.ticket.reply))
        for function in [item for item in self.functions if item.done]:
            self.functions.remove(function)
            assert function.parse(function.ticket.reply) in {
                Response.OK,
                Response.FUNCTION_SUCCEEDED,
                Response.FUNCTION_REJECTED,
            }

    def check(self, result: Result) -> None:
        self.seen[result.response, result.status] += 1
        assert result.response in RESPONSES
        assert result.status in STATUSES
        assert (result.status == cdb.CHECK_CONDITION) == bool(result.sense)


@pytest.mark.normative("scsi.req.d10", "scsi.ctl.d8")
@pytest.mark.parametrize(("seed", "queue_depth"), [(1, None), (2, None), (3, 24)])
def test_nothing_hangs(tmp_path: Path, seed: int, queue_depth: int | None) -> None:
    chance = random.Random(seed)
    with rig(tmp_path, queue_depth=queue_depth) as shared:
        shared.release()
        senders = [Sender(shared.a, (0, 5), chance), Sender(shared.b, (0,), chance)]
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            for sender in senders:
                sender.step()
        # No more resets by chance: what an ACA condition holds goes on when it is cleared.
        for sender in senders:
            for lun in sender.luns:
                sender.clear_aca(lun)
        until = time.monotonic() + 20
        while any(sender.commands or sender.functions for sender in senders):
            assert time.monotonic() < until, "something is never answered"
            for sender in senders:
                sender.take()
                # Commands that were on their way may have established another one.
                if not sender.functions and sender.commands:
                    sender.clear_aca(chance.choice(sender.luns))
        seen = senders[0].seen + senders[1].seen
        assert {response for response, _ in seen} == RESPONSES
        likely = {cdb.GOOD, cdb.CHECK_CONDITION, BUSY, ACA_ACTIVE}
        likely |= {TASK_SET_FULL} if queue_depth else set()
        assert {status for _, status in seen} >= likely
        assert not shared.server.do(lambda: shared.unit.data_plane.aca)
        for node in (shared.a, shared.b):
            node.attentions()
            item = node.send(read(), ORDERED, data_in_length=512)
            cdb.expect_good(node.device.wait(item))
