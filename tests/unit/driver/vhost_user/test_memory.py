"""The memory that a front end announces ("Memory access", "Memory regions", SET_MEM_TABLE)."""

from __future__ import annotations

import itertools

import pytest

from tests.unit.driver.vhost_user.back_end import (
    EVERYTHING,
    GUEST_BASE,
    GUEST_SIZE,
    BackEnd,
    Sent,
    bus_to,
)
from vscsi_emu.driver.vhost_user import SUPPORTED
from vscsi_emu.virtio import vhost_user as vu
from vscsi_emu.virtio.vhost_user import MemoryRegion, ProtocolFeature, WireError

PIECES = pytest.mark.parametrize("pieces", [1, 2, 3, 8])
Span = tuple[int, int]


def table(back_end: BackEnd) -> tuple[Sent, tuple[MemoryRegion, ...]]:
    [sent] = back_end.named(vu.SET_MEM_TABLE)
    assert isinstance(sent.payload, vu.MemoryTable)
    return sent, sent.payload.regions


def disjoint(spans: list[Span]) -> bool:
    """Whether no two of (start, length) share a byte."""
    ordered = sorted(spans)
    return all(a + length <= b for (a, length), (b, _) in itertools.pairwise(ordered))


@pytest.mark.normative("vu.mem.f1", "vu.mem.f2")
@PIECES
def test_regions_do_not_overlap_and_leave_nothing_out(pieces: int) -> None:
    with bus_to(back_end := BackEnd(), pieces=pieces):
        pass
    _, regions = table(back_end)
    assert len(regions) == pieces
    assert disjoint([(region.guest_address, region.size) for region in regions])
    assert disjoint([(region.user_address, region.size) for region in regions])
    assert sum(region.size for region in regions) == GUEST_SIZE
    assert min(region.guest_address for region in regions) == GUEST_BASE


@pytest.mark.normative("vu.mem.f4", "vu.comm.f1")
@PIECES
def test_each_region_has_its_descriptor_with_the_first_byte(pieces: int) -> None:
    with bus_to(back_end := BackEnd(), pieces=pieces):
        pass
    sent, regions = table(back_end)
    assert sent.fds == sent.fds_at_once == len(regions) == pieces


@pytest.mark.normative("vu.msg.f2")
@PIECES
def test_user_addresses_are_guest_addresses_with_gpa_addresses(pieces: int) -> None:
    wanted = SUPPORTED | ProtocolFeature.GPA_ADDRESSES
    for protocol, same in ((EVERYTHING, True), (SUPPORTED, False)):
        with bus_to(
            back_end := BackEnd(protocol=protocol), pieces=pieces, protocol_features=wanted
        ):
            pass
        _, regions = table(back_end)
        assert [r.user_address == r.guest_address for r in regions] == [same] * pieces


@pytest.mark.normative("vu.mem.f4", "vu.slots.f1")
@pytest.mark.parametrize(
    ("message", "payload", "right"),
    [
        (vu.SET_MEM_TABLE, vu.MemoryTable((MemoryRegion(0, 4096, 0, 0),) * 2), 2),
        (vu.ADD_MEM_REG, vu.SingleRegion(0, 4096, 0, 0), 1),
    ],
)
def test_a_wrong_number_of_descriptors_is_not_sent(
    message: vu.MessageType, payload: vu.Payload, right: int
) -> None:
    with bus_to(back_end := BackEnd()) as bus:
        before = len(back_end.named(message))
        for count in {0, 1, 2, 3} - {right}:
            with pytest.raises(WireError, match=f"{count} file descriptors instead of {right}"):
                bus.front_end.put(message, payload, [bus.memory.fileno()] * count)
        bus.front_end.put(message, payload, [bus.memory.fileno()] * right)
    assert [sent.fds for sent in back_end.named(message)][before:] == [right]
