"""Arguments of ``vscsi-emu qtest`` that cannot be served."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from vscsi_emu.cli.qtest import qtest

DISK = ("--lun", "mem:1M")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "no disk given; add for example --lun mem:64M"),
        (("--lun", "mem:lots"), "mem:lots"),
        ((*DISK, "--memory", "much"), "--memory much"),
        ((*DISK, "--memory", "0"), "--memory 0"),
        ((*DISK, "--memory", "2T"), "use 1 byte to"),
        ((*DISK, "--base", "0x1000"), "lies in the 0x4000000 bytes of RAM"),
        ((*DISK, "--base", "0xfeb00e01"), "use a multiple of 4"),
        ((*DISK, "--base", "0xfffffffffffffffc"), "with 512 bytes after it"),
        ((*DISK, "--base", "there"), "'there' is no number"),
        ((*DISK, "--irq", "-1"), "lines are counted from 0"),
        ((*DISK, "--queues", "0"), "queues 0"),
        ((*DISK, "--connect"), "cannot connect: No such file or directory"),
    ],
)
def test_what_cannot_be_served(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    path = tmp_path / "q.sock"
    result = CliRunner().invoke(qtest, ["--socket", str(path), *arguments])
    assert result.exit_code != 0
    assert message in result.output
    assert "Traceback" not in result.output
    assert not path.exists()


def test_a_socket_that_cannot_be_made(tmp_path: Path) -> None:
    path = tmp_path / "absent" / "q.sock"
    result = CliRunner().invoke(qtest, ["--socket", str(path), *DISK])
    assert result.exit_code == 1
    assert f"no directory {path.parent}; make it first" in result.output
