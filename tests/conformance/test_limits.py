"""Limits of a unit: rates that real commands measure, and what task management does to those that
wait."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conformance import cdb
from tests.conformance.cdb import GOOD, Disk
from tests.conformance.task_set import Node
from tests.unit.control.monitor import TIMEOUT, monitored
from tests.unit.transport.harness import attached
from vscsi_emu.config import Config, from_arguments, from_file
from vscsi_emu.control import Client, RpcError
from vscsi_emu.driver.request import Result
from vscsi_emu.driver.virtio_scsi import REQUEST_QUEUE, InFlight, Options
from vscsi_emu.virtio.scsi import Response, TmfType

DEPTH = 8


@dataclass(frozen=True)
class Rig:
    control: Client
    node: Node
    disk: Disk

    def stopped(self) -> list[InFlight[Result]]:
        """READs of which but the first wait for a minute and more."""
        self.control.lun_set("0:0", bps=512, bps_burst=0)
        raw, length = cdb.read_10(0, 64), 64 * 512
        return [self.node.send(raw, data_in_length=length) for _ in range(4)]

    def rate(self, seconds: float, blocks: int = 1, queues: int = 2) -> float:
        """READs a second that end, with `DEPTH` on each queue all the time."""
        device = self.node.device
        items: list[InFlight[Result]] = []
        begin = time.monotonic()
        end, done = begin + seconds, 0
        while True:
            items = [item for item in items if not item.done]
            for queue in range(queues):
                mine = [item for item in items if item.queue == REQUEST_QUEUE + queue]
                for _ in range(DEPTH - len(mine)):
                    raw = cdb.read_10(0, blocks)
                    items.append(self.node.send(raw, data_in_length=blocks * 512, queue=queue))
            first = items[0]
            device.wait(first)
            for queue in range(queues):
                device.reap(REQUEST_QUEUE + queue)
            done += sum(item.done for item in items)
            now = time.monotonic()
            if now >= end:
                device.wait_all(items)
                return done / (now - begin)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    config = from_arguments(["0:0=mem:1M"], socket=str(tmp_path / "hba.sock"), queues=2)
    with rig_of(tmp_path, config) as made:
        yield made


@contextmanager
def rig_of(tmp_path: Path, config: Config) -> Iterator[Rig]:
    with (
        monitored(tmp_path, config) as (server, path),
        Client(path, timeout=TIMEOUT) as control,
        attached(server.sockets[0], Options(queues=2)) as device,
    ):
        yield Rig(control, Node(device), Disk(device, 0, 0).ready())


@pytest.mark.parametrize("limit", [200, 1000])
def test_commands_a_second(rig: Rig, limit: int) -> None:
    state = rig.control.lun_set("0:0", iops=limit, iops_burst=1)
    assert state.iops == limit
    assert rig.rate(1.2) == pytest.approx(limit, rel=0.1)


def test_bytes_a_second(rig: Rig) -> None:
    rig.control.lun_set("0:0", bps="1M", bps_burst=4096)
    assert rig.rate(1.2, blocks=8) == pytest.approx(256, rel=0.1)


def test_a_burst_goes_at_once_after_a_pause(rig: Rig) -> None:
    rig.control.lun_set("0:0", iops=10, iops_burst=20)
    items = [rig.node.send(cdb.read_10(0, 1), data_in_length=512) for _ in range(24)]
    begin = time.monotonic()
    for item in items[:21]:
        assert rig.node.end(item) == (0, GOOD)
    assert time.monotonic() - begin < 1.0
    for item in items[21:]:
        assert rig.node.end(item) == (0, GOOD)
    assert time.monotonic() - begin >= 0.25


def test_what_waits_is_ended_and_set_free_at_once(rig: Rig) -> None:
    items = rig.stopped()
    assert rig.node.end(items[0]) == (0, GOOD)
    # Others than media commands are not counted.
    cdb.expect_good(rig.disk.run(cdb.test_unit_ready()))
    assert rig.node.tmf(TmfType.ABORT_TASK, items[2].tag) == Response.OK
    assert rig.node.end(items[2]) == (Response.ABORTED, 0)
    rig.control.lun_set("0:0", bps=0)
    assert rig.node.end(items[3]) == (0, GOOD)
    assert rig.node.end(items[1]) == (0, GOOD)
    assert rig.control.hba_query().luns[0].bps is None


def test_a_reset_ends_what_waits(rig: Rig) -> None:
    items = rig.stopped()
    assert rig.node.end(items[0]) == (0, GOOD)
    assert rig.node.tmf(TmfType.LOGICAL_UNIT_RESET) == Response.OK
    assert [rig.node.end(item) for item in items[1:]] == [(Response.RESET, 0)] * 3


def test_a_configuration_has_limits_too(tmp_path: Path) -> None:
    file = tmp_path / "hba.toml"
    file.write_text(
        '[[lun]]\nid = "a"\nuri = "mem:1M"\niops = 100\niops-burst = 1\nbps = "8M"\n'
        '[[hba]]\nsocket = "hba.sock"\nqueues = 2\nluns = {"0:0" = "a"}\n'
    )
    with rig_of(tmp_path, from_file(str(file))) as made:
        exported = made.control.hba_export()
        assert made.rate(1.0) == pytest.approx(100, rel=0.1)
    assert "iops = 100" in exported
    assert "bps = 8388608" in exported
    file.write_text(exported)
    assert from_file(str(file)).luns[0].spec.bps == 8 << 20


def test_limits_that_make_no_sense(rig: Rig) -> None:
    for fields, parameter in [({"iops": -1}, "iops"), ({"bps": "fast"}, "bps")]:
        with pytest.raises(RpcError) as caught:
            rig.control.lun_set("0:0", **fields)  # type: ignore[arg-type]
        assert caught.value.parameter == parameter
