"""The methods as typed Python, synchronous and for asyncio; who uses a face need not know where
the work is done. Each method is one line in each: name and types come from its declaration.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Any, Generic, ParamSpec, TypeVar

from vscsi_emu.control import methods
from vscsi_emu.control.method import Method

P = ParamSpec("P")
R = TypeVar("R")


class _Sync(Generic[P, R]):
    def __init__(self, method: Method[P, R]) -> None:
        self.method = method

    def __get__(self, face: SyncFace, _owner: type) -> Callable[P, R]:
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            result: R = face.invoke(self.method, self.method.params(*args, **kwargs))
            return result

        call.__doc__ = self.method.doc
        return call


class _Async(Generic[P, R]):
    def __init__(self, method: Method[P, R]) -> None:
        self.method = method

    def __get__(self, face: AsyncFace, _owner: type) -> Callable[P, Awaitable[R]]:
        def call(*args: P.args, **kwargs: P.kwargs) -> Awaitable[R]:
            return face.invoke(self.method, self.method.params(*args, **kwargs))

        call.__doc__ = self.method.doc
        return call


class SyncFace(ABC):
    """Calls return when the work is done. `rpc.RpcError` where it fails."""

    @abstractmethod
    def invoke(self, method: Method[Any, Any], params: dict[str, Any]) -> Any:
        """Has a method done; its result."""

    hba_query = _Sync(methods.hba_query)
    hba_export = _Sync(methods.hba_export)
    lun_add = _Sync(methods.lun_add)
    lun_map = _Sync(methods.lun_map)
    lun_remove = _Sync(methods.lun_remove)
    lun_resize = _Sync(methods.lun_resize)
    lun_set = _Sync(methods.lun_set)
    lun_pause = _Sync(methods.lun_pause)
    lun_resume = _Sync(methods.lun_resume)
    lun_flush = _Sync(methods.lun_flush)
    fault_add = _Sync(methods.fault_add)
    fault_scsi_debug = _Sync(methods.fault_scsi_debug)
    fault_list = _Sync(methods.fault_list)
    fault_release = _Sync(methods.fault_release)
    fault_remove = _Sync(methods.fault_remove)
    power_fail = _Sync(methods.power_fail)
    hostile_set = _Sync(methods.hostile_set)
    hostile_arm = _Sync(methods.hostile_arm)
    hostile_query = _Sync(methods.hostile_query)
    limits_query = _Sync(methods.limits_query)
    stats_query = _Sync(methods.stats_query)
    trace_start = _Sync(methods.trace_start)
    trace_stop = _Sync(methods.trace_stop)
    tmf_log = _Sync(methods.tmf_log)
    events_subscribe = _Sync(methods.events_subscribe)
    quit = _Sync(methods.quit)


class AsyncFace(ABC):
    """Calls are awaited. `rpc.RpcError` where one fails."""

    @abstractmethod
    async def invoke(self, method: Method[Any, Any], params: dict[str, Any]) -> Any:
        """Has a method done; its result."""

    hba_query = _Async(methods.hba_query)
    hba_export = _Async(methods.hba_export)
    lun_add = _Async(methods.lun_add)
    lun_map = _Async(methods.lun_map)
    lun_remove = _Async(methods.lun_remove)
    lun_resize = _Async(methods.lun_resize)
    lun_set = _Async(methods.lun_set)
    lun_pause = _Async(methods.lun_pause)
    lun_resume = _Async(methods.lun_resume)
    lun_flush = _Async(methods.lun_flush)
    fault_add = _Async(methods.fault_add)
    fault_scsi_debug = _Async(methods.fault_scsi_debug)
    fault_list = _Async(methods.fault_list)
    fault_release = _Async(methods.fault_release)
    fault_remove = _Async(methods.fault_remove)
    power_fail = _Async(methods.power_fail)
    hostile_set = _Async(methods.hostile_set)
    hostile_arm = _Async(methods.hostile_arm)
    hostile_query = _Async(methods.hostile_query)
    limits_query = _Async(methods.limits_query)
    stats_query = _Async(methods.stats_query)
    trace_start = _Async(methods.trace_start)
    trace_stop = _Async(methods.trace_stop)
    tmf_log = _Async(methods.tmf_log)
    events_subscribe = _Async(methods.events_subscribe)
    quit = _Async(methods.quit)
