"""How much of an event buffer the device writes (virtio 1.4, 5.6.4: event_info_size)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conformance.reads import within
from tests.unit.transport.harness import Server, attached, serving
from vscsi_emu.config import from_arguments
from vscsi_emu.driver.virtio_scsi import EVENT_QUEUE, KNOWN, Options
from vscsi_emu.scsi.unit import LogicalUnit
from vscsi_emu.virtio.features import Feature

ROOM = 64
CANARY = 0xA5


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    socket = str(tmp_path / "hba.sock")
    with serving(from_arguments(["0:0=mem:1M", "0:1=mem:1M"], socket=socket)) as running:
        yield running


def resize(server: Server) -> None:
    unit: LogicalUnit = server.hba.luns[0, 0]
    server.do(lambda: unit.resize(unit.blocks // 2))


def unplug(server: Server) -> None:
    server.run(server.hba.remove_lun((0, 1)))


@pytest.mark.normative("scsi.cfg.d10")
@pytest.mark.parametrize("features", [KNOWN, KNOWN & ~Feature.VERSION_1], ids=["modern", "legacy"])
@pytest.mark.parametrize("cause", [resize, unplug])
def test_an_event_is_no_longer_than_the_configuration_says(
    server: Server, cause: Callable[[Server], None], features: Feature
) -> None:
    options = Options(features=features, event_buffers=0)
    with attached(server.sockets[0], options) as device:
        size = device.config.event_info_size
        assert 0 < size < ROOM
        queue = device.queues[EVENT_QUEUE]
        ticket = queue.add([], [ROOM])
        [buffer] = ticket.writable
        device.bus.memory.write(buffer.address, bytes([CANARY]) * ROOM)
        device.publish(EVENT_QUEUE)
        used = queue.ring.layout.used_idx
        cause(server)
        assert within(lambda: device.bus.memory.load_u16_acquire(used) == 1)
        raw = device.bus.memory.read(queue.ring.layout.used_entry(0), 8)
        assert int.from_bytes(raw[4:], "little") <= size
        written = device.bus.memory.read(*buffer)
        assert written[size:] == bytes([CANARY]) * (ROOM - size)
        assert written[:size] != bytes([CANARY]) * size
