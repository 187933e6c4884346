"""``vscsi-emu demo`` with the builtin guest, and which guest it takes."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from vscsi_emu.cli.demo import demo
from vscsi_emu.testing import builtin, initramfs


@pytest.fixture(autouse=True)
def two_boots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builtin, "BOOTS", (builtin.BOOTS[0], builtin.BOOTS[-1]))


def test_the_builtin_guest() -> None:
    result = CliRunner().invoke(demo, ["--guest", "builtin"])
    assert result.exit_code == 0, result.output
    assert "all good" in result.output
    assert result.output.count("6144 KiB") == 2
    assert "probe:" not in result.output


def test_its_transcript() -> None:
    result = CliRunner().invoke(demo, ["--guest", "builtin", "-v"])
    assert result.exit_code == 0, result.output
    for line in (
        "modern, indirect, event index",
        "legacy, direct, flags",
        "probe: virtio-mmio version 1, device 8",
        "features: SCSI_HOTPLUG SCSI_CHANGE ANY_LAYOUT INDIRECT_DESC EVENT_IDX VERSION_1",
        "3:2  VSCSIEMU Virtual disk  8192 blocks of 512 bytes",
        "wrote, read and compared 6144 KiB on 12 disks",
        "event: 3:2 was unplugged, 11 disks are left",
    ):
        assert line in result.output


def test_it_is_the_default_without_user_mode_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(initramfs, "find_program", lambda name: None)
    result = CliRunner().invoke(demo, [])
    assert result.exit_code == 0, result.output
    assert "legacy, direct, flags" in result.output


def test_what_goes_wrong_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def guest(*_: object) -> int:
        raise RuntimeError("0:0: WRITE of 1 blocks from 0: response 9")

    monkeypatch.setattr(builtin, "guest", guest)
    result = CliRunner().invoke(demo, ["--guest", "builtin"])
    assert result.exit_code == 1
    assert "Error: modern, indirect, event index: 0:0: WRITE of 1 blocks" in result.output
    assert isinstance(result.exception, SystemExit)
