"""What a guest is told."""

from __future__ import annotations

from vscsi_emu.host.devices import devices
from vscsi_emu.host.guest import block_limits_page, config, qemu_device
from vscsi_emu.host.limits import queue_limits
from vscsi_emu.virtio.config import ScsiConfig

from .machine import Machine


def test_config_is_the_least_of_all_units(machine: Machine) -> None:
    machine.device("0:0:0:0", queue={"max_sectors_kb": 64}, queue_depth=90)
    machine.device("0:0:1:0", sg="sg1", block="sdb", queue={"max_segments": 100}, queue_depth=3)
    space = config(queue_limits(device) for device in devices(machine.roots))
    assert (space.max_sectors, space.seg_max, space.cmd_per_lun) == (128, 100, 3)


def test_config_is_never_raised(machine: Machine) -> None:
    machine.device("0:0:0:0", queue_depth=100)
    found = [queue_limits(device) for device in devices(machine.roots)]
    lower = ScsiConfig(max_sectors=8, seg_max=2, cmd_per_lun=1, num_queues=4)
    assert config(found, lower) == lower
    assert config([], lower) == lower


def test_a_guest_may_always_send_one_command(machine: Machine) -> None:
    machine.device("0:0:0:0", queue_depth=0)
    assert config([queue_limits(devices(machine.roots)[0])]).cmd_per_lun == 1


def test_the_page_counts_in_the_devices_blocks(machine: Machine) -> None:
    machine.device("0:0:0:0", queue={"max_sectors_kb": 64, "logical_block_size": 4096})
    (disk,) = devices(machine.roots)
    page = block_limits_page(disk, queue_limits(disk))
    assert page is not None
    assert int.from_bytes(page[8:12], "big") == 16


def test_a_tape_has_no_such_page(machine: Machine) -> None:
    machine.device("0:0:0:0", type=1, block=None)
    (tape,) = devices(machine.roots)
    assert block_limits_page(tape, queue_limits(tape)) is None


def test_qemu_is_told_by_its_option() -> None:
    option = qemu_device(ScsiConfig(max_sectors=256, cmd_per_lun=7))
    assert option == "-device vhost-user-scsi-pci,chardev=hba,max_sectors=256,cmd_per_lun=7"
