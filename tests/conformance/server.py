"""A server under test, and what must hold of it after each test."""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.conformance.attach import attach
from tests.conformance.cdb import test_unit_ready
from vscsi_emu.driver.scan import retried
from vscsi_emu.testing.hba import HbaProcess

SETTLE_SECONDS = 60.0


class Server:
    """`luns`: as for ``--lun``; unit 0:0 must be among them."""

    def __init__(
        self, luns: Sequence[str], *, queues: int = 4, arguments: Sequence[str] = ()
    ) -> None:
        self.queues = queues
        self.process = HbaProcess(luns, queues=queues, arguments=arguments)
        self.socket = self.process.socket
        # What is opened once and kept, in the first session or at its end, is no leak.
        self.serve_a_client()
        self.serve_a_client()
        self.idle_fds = len(self._fds())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.process.__exit__(kind, error, trace)

    def serve_a_client(self) -> None:
        """A new client negotiates, and its first command is answered."""
        with attach(self) as guest:
            result = retried(guest.device, 0, 0, test_unit_ready(), 0)
            assert (result.response, result.status) == (0, 0)

    def check(self) -> None:
        """Alive, serving, and nothing left over from former clients."""
        assert self.process.running, f"the server died:\n{self.process.log[-4000:]}"
        self.serve_a_client()
        deadline = time.monotonic() + SETTLE_SECONDS
        while len(fds := self._fds()) > self.idle_fds and time.monotonic() < deadline:
            time.sleep(0.02)
        assert len(fds) <= self.idle_fds, f"{len(fds) - self.idle_fds} descriptors leaked: {fds}"
        assert "Traceback" not in self.process.log, self.process.log[-4000:]

    def _fds(self) -> list[str]:
        links = []
        for entry in Path(f"/proc/{self.process.pid}/fd").iterdir():
            try:
                links.append(f"{entry.name} -> {os.readlink(entry)}")
            except FileNotFoundError:  # closed meanwhile
                continue
        return links
