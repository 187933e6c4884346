"""The pytest plugin: an HBA for each test that asks for one of these fixtures.

A failed test's report ends with what its HBA was and what happened to it last.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from vscsi_emu.api import Hba
    from vscsi_emu.driver.host import ScsiHost
    from vscsi_emu.testing.guest import LinuxGuest
    from vscsi_emu.testing.lab import Kind, Lab, ScsiDisk

REQUIRE = "VSCSI_EMU_REQUIRE_GUESTS"
"""Environment variable: a guest that cannot run here is an error, not a skip."""

_LAB = pytest.StashKey["Lab"]()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "hba(*luns, queues=1, workers=None): what the fixture `hba` starts with; "
        "each LUN as for `vscsi-emu serve --lun`",
    )


@pytest.fixture
def scsi_lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """All of the other fixtures in one object, `vscsi_emu.testing.Lab`."""
    from vscsi_emu.testing.lab import Lab

    marker = request.node.get_closest_marker("hba")
    with Lab(*marker.args, **marker.kwargs) if marker else Lab() as lab:
        request.node.stash[_LAB] = lab
        try:
            yield lab
        finally:
            del request.node.stash[_LAB]


@pytest.fixture
def hba(scsi_lab: Lab) -> Hba:
    """An HBA in this process, `vscsi_emu.Hba`; without disks unless the marker `hba` names some."""
    return scsi_lab.hba


@pytest.fixture
def vhost_user_socket(scsi_lab: Lab) -> Path:
    """Where the HBA waits for a front end."""
    return scsi_lab.socket


@pytest.fixture
def scsi_disk(scsi_lab: Lab) -> Callable[..., ScsiDisk]:
    """`scsi_disk(size="64M", block_size=512, at=None, uri=None, faults=(), **keys)` plugs a disk
    into the HBA: `Lab.scsi_disk`."""
    return scsi_lab.scsi_disk


@pytest.fixture
def builtin_guest(scsi_lab: Lab) -> Callable[..., ScsiHost]:
    """`builtin_guest(options=None)` attaches our own driver to the HBA: `Lab.builtin_guest`."""
    return scsi_lab.builtin_guest


@pytest.fixture
def linux_guest(scsi_lab: Lab) -> Callable[..., LinuxGuest]:
    """`linux_guest(kind="uml"|"qemu", modules=(), memory_mib=512)`, a kernel that `run`s a script
    with the HBA attached: `Lab.linux_guest`. Where the machine has none the test is skipped."""
    from vscsi_emu.testing.errors import GuestUnavailable

    def guest(
        kind: Kind = "uml", *, modules: Sequence[str] = (), memory_mib: int = 512
    ) -> LinuxGuest:
        try:
            return scsi_lab.linux_guest(kind, modules=modules, memory_mib=memory_mib)
        except GuestUnavailable as error:
            if os.environ.get(REQUIRE):
                raise
            pytest.skip(str(error))

    return guest


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    lab = item.stash.get(_LAB, None)
    if lab is not None and report.failed:
        try:
            text = lab.report()
        except Exception as error:
            # What broke the test may have broken the HBA: its own failure is what matters.
            text = f"no report: {error!r}"
        report.sections.append(("HBA", text))
    return report
