"""The methods in the server's own process, without a socket."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vscsi_emu.control.context import Context
from vscsi_emu.control.faces import AsyncFace, SyncFace
from vscsi_emu.control.method import Method
from vscsi_emu.disk import OperationError

if TYPE_CHECKING:
    from vscsi_emu.control.trace import Tracing
    from vscsi_emu.control_thread import ControlThread
    from vscsi_emu.journal import Record
    from vscsi_emu.service import Service


class Local(AsyncFace):
    """For programs that run a `Service` on their own event loop. Errors are `OperationError`."""

    def __init__(self, service: Service, quit: Callable[[], None] | None = None) -> None:
        """`quit`: what ends the service."""
        self._context = Context(service, _watch_instead, _trace_instead, quit or _stop_instead)

    async def invoke(self, method: Method[Any, Any], params: dict[str, Any]) -> Any:
        return await method(self._context, **method.bind(params))


class LocalSync(SyncFace):
    """For the other threads of a process, where a `ControlThread` runs the service."""

    def __init__(self, thread: ControlThread, service: Service, *, timeout: float = 60.0) -> None:
        """`TimeoutError` for a call that takes more than `timeout` seconds."""
        self._thread = thread
        self._local = Local(service)
        self._timeout = timeout

    def invoke(self, method: Method[Any, Any], params: dict[str, Any]) -> Any:
        return self._thread.call(lambda: self._local.invoke(method, params), timeout=self._timeout)


def _watch_instead(_wanted: Callable[[Record], bool]) -> None:
    raise OperationError("in the server's own process, use Service.journal.watch")


def _trace_instead(tracing: Tracing | None) -> None:
    if tracing:
        tracing.end()
    raise OperationError("in the server's own process, use vscsi_emu.control.trace.Tracing")


def _stop_instead() -> None:
    raise OperationError("in the server's own process, leave its context")
