"""Pass-through to the sg drivers of a real kernel: a guest whose disks are scsi_debug's, in which
an HBA of ours passes commands to them. What is checked is in `passthrough`; one boot for all."""

from __future__ import annotations

import shlex
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest

import vscsi_emu
from tests.guest.report import Section, parse
from vscsi_emu.testing import GuestUnavailable, UmlGuest
from vscsi_emu.testing.modules import load_order, module_directory
from vscsi_emu.testing.uml import MODULE_TREE, MODULES

pytestmark = pytest.mark.guest

CHECKS = (
    "limit-4",
    "limit-64",
    "limit-1024",
    "lowered",
    "huge",
    "tiny_segments",
    "nodes",
    "many_in_flight",
    "errors",
    "beyond_the_end",
    "filtered",
    "taken",
    "task_management",
    "resized",
    "unplugged",
    "other_types",
)
BOOT_SECONDS = 240.0
MEMORY_MIB = 512


def script() -> str:
    loaded = load_order(module_directory(MODULE_TREE), MODULES)
    wanted = load_order(module_directory(MODULE_TREE), ["scsi_debug"])
    *others, scsi_debug = [module for module in wanted if module not in loaded]
    path = [Path(vscsi_emu.__file__).parents[1], _metadata()]
    return "\n".join(
        [
            *(f"busybox insmod {module}" for module in others),
            f"busybox insmod {scsi_debug} dev_size_mb=64 lbpu=1",
            "n=0; until [ -e /dev/sda ] || [ $n -ge 100 ]; do sleep 0.1; n=$((n + 1)); done",
            f"export PYTHONPATH={shlex.quote(':'.join(map(str, path)))} HOME=/tmp",
            f"{shlex.quote(sys.executable)} -m tests.guest.passthrough {scsi_debug}",
        ]
    )


def _metadata() -> Path:
    """Where the entry points are found."""
    found = distribution("vscsi-emu").locate_file("")
    return Path(str(found))


@pytest.fixture(scope="module")
def sections() -> dict[str, Section]:
    pytest.importorskip("sgio", reason="cython-sgio is not installed: pip install .[passthrough]")
    guest = UmlGuest(memory_mib=MEMORY_MIB)
    try:
        guest.require()
    except GuestUnavailable as error:
        pytest.skip(str(error))
    return parse(guest.run(script(), BOOT_SECONDS).check().output)


@pytest.mark.parametrize("check", CHECKS)
def test_passthrough(sections: dict[str, Section], check: str) -> None:
    sections[check].check()
