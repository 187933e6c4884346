"""stats.query and top, against what a driver did."""

from __future__ import annotations

import io
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from tests.unit.control.monitor import TIMEOUT, monitored
from tests.unit.transport.harness import Server, attached
from vscsi_emu.cli.top import render, show_latency, top
from vscsi_emu.config import from_arguments
from vscsi_emu.control import Client
from vscsi_emu.control.rates import Interval, between
from vscsi_emu.control.statistics import percentile
from vscsi_emu.driver.virtio_scsi import Options, VirtioScsi

READ = bytes.fromhex("28000000000000000800")
WRITE = bytes.fromhex("2a000000000000000100")
BEYOND = bytes.fromhex("28007fffffff00000100")
TEST_UNIT_READY = bytes(6)
INQUIRY = bytes.fromhex("120000002400")
BLOCK = 512


@pytest.fixture
def running(tmp_path: Path) -> Iterator[tuple[Server, Client, VirtioScsi, str]]:
    luns = ["0:0=mem:1M", "3:2=null:1M"]
    config = from_arguments(luns, socket=str(tmp_path / "hba.sock"), queues=2)
    with (
        monitored(tmp_path, config) as (server, path),
        Client(path, timeout=TIMEOUT) as client,
        attached(server.sockets[0], Options(queues=None)) as driver,
    ):
        for target, lun in ((0, 0), (3, 2)):  # POWER ON
            driver.execute(target, lun, TEST_UNIT_READY)
        yield server, client, driver, path


def work(driver: VirtioScsi) -> None:
    for _ in range(5):
        driver.execute(0, 0, READ, data_in_length=8 * BLOCK)
    for _ in range(3):
        driver.execute(0, 0, WRITE, data_out=bytes(BLOCK), queue=3)
    driver.execute(3, 2, BEYOND, data_in_length=BLOCK)
    driver.execute(3, 7, TEST_UNIT_READY)


def test_commands_are_counted_by_lun_class_and_queue(
    running: tuple[Server, Client, VirtioScsi, str],
) -> None:
    server, client, driver, _ = running
    work(driver)
    statistics = client.stats_query()
    disk, null = statistics.luns
    assert (disk.hba, disk.lun, null.lun) == (server.hba.name, "0:0", "3:2")
    assert (disk.read.ops, disk.read.bytes) == (5, 5 * 8 * BLOCK)
    assert (disk.write.ops, disk.write.bytes) == (3, 3 * BLOCK)
    assert disk.other.ops == 1
    assert disk.statuses == {"CHECK_CONDITION": 1}
    assert (null.read.ops, null.read.bytes) == (1, 0)
    assert null.statuses == {"CHECK_CONDITION": 2}
    assert disk.responses == null.responses == {}
    assert disk.in_flight == null.in_flight == 0
    first, second = statistics.queues
    assert (first.queue, first.read.ops, first.write.ops, first.other.ops) == (2, 6, 0, 3)
    assert (second.queue, second.read.ops, second.write.ops, second.other.ops) == (3, 0, 3, 0)


def test_errors_are_counted_by_queue(running: tuple[Server, Client, VirtioScsi, str]) -> None:
    _, client, driver, _ = running
    before = client.stats_query(histograms=True)
    for queue in (2, 3, 3):
        driver.execute(0, 0, BEYOND, data_in_length=BLOCK, queue=queue)
    driver.execute(9, 0, TEST_UNIT_READY, queue=3)
    after = client.stats_query(histograms=True)
    first, second = after.queues
    # POWER ON of both LUNs came through the first queue.
    assert (first.statuses, first.responses) == ({"CHECK_CONDITION": 3}, {})
    assert (second.statuses, second.responses) == ({"CHECK_CONDITION": 2}, {"BAD_TARGET": 1})
    assert [queue.errors for queue in between(before, after).queues] == [1, 3]


def test_commands_for_no_lun_are_counted(
    running: tuple[Server, Client, VirtioScsi, str],
) -> None:
    server, client, driver, _ = running
    before = client.stats_query(histograms=True)
    (none,) = before.strays
    assert (none.hba, none.other.ops, none.other.p50) == (server.hba.name, 0, None)
    driver.execute(3, 7, TEST_UNIT_READY)  # LOGICAL UNIT NOT SUPPORTED
    driver.execute(3, 7, INQUIRY, data_in_length=36)
    driver.execute(9, 0, TEST_UNIT_READY)
    after = client.stats_query(histograms=True)
    (none,) = after.strays
    assert (none.other.ops, none.other.bytes, none.in_flight) == (3, 36, 0)
    assert none.statuses == {"CHECK_CONDITION": 1}
    assert none.responses == {"BAD_TARGET": 1}
    assert [lun.other for lun in after.luns] == [lun.other for lun in before.luns]
    (shown,) = between(before, after).strays
    assert (shown.name, shown.errors) == ("none", 2)
    assert shown.other_iops * between(before, after).seconds == pytest.approx(3)


