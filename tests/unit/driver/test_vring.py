"""The driver's half of the split ring against a device played by hand."""

import pytest

from tests.unit.driver.ram import RecordingRam
from vscsi_emu.driver.dma import DmaAllocator
from vscsi_emu.driver.vring import (
    DESC_F_INDIRECT,
    DESC_F_NEXT,
    DESC_F_WRITE,
    DESCRIPTOR,
    USED_ELEMENT,
    RingBroken,
    RingFull,
    RingLayout,
    Segment,
    SplitRing,
    Used,
)

OUT = Segment(0x80000, 64)
IN = Segment(0x90000, 512)


class Device:
    """A ring in recording RAM, and the few stores that a device does to it."""

    def __init__(
        self,
        size: int = 8,
        *,
        legacy: bool = False,
        event_idx: bool = False,
        indirect: bool = False,
        trust_length: bool = True,
    ) -> None:
        self.ram = RecordingRam()
        self.allocator = DmaAllocator(0x1000, 0x40000)
        make = RingLayout.legacy if legacy else RingLayout.modern
        self.layout = make(self.allocator, size)
        self.ram.poke(self.layout.device, b"\xff" * (6 + 8 * size))
        self.ring = SplitRing(
            self.ram,
            self.allocator,
            self.layout,
            event_idx=event_idx,
            indirect=indirect,
            trust_length=trust_length,
        )
        self._used = 0

    def use(self, head: int, length: int = 0) -> None:
        entry = USED_ELEMENT.pack(head, length)
        self.ram.poke(self.layout.used_entry(self._used), entry)
        self.set_used_idx(self._used + 1)

    def set_used_idx(self, value: int) -> None:
        self._used = value & 0xFFFF
        self.ram.poke(self.layout.used_idx, self._used.to_bytes(2, "little"))

    def set_used_flags(self, value: int) -> None:
        self.ram.poke(self.layout.used_flags, value.to_bytes(2, "little"))

    def set_avail_event(self, value: int) -> None:
        self.ram.poke(self.layout.avail_event, (value & 0xFFFF).to_bytes(2, "little"))

    def descriptors(self, head: int, table: int | None = None) -> list[tuple[int, int, int]]:
        """(address, length, flags without NEXT) of a chain, followed as a device would."""
        chain = []
        index = head
        while True:
            base = self.layout.desc if table is None else table
            raw = self.ram.peek(base + DESCRIPTOR.size * index, DESCRIPTOR.size)
            address, length, flags, following = DESCRIPTOR.unpack(raw)
            chain.append((address, length, flags & ~DESC_F_NEXT))
            assert len(chain) <= self.layout.size, "the chain has a loop"
            if not flags & DESC_F_NEXT:
                return chain
            index = following


