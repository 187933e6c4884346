"""``vscsi-emu ctl`` and ``serve --monitor`` as programs."""

from __future__ import annotations

import json
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.unit.cli.test_serve import serving
from vscsi_emu.cli.ctl import ctl
from vscsi_emu.control.methods import METHODS

TIMEOUT = 60.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[subprocess.Popen[str], str]]:
    directory = tmp_path_factory.mktemp("ctl")
    monitor = str(directory / "monitor")
    arguments = ["--socket-path", str(directory / "hba.sock"), "--lun", "mem:1M"]
    with serving(*arguments, "--monitor", monitor) as (process, _):
        yield process, monitor


@pytest.fixture
def monitor(server: tuple[subprocess.Popen[str], str]) -> str:
    return server[1]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(ctl, arguments)


def good(*arguments: str) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.output


def test_the_methods_are_printed_with_their_types() -> None:
    output = good("methods")
    for name in METHODS:
        assert f"{name}(" in output
    assert 'cache: "writeback" | "writethrough" | null = null' in output


def test_the_schema_is_json() -> None:
    described = {m["name"]: m for m in json.loads(good("methods", "--json"))["methods"]}
    assert described.keys() == METHODS.keys()
    size = next(p for p in described["lun.resize"]["params"] if p["name"] == "size")
    assert size == {"name": "size", "schema": {"anyOf": [{"type": "integer"}, {"type": "string"}]}}
    assert described["lun.pause"]["result"]["properties"] == {"drained": {"type": "boolean"}}


def test_calls(monitor: str) -> None:
    at = ["--monitor", monitor]
    added = json.loads(good(*at, "lun.add", "luns=1:0=mem:1M,serial=A=B", "luns=1:1=null:1G"))
    assert [lun["lun"] for lun in added] == ["1:0", "1:1"]
    state = json.loads(good(*at, "--json", "lun.set", "lun=1:0", "read-only", "cache=writethrough"))
    assert (state["read_only"], state["write_cache"], state["serial"]) == (True, False, "A=B")
    assert good(*at, "hba.export").startswith("[[lun]]\n")
    assert good(*at, "lun.remove", "lun=1:0", "lun=1:1", "deadline=0", "force") == ""
    assert len(json.loads(good(*at, "hba.query"))["luns"]) == 1


WRONG = [
    (["lun.ad"], "did you mean 'lun.add'?"),
    (["lun.add"], "luns is missing"),
    (["lun.add", "lun=mem:1M"], "did you mean 'luns'?"),
    (["lun.pause", "lun=0:0", "deadline=soon"], 'deadline: "soon" is not a number'),
    (["lun.resize", "lun=0:0", "lun=0:1", "size=1"], "lun: is given twice"),
]


@pytest.mark.parametrize(("arguments", "text"), WRONG)
def test_a_wrong_call_is_refused_before_it_is_made(arguments: list[str], text: str) -> None:
    result = run("--monitor", "/nowhere", *arguments)
    assert result.exit_code == 2
    assert text in result.output


def test_what_the_server_refuses_is_one_line(monitor: str) -> None:
    result = run("--monitor", monitor, "lun.remove", "lun=9:9")
    assert result.exit_code == 1
    [line] = result.output.splitlines()
    assert line.endswith("has no unit at 9:9")


def test_nobody_there(tmp_path: Path) -> None:
    result = run("--monitor", str(tmp_path / "none"), "hba.query")
    path = tmp_path / "none"
    fix = f"start vscsi-emu serve with --monitor {path}"
    assert result.output == f"Error: {path}: nobody listens there; {fix}\n"
    assert "give the server's --monitor" in run("hba.query").output


def test_events_are_lines(monitor: str) -> None:
    command = [sys.executable, "-m", "vscsi_emu", "ctl", "--monitor", monitor, "events.subscribe"]
    with subprocess.Popen([*command, "kinds=lun.added"], stdout=subprocess.PIPE, text=True) as ctl:
        try:
            assert ctl.stdout is not None
            deadline = time.monotonic() + TIMEOUT
            number = 0
            # It subscribes at some time soon; then it hears of the next one.
            while not select.select([ctl.stdout], [], [], 0.2)[0]:
                assert time.monotonic() < deadline
                good("--monitor", monitor, "lun.add", f"luns=7:{number}=null:1M")
                number += 1
            event = json.loads(ctl.stdout.readline())
            assert (event["kind"], event["lun"][:2]) == ("lun.added", "7:")
        finally:
            ctl.kill()


def test_a_monitor_that_cannot_listen(tmp_path: Path) -> None:
    arguments = ["--socket-path", str(tmp_path / "s"), "--lun", "mem:1M", "--monitor", "/no/m"]
    done = subprocess.run(
        [sys.executable, "-m", "vscsi_emu", "serve", *arguments],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "Error: /no/m: no directory /no; make it first"
    assert not (tmp_path / "s").exists()


def test_a_server_may_begin_without_disks(tmp_path: Path) -> None:
    monitor = str(tmp_path / "monitor")
    with serving("--socket-path", str(tmp_path / "s"), "--monitor", monitor):
        assert json.loads(good("--monitor", monitor, "hba.query"))["luns"] == []
        good("--monitor", monitor, "lun.add", "luns=mem:1M")


def test_quit(server: tuple[subprocess.Popen[str], str]) -> None:
    process, monitor = server
    assert good("--monitor", monitor, "quit") == ""
    assert process.wait(TIMEOUT) == 0
    assert not Path(monitor).exists()
