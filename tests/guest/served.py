"""A server in this process, so that a test can change what it serves while guests use it."""

from __future__ import annotations

import asyncio
import tempfile
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from vscsi_emu.config import from_file
from vscsi_emu.service import Service

T = TypeVar("T")

_SECONDS = 60.0


class Served:
    """What the text of an ``hba.toml`` names, listening once entered.

    `directory` is where its relative paths lead, and is removed at the end.
    """

    def __init__(self, config: str) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="vscsi-emu-served-")
        self.directory = Path(self._scratch.name)
        file = self.directory / "hba.toml"
        file.write_text(config)
        parsed = from_file(str(file))
        self.sockets = [Path(hba.socket) for hba in parsed.hbas if hba.socket]
        self.service = Service(parsed)
        """For coroutines given to `call` only."""
        self._stop = asyncio.Event()
        self._ready: Future[asyncio.AbstractEventLoop] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def call(self, work: Coroutine[object, object, T]) -> T:
        """Runs `work` on the server's event loop; its result."""
        loop = self._ready.result(_SECONDS)
        return asyncio.run_coroutine_threadsafe(work, loop).result(_SECONDS)

    async def _serve(self) -> None:
        try:
            async with self.service as service:
                self._ready.set_result(asyncio.get_running_loop())
                await service.serve(self._stop)
        except BaseException as error:
            if self._ready.done():
                raise
            self._ready.set_exception(error)

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.result(_SECONDS)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ready.result(0).call_soon_threadsafe(self._stop.set)
        self._thread.join(_SECONDS)
        assert not self._thread.is_alive(), "the server did not end"
        self._scratch.cleanup()
