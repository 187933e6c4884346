"""A unit that two HBAs export, with commands that end only when a test says so."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.conformance import cdb
from tests.conformance.cdb import Disk
from tests.unit.transport.harness import Server, attached, serving
from vscsi_emu.backends.uri import parse_uri, with_key
from vscsi_emu.config import Config, HbaConfig, LunConfig
from vscsi_emu.driver.request import Request, Result, TaskAttribute
from vscsi_emu.driver.scan import retried
from vscsi_emu.driver.virtio_scsi import REQUEST_QUEUE, InFlight, Options, VirtioScsi
from vscsi_emu.scsi import LogicalUnit
from vscsi_emu.scsi.nexus import Abort
from vscsi_emu.virtio.scsi import Response, TmfType, encode_lun

if TYPE_CHECKING:
    from vscsi_emu import _dataplane

SIMPLE, ORDERED = TaskAttribute.SIMPLE, TaskAttribute.ORDERED
HEAD, ACA = TaskAttribute.HEAD, TaskAttribute.ACA
NACA: Final = 0x04
TASK_SET_FULL: Final = 0x28
ACA_ACTIVE: Final = 0x30
TASK_ABORTED: Final = 0x40
BUSY: Final = 0x08
BAD_LBA: Final = 0xFFFF_FFFF
_BLOCKS: Final = 2048


@dataclass(frozen=True)
class Node:
    """One driver. Commands go to target 0 unless a LUN is given, by default on the first queue."""

    device: VirtioScsi

    def send(
        self,
        raw: bytes,
        attribute: int = SIMPLE,
        *,
        data_out: bytes = b"",
        data_in_length: int = 0,
        queue: int = 0,
        lun: int = 0,
    ) -> InFlight[Result]:
        request = Request(
            encode_lun(0, lun), raw, self.device.next_tag(), data_out, data_in_length, attribute
        )
        return self.device.submit_request(request, queue=REQUEST_QUEUE + queue)

    def run(self, raw: bytes, attribute: int = SIMPLE, *, data_in_length: int = 0) -> Result:
        return self.device.wait(self.send(raw, attribute, data_in_length=data_in_length))

    def end(self, item: InFlight[Result]) -> tuple[int, int]:
        """(response, status) of a command."""
        result = self.device.wait(item)
        return result.response, result.status

    def waits(self, item: InFlight[Result], lun: int = 0) -> bool:
        """Whether a command is in the task set, and not complete."""
        response = self.device.task_management(TmfType.QUERY_TASK, 0, lun, item.tag)
        self.device.reap(item.queue)
        return response == Response.FUNCTION_SUCCEEDED and not item.done

    def tmf(self, function: TmfType, tag: int = 0, lun: int = 0) -> int:
        """The response; what was used until then is taken back."""
        response = self.device.task_management(function, 0, lun, tag)
        for queue in self.device.queues:
            if queue >= REQUEST_QUEUE:
                self.device.reap(queue)
        return response

    def hold(self, attribute: int = SIMPLE, *, queue: int = 0, lun: int = 0) -> InFlight[Result]:
        """A command that ends when the rig lets it: PERSISTENT RESERVE OUT, REGISTER AND IGNORE
        EXISTING KEY, which waits for what runs. It is in the task set on return."""
        raw = struct.pack(">BB5xHB", 0x5F, 0x06, 24, 0)
        item = self.send(raw, attribute, data_out=bytes(24), queue=queue, lun=lun)
        assert self.waits(item, lun)
        return item

    def fail(self, attribute: int = SIMPLE, *, naca: bool = True) -> None:
        """A command that ends with CHECK CONDITION."""
        result = self.run(read(BAD_LBA, naca=naca), attribute, data_in_length=512)
        cdb.expect_sense(result, cdb.ILLEGAL_REQUEST, 0x2100)

    def attentions(self) -> list[int]:
        """Takes all unit attentions: ASC and ASCQ of each."""
        codes = []
        while (result := self.run(cdb.test_unit_ready())).status:
            assert result.status == cdb.CHECK_CONDITION
            codes.append(result.sense[12] << 8 | result.sense[13])
        return codes

    def set_control(self, *, qerr: int = 0, tas: bool = False, restricted: bool = False) -> None:
        """MODE SELECT of the Control mode page."""
        flags = (0 if restricted else 0x10) | qerr << 1
        page = bytes([0x0A, 0x0A, 0x02, flags, 0, 0x40 if tas else 0]) + bytes(6)
        data = bytes(4) + page
        item = self.send(bytes([0x15, 0x10, 0, 0, len(data), 0]), data_out=data)
        cdb.expect_good(self.device.wait(item))


def read(lba: int = 0, *, naca: bool = False) -> bytes:
    raw = bytearray(cdb.read_10(lba, 1))
    raw[9] = NACA if naca else 0
    return bytes(raw)


class Rig:
    """Two nodes, A and B, of which A has the unit at LUN 0 and at LUN 5."""

    def __init__(self, server: Server, nodes: list[VirtioScsi]) -> None:
        self.a, self.b = (Node(device) for device in nodes)
        self.server = server
        self.unit: LogicalUnit = server.service.units["a"]
        self._go = asyncio.Event()
        self.unit._quiesce = self._wait
        for node in (self.a, self.b):
            Disk(node.device, 0, 0).ready()
        assert retried(self.a.device, 0, 5, cdb.test_unit_ready(), 0).status == 0

    async def _wait(self, _: _dataplane.Lu) -> None:
        await self._go.wait()

    def release(self) -> None:
        """Lets all held commands end, and those that come."""
        self.server.do(self._go.set)

    def delay_aborts(self) -> Callable[[], None]:
        """Aborts begin as ever, and the device learns that they are done once this is called."""
        done = asyncio.Event()

        async def late(begun: Awaitable[int]) -> int:
            await done.wait()
            return await begun

        def delayed(abort: Abort) -> Abort:
            return lambda *, status=None, until=None: late(abort(status=status, until=until))

        for nexus in self.unit.nexuses:
            nexus.abort = delayed(nexus.abort)
        return lambda: self.server.do(done.set)

    def delay_reset(self) -> Callable[[], None]:
        """Commands end as ever, and the storage is done with the reset once this is called."""
        done = asyncio.Event()

        async def interrupt() -> None:
            await done.wait()

        self.unit.interrupt = interrupt  # type: ignore[method-assign]
        return lambda: self.server.do(done.set)


@contextmanager
def rig(directory: Path, *, queue_depth: int | None = None) -> Iterator[Rig]:
    spec = parse_uri(f"mem:{_BLOCKS * 512}")
    if queue_depth is not None:
        spec = with_key(spec, "queue-depth", str(queue_depth))
    hbas = (
        HbaConfig(str(directory / "a.sock"), None, 2, {(0, 0): "a", (0, 5): "a"}),
        HbaConfig(str(directory / "b.sock"), None, 2, {(0, 0): "a"}),
    )
    with serving(Config((LunConfig("a", spec),), hbas), workers=2) as server, ExitStack() as stack:
        options = Options(queues=None, queue_size=256)
        made = Rig(
            server,
            [stack.enter_context(attached(path, options)) for path in server.sockets],
        )
        stack.callback(made.release)
        yield made
