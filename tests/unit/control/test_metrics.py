"""GET /metrics."""

from __future__ import annotations

import re
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.transport.harness import TIMEOUT, Server, attached, serving
from vscsi_emu.config import from_arguments
from vscsi_emu.control.metrics import MAX_REQUEST, Metrics, parse_address
from vscsi_emu.service import StartError

READ = bytes.fromhex("28000000000000000800")
BEYOND = bytes.fromhex("28007fffffff00000100")


@pytest.fixture
def running(tmp_path: Path) -> Iterator[tuple[Server, int]]:
    config = from_arguments(["0:0=mem:1M"], socket=str(tmp_path / 'a"b.sock'))
    with serving(config) as server:
        metrics = server.do(lambda: Metrics(server.service, server.stop, address="127.0.0.1:0"))
        server.run(metrics.__aenter__())
        try:
            yield server, metrics.port
        finally:
            server.run(metrics.__aexit__(None, None, None))


def get(port: int, path: str = "/metrics", method: str = "GET") -> str:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method=method)
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        text: str = answer.read().decode()
        return text


def samples(text: str) -> dict[str, float]:
    """Checks each line against the text format."""
    found = {}
    label = r'[a-z]+="(?:[^"\\\n]|\\["\\n])*"'
    for line in text.splitlines():
        if line.startswith("#"):
            assert re.fullmatch(r"# (HELP|TYPE) vscsi_[a-z_]+ .+", line)
            continue
        matched = re.fullmatch(rf"(vscsi_[a-z_]+\{{{label}(?:,{label})*\}}) ([0-9.e+-]+)", line)
        assert matched, line
        found[matched[1]] = float(matched[2])
    return found


def test_commands_are_counted(running: tuple[Server, int], tmp_path: Path) -> None:
    server, port = running
    with attached(server.sockets[0]) as driver:
        driver.execute(0, 0, bytes(6))
        for _ in range(3):
            driver.execute(0, 0, READ, data_in_length=4096)
        driver.execute(0, 0, BEYOND, data_in_length=512)
        driver.execute(9, 0, bytes(6))
        seen = samples(get(port))
    hba = str(tmp_path / 'a"b.sock').replace('"', '\\"')
    lun = f'hba="{hba}",lun="0:0",id="disk-0-0"'
    assert seen[f'vscsi_commands_total{{{lun},class="read"}}'] == 4
    assert seen[f'vscsi_bytes_total{{{lun},class="read"}}'] == 3 * 4096
    assert seen[f'vscsi_errors_total{{{lun},kind="status",code="CHECK_CONDITION"}}'] == 2
    assert seen[f"vscsi_in_flight{{{lun}}}"] == 0
    assert seen[f'vscsi_gate_closed{{{lun},class="read"}}'] == 0
    assert seen[f'vscsi_queue_commands_total{{hba="{hba}",queue="2",class="read"}}'] == 4
    queue = f'hba="{hba}",queue="2"'
    assert seen[f'vscsi_queue_errors_total{{{queue},kind="status",code="CHECK_CONDITION"}}'] == 2
    assert seen[f'vscsi_queue_errors_total{{{queue},kind="response",code="BAD_TARGET"}}'] == 1
    assert seen[f'vscsi_stray_commands_total{{hba="{hba}"}}'] == 1
    stray = f'hba="{hba}",kind="response",code="BAD_TARGET"'
    assert seen[f"vscsi_stray_errors_total{{{stray}}}"] == 1
    buckets = [
        value
        for name, value in seen.items()
        if name.startswith(f'vscsi_latency_seconds_bucket{{{lun},class="read"')
    ]
    assert buckets == sorted(buckets)
    assert buckets[-1] == seen[f'vscsi_latency_seconds_count{{{lun},class="read"}}'] == 4
    assert seen[f'vscsi_latency_seconds_sum{{{lun},class="read"}}'] > 0


def test_only_what_is_there_is_given(running: tuple[Server, int]) -> None:
    for path, method, code in (("/", "GET", 404), ("/metrics", "POST", 405)):
        with pytest.raises(urllib.error.HTTPError) as caught:
            get(running[1], path, method)
        assert caught.value.code == code
    assert get(running[1], method="HEAD") == ""


@pytest.mark.parametrize("request_", [b"x" * (MAX_REQUEST + 1000), b"GET", b"\r\n\r\n", b""])
def test_a_bad_client_does_not_disturb(running: tuple[Server, int], request_: bytes) -> None:
    with socket.create_connection(("127.0.0.1", running[1]), timeout=TIMEOUT) as client:
        client.sendall(request_)
        client.shutdown(socket.SHUT_WR)
        try:
            answer = client.recv(100)
        except ConnectionResetError:
            answer = b""
        assert answer == b"" or answer.startswith(b"HTTP/1.1 400 ")
    assert "vscsi_commands_total" in get(running[1])


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("9100", ("127.0.0.1", 9100)),
        ("0.0.0.0:80", ("0.0.0.0", 80)),
        ("[::1]:80", ("::1", 80)),
    ],
)
def test_addresses(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize("text", ["", "host", "1:99999", "1:-1"])
def test_what_is_no_address_is_refused(running: tuple[Server, int], text: str) -> None:
    server = running[0]
    with pytest.raises(StartError, match="is no HOST:PORT"):
        server.run(Metrics(server.service, server.stop, address=text).__aenter__())