@pytest.mark.normative("split.vq.r1")
@pytest.mark.parametrize("size", [0, 3, 12, 65536])
def test_sizes_that_no_split_queue_has(size: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        RingLayout.modern(DmaAllocator(0, 1 << 22), size)


@pytest.mark.normative("split.vq.r2")
@pytest.mark.parametrize("size", [1, 2, 4, 256, 1024])
def test_alignment_of_the_three_parts(size: int) -> None:
    layout = RingLayout.modern(DmaAllocator(1, 1 << 20), size)
    assert (layout.desc % 16, layout.driver % 2, layout.device % 4) == (0, 0, 0)


@pytest.mark.normative("split.leg.r2", "split.leg.r3")
@pytest.mark.parametrize("size", [2, 128, 256, 1024])
def test_legacy_layout_is_one_block_padded_to_queue_align(size: int) -> None:
    allocator = DmaAllocator(1, 1 << 20)
    layout = RingLayout.legacy(allocator, size, 4096)
    assert layout.desc % 4096 == 0
    assert layout.driver == layout.desc + 16 * size
    front = 16 * size + 6 + 2 * size
    assert layout.device == layout.desc + (front + 4095) // 4096 * 4096
    assert allocator.allocated == layout.device - layout.desc + (6 + 8 * size + 4095) // 4096 * 4096


@pytest.mark.normative("split.anotif.r1")
def test_used_flags_are_cleared_when_the_ring_is_made() -> None:
    device = Device()
    assert device.ram.peek16(device.layout.used_flags) == 0


@pytest.mark.normative("split.frame.r1", "split.desc.r2")
def test_readable_segments_come_before_writable_ones() -> None:
    device = Device()
    head = device.ring.add([OUT, OUT], [IN, IN])
    assert device.descriptors(head) == [(*OUT, 0), (*OUT, 0)] + [(*IN, DESC_F_WRITE)] * 2


@pytest.mark.normative("split.desc.r1")
def test_a_chain_of_more_than_four_gibibytes_is_refused() -> None:
    big = Segment(0, 0xFFFFFFFF)
    with pytest.raises(ValueError, match=r"2\^32"):
        Device().ring.add([big, Segment(0, 2)], [])


@pytest.mark.normative("split.ind.r1")
def test_indirect_only_when_negotiated() -> None:
    with pytest.raises(ValueError, match="INDIRECT_DESC"):
        Device().ring.add([OUT], [IN], indirect_from=0)


@pytest.mark.normative("split.ind.r2", "split.ind.r4")
@pytest.mark.parametrize("split", [0, 1, 2, 3])
def test_indirect_table_ends_the_chain_and_does_not_nest(split: int) -> None:
    device = Device(indirect=True)
    head = device.ring.add([OUT, OUT], [IN, IN], indirect_from=split)
    *direct, (table, size, flags) = device.descriptors(head)
    assert flags == DESC_F_INDIRECT
    assert size == DESCRIPTOR.size * (4 - split)
    tabled = device.descriptors(0, table)
    assert not any(f & DESC_F_INDIRECT for _, _, f in direct + tabled)
    assert direct + tabled == [(*OUT, 0)] * 2 + [(*IN, DESC_F_WRITE)] * 2
    device.ring.publish()
    device.use(head)
    allocated = device.allocator.allocated
    device.ring.pop()
    assert device.allocator.allocated < allocated


@pytest.mark.normative("split.ind.r3")
@pytest.mark.parametrize("indirect_from", [None, 0])
def test_no_chain_is_longer_than_the_queue(indirect_from: int | None) -> None:
    device = Device(4, indirect=True)
    with pytest.raises(ValueError, match="do not fit"):
        device.ring.add([OUT] * 5, [], indirect_from=indirect_from)
    device.ring.add([OUT] * 4, [], indirect_from=indirect_from)


def test_a_full_ring_refuses_and_takes_nothing() -> None:
    device = Device(4)
    device.ring.add([OUT] * 3, [])
    with pytest.raises(RingFull):
        device.ring.add([OUT], [IN])
    assert (device.ring.free_descriptors, device.ring.in_flight) == (1, 1)


@pytest.mark.normative("split.supply.r1", "split.supply.r2", "split.supply.r3")
@pytest.mark.parametrize("event_idx", [False, True])
def test_order_of_publication(event_idx: bool) -> None:
    """Chains and ring entries, release store of the index, full fence, suppression read."""
    device = Device(event_idx=event_idx)
    device.ram.log.clear()
    device.ring.add([OUT], [IN])
    device.ring.add([OUT], [])
    assert {kind for kind, _ in device.ram.log} == {"write"}
    assert device.ram.peek16(device.layout.avail_idx) == 0
    device.ram.log.clear()
    device.ring.publish()
    suppression = device.layout.avail_event if event_idx else device.layout.used_flags
    assert device.ram.log == [
        ("store", device.layout.avail_idx),
        ("fence", 0),
        ("load", suppression),
    ]
    assert device.ram.peek16(device.layout.avail_idx) == 2


@pytest.mark.normative("split.anotif.r2", "split.anotif.r3", "split.anotif.r4")
def test_kicks_without_event_idx_follow_used_flags_alone() -> None:
    device = Device()
    for flags, wanted in ((0, True), (1, False)):
        for event in (0, 1, 2, 0xFFFF):
            device.set_used_flags(flags)
            device.set_avail_event(event)
            head = device.ring.add([OUT], [])
            assert device.ring.publish() is wanted
            device.use(head)
            assert device.ring.pop() is not None


@pytest.mark.normative("split.anotif.r5", "split.anotif.r6", "split.anotif.r7")
@pytest.mark.parametrize("flags", [0, 1])
@pytest.mark.parametrize(("event", "wanted"), [(-1, False), (0, True), (2, True), (3, False)])
def test_kicks_with_event_idx_follow_avail_event_alone(
    flags: int, event: int, wanted: bool
) -> None:
    device = Device(event_idx=True)
    device.set_used_flags(flags)
    device.set_avail_event(event)
    for _ in range(3):
        device.ring.add([OUT], [])
    assert device.ring.publish() is wanted


@pytest.mark.normative("split.avail.r1")
@pytest.mark.parametrize("event_idx", [False, True])
def test_indices_wrap_at_65536(event_idx: bool) -> None:
    device = Device(4, event_idx=event_idx)
    device.ram.log.clear()
    for n in range(65540):
        head = device.ring.add([OUT], [])
        device.set_avail_event(n)
        assert device.ring.publish()
        assert device.ram.peek16(device.layout.avail_idx) == (n + 1) & 0xFFFF
        device.use(head)
        assert device.ring.pop() == Used(head, 0)
        device.ram.log.clear()
    assert device.ring.pop() is None


@pytest.mark.normative("split.unotif.r1", "split.unotif.r2")
def test_suppression_by_flag() -> None:
    device = Device()
    device.ring.disable_notifications()
    assert device.ram.peek16(device.layout.avail_flags) == 1
    assert not device.ring.enable_notifications()
    assert device.ram.peek16(device.layout.avail_flags) == 0


@pytest.mark.normative("split.unotif.r3", "split.unotif.r4", "split.supply.r4")
def test_suppression_by_used_event() -> None:
    device = Device(event_idx=True)
    head = device.ring.add([OUT], [])
    device.ring.publish()
    device.ring.disable_notifications()
    assert device.ram.peek16(device.layout.used_event) == 0xFFFF
    device.use(head)
    device.ram.log.clear()
    assert device.ring.enable_notifications(), "what came in meanwhile must be noticed"
    assert device.ram.log == [
        ("store", device.layout.used_event),
        ("fence", 0),
        ("load", device.layout.used_idx),
    ]
    assert device.ring.pop() == Used(head, 0)
    assert not device.ring.enable_notifications(3)
    assert device.ram.peek16(device.layout.used_event) == 4
    assert device.ram.peek16(device.layout.avail_flags) == 0


@pytest.mark.normative("split.unotif.r5")
def test_nothing_used_is_nothing_popped() -> None:
    device = Device()
    device.ring.add([OUT], [])
    device.ring.publish()
    assert device.ring.pop() is None


def test_out_of_order_use() -> None:
    device = Device()
    heads = [device.ring.add([OUT], [IN]) for _ in range(4)]
    device.ring.publish()
    for head in reversed(heads):
        device.use(head, head)
    assert [device.ring.pop() for _ in heads] == [Used(h, h) for h in reversed(heads)]
    assert device.ring.free_descriptors == 8


def test_a_head_that_is_not_in_flight() -> None:
    device = Device()
    device.ring.add([OUT], [])
    device.ring.publish()
    device.use(5)
    with pytest.raises(RingBroken, match="head 5"):
        device.ring.pop()


def test_more_used_than_exposed() -> None:
    device = Device()
    device.ring.add([OUT], [])
    device.ring.add([OUT], [])
    device.ring.publish()
    device.ring.add([OUT], [])  # not exposed
    device.set_used_idx(3)
    with pytest.raises(RingBroken, match="3 elements used, 2 in flight"):
        device.ring.pop()


def test_a_length_beyond_the_writable_bytes() -> None:
    device = Device()
    device.use(device.ring.add([OUT], [IN]), 513)
    device.ring.publish()
    with pytest.raises(RingBroken, match="513 bytes used"):
        device.ring.pop()


@pytest.mark.normative("scsi.used.leg.r1")
def test_legacy_lengths_are_ignored() -> None:
    device = Device(legacy=True, trust_length=False)
    head = device.ring.add([OUT], [IN])
    device.ring.publish()
    device.use(head, 576)
    assert device.ring.pop() == Used(head, 576)
