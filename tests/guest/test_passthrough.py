"""Pass-through to the sg drivers of a real kernel: a guest whose disks are scsi_debug's, in which
an HBA of ours passes commands to them. What is checked is in `passthrough`; one boot for all."""

from __future__ import annotations

import shlex
import sys
from contextlib import ExitStack
from importlib.metadata import distribution
from pathlib import Path

import pytest

import vscsi_emu
from tests.guest.debug_host import CHECKOUT_SHOWN
from tests.guest.report import Section, parse
from vscsi_emu.testing import GuestUnavailable, HbaProcess, UmlGuest
from vscsi_emu.testing.modules import load_order, module_directory
from vscsi_emu.testing.uml import MODULE_TREE, MODULES

pytestmark = [pytest.mark.guest, pytest.mark.timeout(1000)]

CHECKS = (
    "limit-4",
    "limit-64",
    "limit-1024",
    "lowered",
    "relimited",
    "huge",
    "tiny_segments",
    "nodes",
    "many_in_flight",
    "errors",
    "timed_out",
    "beyond_the_end",
    "filtered",
    "write_protection",
    "taken",
    "task_management",
    "resized",
    "unplugged",
    "unplugged_under_load",
    "replaced",
    "events_lost",
    "unheard",
    "other_types",
)
LIMITS = ("example", "sizes", "segments", "alignment", "residuals", "hot_plugged", "matrix")
LAST = "/sys/block/sda/queue/max_sectors_kb"
"""Of what is there of a disk."""
BOOT_SECONDS = 900.0
"""Ends what hangs, on a machine of any load."""
MEMORY_MIB = 512
LIMITS_MEMORY_MIB = 1024


def script(module: str, parameters: str) -> str:
    loaded = load_order(module_directory(MODULE_TREE), MODULES)
    wanted = load_order(module_directory(MODULE_TREE), ["scsi_debug"])
    *others, scsi_debug = [module for module in wanted if module not in loaded]
    return "\n".join(
        [
            *(f"busybox insmod {module}" for module in others),
            f"busybox insmod {scsi_debug} {parameters}",
            f"n=0; until [ -e {LAST} ] || [ $n -ge 600 ]; do sleep 0.1; n=$((n + 1)); done",
            program(module, str(scsi_debug)),
        ]
    )


def program(module: str, argument: str) -> str:
    """One of ours, run in a guest."""
    path = ":".join(map(str, (Path(vscsi_emu.__file__).parents[1], _metadata())))
    return (
        f"{CHECKOUT_SHOWN}\n"
        f"export PYTHONPATH={shlex.quote(path)} HOME=/tmp\n"
        f"{shlex.quote(sys.executable)} -m {module} {argument}"
    )


def _metadata() -> Path:
    """Where the entry points are found."""
    found = distribution("vscsi-emu").locate_file("")
    return Path(str(found))


def required(guest: UmlGuest) -> None:
    pytest.importorskip("sgio", reason="cython-sgio is not installed: pip install .[passthrough]")
    try:
        guest.require()
    except GuestUnavailable as error:
        pytest.skip(str(error))


def ran(module: str, parameters: str, memory_mib: int) -> dict[str, Section]:
    guest = UmlGuest(memory_mib=memory_mib)
    required(guest)
    return parse(guest.run(script(module, parameters), BOOT_SECONDS).check().output)


@pytest.fixture(scope="module")
def sections() -> dict[str, Section]:
    return ran("tests.guest.passthrough", "dev_size_mb=64 lbpu=1", MEMORY_MIB)


@pytest.fixture(scope="module")
def limits() -> dict[str, Section]:
    return ran("tests.guest.passthrough_limits", "dev_size_mb=72 delay=0", LIMITS_MEMORY_MIB)


@pytest.mark.parametrize("check", CHECKS)
def test_passthrough(sections: dict[str, Section], check: str) -> None:
    print(sections[check].check())


@pytest.mark.parametrize("check", LIMITS)
def test_limits(limits: dict[str, Section], check: str) -> None:
    print(limits[check].check())


HOSTS = """
[[lun]]
id = "shared"
uri = "mem:64M"
[[hba]]
socket = "first.sock"
initiator = "3000000000000001"
luns = {"0:0" = "shared"}
[[hba]]
socket = "second.sock"
initiator = "3000000000000002"
luns = {"0:0" = "shared"}
"""


def test_guests_of_two_hosts_keep_each_other_out() -> None:
    """Their hosts are guests themselves, on a disk of ours: scsi_debug has no reservations. Two
    guests of one host do not."""
    required(UmlGuest())
    with HbaProcess(config=HOSTS) as hba, ExitStack() as stack:
        names = ("first", "second")
        hosts = [
            stack.enter_context(
                UmlGuest([socket]).start(program("tests.guest.reserving", name), BOOT_SECONDS)
            )
            for name, socket in zip(names, hba.sockets, strict=True)
        ]
        for name, host in zip(names, hosts, strict=True):
            sections = parse(host.wait().check().output)
            sections[name].check()
            if name == "first":
                sections["together"].check()
