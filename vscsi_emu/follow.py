"""Host devices that go, come back and change while they are served."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from vscsi_emu.backends.sg import SgBackend
from vscsi_emu.followed import Followed
from vscsi_emu.host.attributes import Attributes
from vscsi_emu.host.errors import HostError
from vscsi_emu.host.monitor import Monitor

if TYPE_CHECKING:
    from vscsi_emu.disk import Disk
    from vscsi_emu.service import Service

log = logging.getLogger(__name__)

_PAUSE_SECONDS: Final = 1.0


class Follower:
    """Follows all units that are host devices: those that go are unplugged, those that come back
    plugged in again, and guests hear of new limits and capacities. Needs a running event loop."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._followed: dict[Disk, Followed] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._listening: asyncio.Task[None] | None = None
        self._attributes: Attributes | None = None

    def start(self) -> None:
        """What cannot be had here is done without: then commands alone show what has happened."""
        try:
            self._attributes = Attributes()
        except HostError as error:
            log.warning("limits that are changed on the host are noticed late: %s", error)
        try:
            monitor = Monitor()
        except HostError as error:
            log.warning("host devices that go or change are noticed late: %s", error)
        else:
            self._listening = asyncio.create_task(self._listen(monitor))
        self.look()

    async def close(self) -> None:
        """Before the HBAs are closed."""
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.gather(self._listening, return_exceptions=True)
        await asyncio.gather(*(followed.close() for followed in self._followed.values()))
        await asyncio.gather(*self._closing)
        if self._attributes is not None:
            self._attributes.close()

    def look(self) -> None:
        """There may be new disks. What became of a device since it was opened shows only now."""
        for disk in self._service.disks.values():
            if isinstance(disk.backend, SgBackend) and disk not in self._followed:
                watch = self._attributes.watch if self._attributes else _unwatched
                over = partial(self._forget, disk)
                self._followed[disk] = Followed(self._service, disk, watch, over)
        for followed in self._followed.values():
            followed.look()

    def _forget(self, disk: Disk) -> None:
        closing = asyncio.create_task(self._followed.pop(disk).close())
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    async def _listen(self, monitor: Monitor) -> None:
        while True:
            try:
                async for change in monitor:
                    for followed in list(self._followed.values()):
                        followed.hear(change)
            except Exception:
                log.exception("listening to the kernel's device events anew")
            await asyncio.sleep(_PAUSE_SECONDS)
            try:
                monitor = Monitor()
            except HostError as error:
                log.warning("host devices that go or change are noticed late: %s", error)
                return
            self.look()


def _unwatched(*_: object) -> Callable[[], None]:
    return lambda: None
