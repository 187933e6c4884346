"""The guest driver against a device played in Python."""

import struct
from dataclasses import replace

import pytest

from tests.unit.driver.device import OFFERED, Chain, FakeBus
from vscsi_emu.driver.host_byte import HostByte
from vscsi_emu.driver.request import AnswerError, Request, TaskAttribute, every, joined, paged
from vscsi_emu.driver.virtio_scsi import (
    EVENT_QUEUE,
    KNOWN,
    REQUEST_QUEUE,
    Options,
    ProbeError,
    VirtioScsi,
)
from vscsi_emu.driver.vring import RingFull
from vscsi_emu.virtio.config import ScsiConfig
from vscsi_emu.virtio.features import Feature
from vscsi_emu.virtio.scsi import AsyncReply, Event, Response, TmfType, encode_lun

SENSE_SIZE = 96


def answer(
    data: bytes = b"",
    *,
    response: int = 0,
    status: int = 0,
    sense: bytes = b"",
    residual: int = 0,
    sense_size: int = SENSE_SIZE,
) -> bytes:
    fixed = struct.pack("<IIHBB", len(sense), residual, 0, status, response)
    return fixed + sense.ljust(sense_size, b"\0") + data


def good(chain: Chain) -> bytes | None:
    """Events are kept, control requests succeed, reads are given their CDB back."""
    if chain.queue == EVENT_QUEUE:
        return None
    if chain.queue < REQUEST_QUEUE:
        return b"\0"
    room = sum(s.length for s in chain.writable) - 12 - SENSE_SIZE
    return answer((chain.request[19:51] * (room // 32 + 1))[:room])


def keep(chain: Chain) -> None:
    return None


# ── Probe ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.normative(
    "init.r1", "init.r3", "status.r1", "status.r2", "scsi.init.r1", "scsi.cfg.r2", "init.r8"
)
def test_order_of_initialization() -> None:
    bus = FakeBus(good)
    VirtioScsi(bus, Options(cdb_size=64, sense_size=128))
    assert bus.log == [
        ("reset", 0),
        ("status", 1),
        ("status", 3),
        ("features", OFFERED),
        ("status", 11),
        ("config", 20),
        ("config", 24),
        ("queue", 0),
        ("queue", 1),
        ("queue", 2),
        ("status", 15),
        ("notify", EVENT_QUEUE),
    ]


@pytest.mark.normative("init.leg.r1", "feat.leg.r1")
def test_legacy_device_has_no_features_ok() -> None:
    bus = FakeBus(good, offered=OFFERED & ~Feature.VERSION_1)
    VirtioScsi(bus)
    assert [s for kind, s in bus.log if kind == "status"] == [1, 3, 7]


@pytest.mark.normative("feat.r1", "feat.r4", "feat.r5", "feat.r8", "rsvd.r9", "rsvd.leg.r2")
def test_only_known_and_offered_features_are_accepted() -> None:
    bus = FakeBus(good, offered=(1 << 64) - 1)
    VirtioScsi(bus)
    assert bus.driver_features == KNOWN
    assert not bus.driver_features & (1 << 30 | 1 << 37 | 1 << 50)
    bus = FakeBus(good, offered=0)
    VirtioScsi(bus)
    assert bus.driver_features == 0


@pytest.mark.normative("rsvd.r1", "rsvd.leg.r1", "feat.r6")
def test_version_1_and_any_layout_are_accepted_if_offered() -> None:
    for offered in (Feature.VERSION_1, Feature.ANY_LAYOUT, Feature.EVENT_IDX):
        bus = FakeBus(good, offered=offered)
        VirtioScsi(bus)
        assert bus.driver_features == offered


@pytest.mark.normative("init.r5", "init.r6", "init.r7", "feat.r7")
def test_features_that_the_device_does_not_take() -> None:
    bus = FakeBus(good, accepts=False)
    with pytest.raises(ProbeError, match="refused"):
        VirtioScsi(bus)
    assert bus.log[-1] == ("status", 0x8B)
    assert not [entry for entry in bus.log if entry[0] == "queue"]


@pytest.mark.normative("scsi.cfg.r1")
def test_request_queues_are_as_many_as_wanted() -> None:
    for wanted, count in ((1, 1), (2, 2), (9, 2), (None, 2)):
        device = VirtioScsi(FakeBus(good), Options(queues=wanted))
        assert len(device.queues) == REQUEST_QUEUE + count


@pytest.mark.normative("cfg.r5", "cfg.r6")
def test_a_longer_configuration_space_is_fine() -> None:
    class Longer(FakeBus):
        def read_config(self, offset: int, length: int) -> bytes:
            return (super().read_config(0, 100) + bytes(64))[offset : offset + length]

    assert VirtioScsi(Longer(good)).config.num_queues == 2


# ── Commands ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.normative("scsi.req.r3", "split.frame.r1")
def test_request_header() -> None:
    seen: list[Chain] = []

    def handler(chain: Chain) -> bytes | None:
        seen.append(chain)
        return good(chain)

    device = VirtioScsi(FakeBus(handler))
    device.execute(7, 300, b"\x2a" + bytes(9), data_out=b"payload")
    chain = seen[-1]
    lun, tag, attribute, priority, crn = struct.unpack_from("<8sQBBB", chain.request)
    assert lun == bytes([1, 7, 0x41, 0x2C, 0, 0, 0, 0])
    assert tag
    assert (attribute, priority, crn) == (0, 0, 0)
    assert chain.request[19:51] == b"\x2a" + bytes(31)
    assert chain.request[51:] == b"payload"
    assert [s.length for s in chain.writable] == [12 + SENSE_SIZE]


@pytest.mark.normative("scsi.frame.leg.r1", "scsi.frame.leg.r2")
def test_headers_are_in_single_descriptors_by_default() -> None:
    seen: list[Chain] = []

    def handler(chain: Chain) -> bytes | None:
        seen.append(chain)
        return good(chain)

    device = VirtioScsi(FakeBus(handler, offered=0))
    device.execute(0, 0, bytes(6), data_out=bytes(100))
    device.execute(0, 0, bytes(6), data_in_length=100)
    assert [s.length for s in seen[-2].readable] == [51, 100]
    assert [s.length for s in seen[-1].writable] == [108, 100]


@pytest.mark.parametrize("framing", [joined, every(7), paged(16)])
def test_framings_carry_the_same_bytes(framing: object) -> None:
    assert callable(framing)
    device = VirtioScsi(FakeBus(good), Options(framing=framing))
    result = device.execute(0, 0, bytes(range(16)), data_in_length=64)
    assert result.data == (bytes(range(16)) + bytes(16)) * 2


def test_sizes_of_cdb_and_sense_shape_the_request() -> None:
    def handler(chain: Chain) -> bytes | None:
        if chain.queue == EVENT_QUEUE:
            return None
        assert len(chain.request) == 19 + 48
        return answer(b"0123", sense=b"s" * 40, status=2, sense_size=44)

    device = VirtioScsi(FakeBus(handler), Options(cdb_size=48, sense_size=44))
    result = device.execute(0, 0, bytes(6), data_in_length=4)
    assert (result.data, result.sense) == (b"0123", b"s" * 40)
    with pytest.raises(ValueError, match="cdb_size is 48"):
        device.execute(0, 0, bytes(49))


@pytest.mark.parametrize(("residual", "data"), [(0, b"abcd"), (1, b"abc"), (4, b""), (99, b"")])
def test_data_end_where_the_residual_begins(residual: int, data: bytes) -> None:
    device = VirtioScsi(
        FakeBus(lambda c: None if c.queue == EVENT_QUEUE else answer(b"abcd", residual=residual))
    )
    result = device.execute(0, 0, bytes(6), data_in_length=4)
    assert (result.residual, result.data) == (residual, data)


@pytest.mark.normative("split.used.r1", "split.used.r2")
def test_what_the_device_did_not_write_is_not_data() -> None:
    device = VirtioScsi(
        FakeBus(lambda c: None if c.queue == EVENT_QUEUE else answer(b"ab", residual=0))
    )
    assert device.execute(0, 0, bytes(6), data_in_length=4).data == b"ab"


@pytest.mark.parametrize(
    "reply", [b"", bytes(11), answer(sense=b"x" * 97), answer(sense=b"x" * 20)[:30]]
)
def test_answers_that_contradict_themselves(reply: bytes) -> None:
    device = VirtioScsi(FakeBus(lambda c: None if c.queue == EVENT_QUEUE else reply[:108]))
    with pytest.raises(AnswerError):
        device.execute(0, 0, bytes(6))


@pytest.mark.parametrize(
    ("response", "host"),
    [
        (Response.OK, HostByte.OK),
        (Response.OVERRUN, HostByte.ERROR),
        (Response.ABORTED, HostByte.ABORT),
        (Response.BAD_TARGET, HostByte.BAD_TARGET),
        (Response.RESET, HostByte.RESET),
        (Response.BUSY, HostByte.BUS_BUSY),
        (Response.TRANSPORT_FAILURE, HostByte.TRANSPORT_DISRUPTED),
        (Response.TARGET_FAILURE, HostByte.TARGET_FAILURE),
        (Response.NEXUS_FAILURE, HostByte.NEXUS_FAILURE),
        (Response.FAILURE, HostByte.ERROR),
        (200, HostByte.ERROR),
    ],
)
def test_host_bytes(response: int, host: HostByte) -> None:
    reply = answer(response=response)
    device = VirtioScsi(FakeBus(lambda c: None if c.queue == EVENT_QUEUE else reply))
    assert device.execute(0, 0, bytes(6)).host_byte is host


def test_no_answer_is_a_timeout() -> None:
    device = VirtioScsi(FakeBus(keep), timeout=0.02)
    with pytest.raises(TimeoutError, match="answer to request"):
        device.execute(0, 0, bytes(6))


@pytest.mark.normative("scsi.cfg.r3", "scsi.cfg.r4")
def test_no_more_than_cmd_per_lun_are_in_flight() -> None:
    bus = FakeBus(keep, config=ScsiConfig(cmd_per_lun=3))
    device = VirtioScsi(bus, timeout=0.02)
    events = len(bus.kept)
    items = [device.submit(0, 0, bytes(6)) for _ in range(3)]
    with pytest.raises(TimeoutError, match="cmd_per_lun"):
        device.submit(0, 0, bytes(6))
    other = device.submit(0, 1, bytes(6))  # of another unit
    bus.use(bus.kept[events], answer())
    device.submit(0, 0, bytes(6))
    assert items[0].done
    assert not other.done


def test_an_old_guest_ignores_the_limits() -> None:
    bus = FakeBus(keep, config=ScsiConfig(cmd_per_lun=1, max_sectors=1))
    device = VirtioScsi(bus, Options(obey_limits=False), timeout=0.02)
    for _ in range(5):
        device.submit(0, 0, bytes(6), data_in_length=4096)
    assert len([chain for chain in bus.kept if chain.queue == REQUEST_QUEUE]) == 5


def test_more_than_max_sectors_is_refused() -> None:
    device = VirtioScsi(FakeBus(good, config=ScsiConfig(max_sectors=2)))
    device.execute(0, 0, bytes(6), data_in_length=1024)
    with pytest.raises(ValueError, match="max_sectors"):
        device.execute(0, 0, bytes(6), data_in_length=1025)


def test_room_in_the_ring_is_waited_for() -> None:
    bus = FakeBus(good)
    options = Options(queue_size=4, indirect_from=None)
    device = VirtioScsi(bus, options)
    request = Request(encode_lun(0, 0), bytes(6), 1)
    items = [device.submit_request(request, publish=False) for _ in range(10)]
    device.publish(REQUEST_QUEUE)
    assert all(result.response == 0 for result in device.wait_all(items))


def test_a_chain_that_never_fits() -> None:
    device = VirtioScsi(FakeBus(good), Options(queue_size=4, indirect_from=None, framing=every(40)))
    with pytest.raises((RingFull, ValueError)):
        device.execute(0, 0, bytes(6))


def test_task_attribute_goes_out() -> None:
    seen: list[int] = []

    def handler(chain: Chain) -> bytes | None:
        if chain.queue == REQUEST_QUEUE:
            seen.append(chain.request[16])
        return good(chain)

    device = VirtioScsi(FakeBus(handler))
    request = Request(encode_lun(0, 0), bytes(6), 1)
    for attribute in TaskAttribute:
        device.wait(device.submit_request(replace(request, task_attribute=attribute)))
    assert seen == [0, 1, 2, 3]


# ── Control and events ──────────────────────────────────────────────────────────────────────────


def test_task_management_request() -> None:
    seen: list[Chain] = []

    def handler(chain: Chain) -> bytes | None:
        if chain.queue == 0:
            seen.append(chain)
            return bytes([Response.FUNCTION_REJECTED])
        return None

    device = VirtioScsi(FakeBus(handler))
    response = device.task_management(TmfType.ABORT_TASK, 3, 4, tag=0x1122)
    assert response == Response.FUNCTION_REJECTED
    assert seen[0].request == struct.pack("<II8sQ", 0, 0, encode_lun(3, 4), 0x1122)


def test_asynchronous_requests() -> None:
    def handler(chain: Chain) -> bytes | None:
        if chain.queue != 0:
            return None
        kind, _, events = struct.unpack("<I8sI", chain.request)
        return AsyncReply(events & 0x10, kind).pack()

    device = VirtioScsi(FakeBus(handler))
    assert device.query_async(0, 0, 0x7E) == AsyncReply(0x10, 1)
    assert device.subscribe_async(0, 0, 0x0E) == AsyncReply(0, 2)


@pytest.mark.normative("scsi.evt.r1", "scsi.evt.r2", "scsi.evt.r3", "scsi.evt.r4", "scsi.init.r2")
@pytest.mark.parametrize(("size", "expected"), [(16, 16), (24, 24), (4, 16)])
def test_event_queue_is_kept_filled(size: int, expected: int) -> None:
    bus = FakeBus(good, config=ScsiConfig(event_info_size=size))
    device = VirtioScsi(bus, Options(event_buffers=5))
    assert len(bus.kept) == 5
    for chain in bus.kept:
        assert not chain.readable
        assert [s.length for s in chain.writable] == [expected]
    events = [Event(3, encode_lun(0, n), 0x092A) for n in range(2)]
    for event in events:
        bus.use(bus.kept.pop(0), event.pack())
    assert [device.next_event(), device.next_event(), device.next_event()] == [*events, None]
    assert len(bus.kept) == 5, "used buffers were not replaced"