def test_percentiles_agree_with_the_histogram(
    running: tuple[Server, Client, VirtioScsi, str],
) -> None:
    _, client, driver, _ = running
    work(driver)
    disk = client.stats_query(histograms=True).luns[0]
    assert disk.read.latencies is not None
    assert sum(count for _, count in disk.read.latencies) == disk.read.ops
    bounds = [bound for bound, _ in disk.read.latencies]
    assert bounds == sorted(bounds)
    assert disk.read.p999 == bounds[-1]
    assert disk.read.p50 in bounds
    # Commands of a memory disk: some time, and less than the test waits.
    assert 0 < bounds[-1] < TIMEOUT * 1e9


def test_a_command_that_waits_is_in_flight_and_its_gate_is_closed(
    running: tuple[Server, Client, VirtioScsi, str],
) -> None:
    _, client, driver, _ = running
    client.lun_pause(lun="0:0")
    command = driver.submit(0, 0, READ, data_in_length=8 * BLOCK)
    deadline = time.monotonic() + TIMEOUT
    while client.stats_query().luns[0].in_flight == 0:
        assert time.monotonic() < deadline
    disk, null = client.stats_query().luns
    assert (disk.in_flight, disk.pending) == (1, 1)
    assert disk.closed == ["read", "write", "media"]
    assert (null.in_flight, null.closed) == (0, [])
    client.lun_resume(lun="0:0")
    driver.wait(command)
    slow = client.stats_query().luns[0]
    assert (slow.in_flight, slow.closed, slow.read.ops) == (0, [], 1)


def test_percentiles_are_those_of_a_sorted_list() -> None:
    draw = random.Random(6)
    values = [draw.randrange(1000) for _ in range(999)]
    latencies = {value: values.count(value) for value in values}
    for part in (0.5, 0.9, 0.99, 0.999, 1.0):
        at = max(0, -(-int(part * 1000) * len(values) // 1000) - 1)
        assert percentile(latencies, part) == sorted(values)[at]
    assert percentile({}, 0.5) is None


def test_rates_are_of_the_interval_only(
    running: tuple[Server, Client, VirtioScsi, str],
) -> None:
    _, client, driver, _ = running
    work(driver)
    before = client.stats_query(histograms=True)
    for _ in range(4):
        driver.execute(0, 0, WRITE, data_out=bytes(BLOCK))
    driver.execute(0, 0, BEYOND, data_in_length=BLOCK)
    shown = between(before, client.stats_query(histograms=True))
    disk, null = shown.luns
    assert disk.write_iops * shown.seconds == pytest.approx(4)
    assert disk.read_iops * shown.seconds == pytest.approx(1)
    assert disk.write_bytes * shown.seconds == pytest.approx(4 * BLOCK)
    assert disk.errors == 1
    assert (null.read_iops, null.p50) == (0, None)
    assert [queue.write_iops * shown.seconds for queue in shown.queues] == pytest.approx([4, 0])


def test_top_shows_every_lun_and_queue(running: tuple[Server, Client, VirtioScsi, str]) -> None:
    _, _, driver, path = running
    work(driver)
    arguments = ["--monitor", path, "--once", "--interval", "0.1"]
    text = CliRunner().invoke(top, arguments, env={"COLUMNS": "160"})
    assert text.exit_code == 0, text.output
    assert "0:0" in text.output
    assert "3:2" in text.output
    assert "p99.9" in text.output
    line = CliRunner().invoke(top, [*arguments, "--json"])
    shown = json.loads(line.output)
    assert [lun["name"] for lun in shown["luns"]] == ["0:0", "3:2"]
    assert [queue["name"] for queue in shown["queues"]] == ["2", "3"]
    assert [stray["name"] for stray in shown["strays"]] == ["none"]


def test_top_shows_commands_for_no_lun_where_there_are_any(
    running: tuple[Server, Client, VirtioScsi, str],
) -> None:
    _, client, driver, _ = running
    before = client.stats_query(histograms=True)
    quiet = between(before, client.stats_query(histograms=True))
    driver.execute(3, 7, TEST_UNIT_READY)
    busy = between(before, client.stats_query(histograms=True))
    assert [rows(shown).count("none") for shown in (quiet, busy)] == [0, 1]
    assert rows(busy).count("errors") == 2


def rows(shown: Interval) -> str:
    console = Console(width=160, file=io.StringIO())
    with console.capture() as captured:
        console.print(render(shown))
    return captured.get()


def test_top_says_that_nobody_is_there(tmp_path: Path) -> None:
    result = CliRunner().invoke(top, ["--monitor", str(tmp_path / "no")])
    assert result.exit_code == 1
    assert "nobody listens" in result.output


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [(None, "-"), (63, "63 ns"), (1023, "1.02 µs"), (12_345_678, "12.3 ms"), (2e9, "2 s")],
)
def test_latencies_are_short(nanoseconds: int | None, text: str) -> None:
    assert show_latency(nanoseconds) == text
