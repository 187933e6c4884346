"""A server with a monitor, in this process."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.unit.transport.harness import Server, serving
from vscsi_emu.config import Config, from_arguments
from vscsi_emu.control.server import Monitor

TIMEOUT = 60.0


@contextmanager
def monitored(directory: Path, config: Config | None = None) -> Iterator[tuple[Server, str]]:
    """The server, and where its monitor listens. By default disk 0:0, 1 MiB of memory."""
    path = str(directory / "monitor")
    config = config or from_arguments(["0:0=mem:1M"], socket=str(directory / "hba.sock"))
    with serving(config) as server:
        monitor = server.do(lambda: Monitor(server.service, server.stop, path=path))
        server.run(monitor.__aenter__())
        try:
            yield server, path
        finally:
            server.run(monitor.__aexit__(None, None, None))


class Wire:
    """A client that sends what it likes."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(TIMEOUT)
        self.socket.connect(path)
        self._lines = self.socket.makefile("rb")

    def send(self, *messages: object) -> None:
        for message in messages:
            line = message if isinstance(message, bytes) else json.dumps(message).encode()
            self.socket.sendall(line + b"\n")

    def receive(self) -> Any:
        """The next line; None at the end."""
        line = self._lines.readline()
        return json.loads(line) if line else None

    def call(self, name: str, **params: object) -> Any:
        """The whole response."""
        self.send({"jsonrpc": "2.0", "id": 1, "method": name, "params": params})
        return self.receive()

    def close(self) -> None:
        self._lines.close()
        self.socket.close()
