"""Which of the host's figures is the limit."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Any

import pytest

from vscsi_emu.host.answers import Answers
from vscsi_emu.host.devices import devices
from vscsi_emu.host.limits import Candidate, QueueLimits, queue_limits

from .machine import Machine


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Answers:
    """What nodes and device say: nothing at first."""
    said = Answers(block_size=512)
    monkeypatch.setattr("vscsi_emu.host.limits.ask", lambda device, commands: said)
    return said


def limits(machine: Machine, **device: Any) -> QueueLimits:
    machine.device("0:0:0:0", **device)
    return queue_limits(devices(machine.roots)[0])


def page(blocks: int) -> bytes:
    return struct.pack(">BBHII52x", 0, 0xB0, 60, 0, blocks)


@pytest.mark.parametrize(
    ("queue", "value", "source"),
    [
        ({}, 2560, "queue/max_sectors_kb"),
        ({"max_sectors_kb": 4}, 8, "queue/max_sectors_kb"),
        ({"max_hw_sectors_kb": 120}, 240, "queue/max_hw_sectors_kb"),
        ({"max_segments": 7}, 7 * mmap.PAGESIZE // 512, "as many segments of one page"),
    ],
)
def test_the_least_of_sysfs_is_max_sectors(
    machine: Machine, answers: Answers, queue: dict[str, int], value: int, source: str
) -> None:
    found = limits(machine, queue=queue).max_sectors
    assert found.value == value
    assert found.source.startswith(source)
    assert Candidate(found.value, found.source) in found.candidates


@pytest.mark.parametrize(
    ("answer", "value", "source"),
    [
        ({"block_sectors": 9}, 9, "BLKSECTGET {dev}/sda"),
        ({"block_sectors": 65535, "block_bytes": 1 << 16}, 128, "SG_GET_RESERVED_SIZE {dev}/sda"),
        ({"sg_bytes": 8192}, 16, "BLKSECTGET {dev}/sg0"),
        ({"bsg_bytes": 4096}, 8, "SG_GET_RESERVED_SIZE {dev}/bsg/0:0:0:0"),
        ({"page": page(64), "page_source": "x"}, 64, "MAXIMUM TRANSFER LENGTH, x"),
        ({"page": page(8), "block_size": 4096}, 64, "MAXIMUM TRANSFER LENGTH, "),
        ({"page": page(0)}, 2560, "queue/max_sectors_kb"),
        ({"sg_reserved": 512}, 2560, "queue/max_sectors_kb"),
    ],
)
def test_what_nodes_and_device_say_counts(
    machine: Machine, answers: Answers, answer: dict[str, Any], value: int, source: str
) -> None:
    for name, said in answer.items():
        setattr(answers, name, said)
    found = limits(machine).max_sectors
    assert (found.value, found.source) == (value, source.format(dev=machine.roots.dev))


def test_a_short_that_is_full_is_no_limit(machine: Machine, answers: Answers) -> None:
    answers.block_sectors = 65535
    found = limits(machine, queue={"max_sectors_kb": 1 << 20}, host={"sg_tablesize": 65535})
    shown = Candidate(65535, f"BLKSECTGET {machine.roots.dev}/sda", binds=False)
    assert shown in found.max_sectors.candidates


@pytest.mark.parametrize(
    ("queue", "host", "sg", "value"),
    [
        ({}, {}, None, 2048),
        ({"max_segments": 168}, {}, None, 168),
        ({}, {"sg_tablesize": 1}, 9, 1),
        ({}, {}, 64, 64),
    ],
)
def test_segments(
    machine: Machine,
    answers: Answers,
    queue: dict[str, int],
    host: dict[str, int],
    sg: int | None,
    value: int,
) -> None:
    answers.sg_segments = sg
    assert limits(machine, queue=queue, host=host).seg_max.value == value


@pytest.mark.parametrize(
    ("depth", "host", "value", "source"),
    [
        (254, {}, 254, "0:0:0:0/queue_depth"),
        (254, {"can_queue": 30}, 30, "host0/can_queue"),
        (64, {"cmd_per_lun": 1}, 64, "0:0:0:0/queue_depth"),
    ],
)
def test_the_depth_is_the_devices_not_what_its_driver_begins_with(
    machine: Machine, answers: Answers, depth: int, host: dict[str, int], value: int, source: str
) -> None:
    found = limits(machine, queue_depth=depth, host=host).cmd_per_lun
    assert (found.value, found.source) == (value, source)


def test_without_a_depth_it_is_what_drivers_begin_with(machine: Machine, answers: Answers) -> None:
    assert limits(machine, queue_depth="").cmd_per_lun.value == 7


def test_a_tape_has_the_kernels_defaults(machine: Machine, answers: Answers) -> None:
    found = limits(machine, type=1, block=None, timeout=900)
    assert (found.max_segment_size.value, found.dma_alignment.value) == (65536, 3)
    assert found.max_segment_size.source == "the kernel's default"
    assert (found.timeout.value, found.timeout.source) == (900, "0:0:0:0/timeout")


def test_masks_and_sizes(machine: Machine, answers: Answers) -> None:
    queue = {"dma_alignment": 511, "virt_boundary_mask": 4095, "max_segment_size": 4096}
    found = limits(machine, queue=queue)
    assert (found.dma_alignment.value, found.virt_boundary_mask.value) == (511, 4095)
    assert found.max_segment_size.value == 4096


def test_usb_takes_short_commands(machine: Machine, answers: Answers) -> None:
    assert limits(machine, parent="usb1/1-1").cdb_length.value == 16


def test_others_take_what_the_kernel_does(machine: Machine, answers: Answers) -> None:
    assert limits(machine).cdb_length.value == 32


def test_every_limit_is_named_as_its_field(machine: Machine, answers: Answers) -> None:
    found = limits(machine)
    assert [getattr(found, limit.name) is limit for limit in found] == [True] * 8


def test_a_page_that_only_sysfs_shows(machine: Machine, tmp_path: Path) -> None:
    """Nobody may open these nodes, but the kernel has read the page."""
    path = machine.device("0:0:0:0")
    (path / "vpd_pgb0").write_bytes(page(32))
    for node in ("sg0", "sda", "bsg/0:0:0:0"):
        (machine.roots.dev / node).unlink()
    found = queue_limits(devices(machine.roots)[0])
    assert found.max_sectors.value == 32
    assert found.max_sectors.source == "MAXIMUM TRANSFER LENGTH, vpd_pgb0 in sysfs"
    assert found.block_limits == page(32)


def test_while_serving_no_command_is_sent(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = machine.device("0:0:0:0")
    (path / "vpd_pgb0").write_bytes(page(32))
    monkeypatch.setattr("vscsi_emu.host.command.vpd_page", lambda fd, code: page(16))
    (disk,) = devices(machine.roots)
    assert queue_limits(disk).max_sectors.value == 16
    assert queue_limits(disk, commands=False).max_sectors.value == 32


def test_nodes_that_answer_nothing(machine: Machine) -> None:
    """Plain files: each ioctl and each command fails."""
    machine.device("0:0:0:0")
    found = queue_limits(devices(machine.roots)[0])
    assert found.max_sectors.source == "queue/max_sectors_kb"
    assert found.block_limits is None
