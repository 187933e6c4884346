"""A thread that runs an event loop, for synchronous faces."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Final, TypeVar

T = TypeVar("T")

_STOP_SECONDS: Final = 60.0

Main = Callable[[Callable[[], None], asyncio.Event], Coroutine[object, object, None]]
"""`main(ready, stop)` calls `ready()` once `ControlThread.call` may be used, and then runs until
`stop` is set."""


class ControlThread:
    """Runs `main` on a loop of its own, from `start` to `stop`."""

    def __init__(self, main: Main) -> None:
        self._main = main
        self._loop: asyncio.AbstractEventLoop | None = None
        """While calls are taken."""
        self._stop = asyncio.Event()
        self._ready: Future[None] = Future()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="vscsi-control", daemon=True)

    def start(self) -> None:
        """Returns when `main` is ready; raises what it raised before."""
        self._thread.start()
        try:
            self._ready.result()
        except BaseException:
            self._join()
            raise

    def stop(self) -> None:
        """Returns when `main` has ended; raises what it raised since."""
        loop, self._loop = self._loop, None
        if loop:
            loop.call_soon_threadsafe(self._stop.set)
        self._join()
        if self._error is not None:
            raise self._error

    def call(self, work: Callable[[], Coroutine[object, object, T]], *, timeout: float = 10.0) -> T:
        """Runs `work()` on the event loop; its result. `TimeoutError` after `timeout` seconds.

        `RuntimeError` on the loop's own thread, which would wait for itself: await there.
        """
        loop = self._loop
        if loop is None:
            raise RuntimeError("the control thread is not running; use it within its `with`")
        if threading.current_thread() is self._thread:
            raise RuntimeError("this is the event loop's own thread; await the coroutine instead")
        future = asyncio.run_coroutine_threadsafe(work(), loop)
        try:
            return future.result(timeout)
        except TimeoutError:
            future.cancel()
            raise

    def _join(self) -> None:
        self._thread.join(_STOP_SECONDS)
        if self._thread.is_alive():
            raise TimeoutError(f"the control thread did not end within {_STOP_SECONDS:g} s")

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            if self._ready.done():
                self._error = error
            else:
                self._ready.set_exception(error)

    async def _serve(self) -> None:
        try:
            await self._main(self._is_ready, self._stop)
        finally:
            self._loop = None

    def _is_ready(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._ready.set_result(None)
