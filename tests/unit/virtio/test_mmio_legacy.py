"""The legacy interface: pages instead of addresses, no FEATURES_OK (virtio 1.4, 3.1.2, 4.2.4)."""

import pytest

from tests.unit.virtio.mmio import OFFERED, QUEUES, Guest
from vscsi_emu.driver.dma import DmaAllocator
from vscsi_emu.driver.vring import RingLayout
from vscsi_emu.virtio.features import Feature, Status
from vscsi_emu.virtio.mmio import Misuse
from vscsi_emu.virtio.mmio_queue import QueueSetup
from vscsi_emu.virtio.mmio_registers import LEGACY, InterruptBit, Register

PAGE = 4096


@pytest.fixture
def guest() -> Guest:
    """At DRIVER_OK."""
    guest = Guest(LEGACY)
    guest.set(Register.GUEST_PAGE_SIZE, PAGE)
    guest.run()
    return guest


def use(guest: Guest, index: int, frame: int, *, size: int = 256, align: int = PAGE) -> None:
    guest.set(Register.QUEUE_SEL, index)
    guest.set(Register.QUEUE_SIZE, size)
    guest.set(Register.QUEUE_ALIGN, align)
    guest.set(Register.QUEUE_PFN, frame)


def started(guest: Guest) -> QueueSetup:
    """The one queue that was started since the last look."""
    [call] = guest.backend.take()
    what, _, setup = call
    assert what == "start"
    assert isinstance(setup, QueueSetup)
    return setup


@pytest.mark.normative("mmio.leg.d2")
@pytest.mark.parametrize("page", [1, 4096, 65536])
def test_the_descriptor_table_is_at_the_page(guest: Guest, page: int) -> None:
    guest.set(Register.GUEST_PAGE_SIZE, page)
    use(guest, 0, 0x8_0000)
    assert started(guest).desc == 0x8_0000 * page


@pytest.mark.normative("mmio.leg.d3")
@pytest.mark.parametrize(
    ("size", "align", "device"),
    [
        # 16 * size + 2 * size + 6, rounded up.
        (1, 4, 24),
        (256, 4, 4616),
        (256, 64, 4672),
        (256, 4096, 8192),
        (1024, 4096, 20480),
        (128, 65536, 65536),
    ],
)
def test_the_used_ring_is_aligned(guest: Guest, size: int, align: int, device: int) -> None:
    use(guest, 0, 0x1000, size=size, align=align)
    base = 0x1000 * PAGE
    assert started(guest) == QueueSetup(size, base, base + 16 * size, base + device)


@pytest.mark.parametrize("size", [1, 2, 64, 512, 1024])
def test_device_and_driver_agree_on_the_layout(guest: Guest, size: int) -> None:
    ring = RingLayout.legacy(DmaAllocator(PAGE, 1 << 20), size)
    use(guest, 0, ring.desc // PAGE, size=size)
    assert started(guest) == QueueSetup(size, ring.desc, ring.driver, ring.device)


def test_the_alignment_is_a_page_unless_it_is_set(guest: Guest) -> None:
    guest.set(Register.QUEUE_SEL, 0)
    guest.set(Register.QUEUE_SIZE, 16)
    guest.set(Register.QUEUE_PFN, 1)
    assert started(guest).device == 2 * PAGE


@pytest.mark.normative("mmio.leg.d4")
def test_queue_pfn_reads_back(guest: Guest) -> None:
    use(guest, 1, 0x1234)
    assert guest.get(Register.QUEUE_PFN) == 0x1234
    guest.set(Register.QUEUE_SEL, 0)
    assert guest.get(Register.QUEUE_PFN) == 0


@pytest.mark.normative("mmio.leg.d5")
def test_queue_pfn_0_stops(guest: Guest) -> None:
    use(guest, 1, 0x1234)
    guest.backend.take()
    guest.set(Register.QUEUE_PFN, 0)
    assert guest.backend.take() == [("stop", 1, False)]
    assert guest.get(Register.QUEUE_PFN) == 0x1234, "it has not stopped yet"
    guest.set(Register.QUEUE_NOTIFY, 1)
    assert not guest.backend.calls
    guest.device.queue_stopped(1)
    assert guest.get(Register.QUEUE_PFN) == 0


def test_a_stopped_queue_may_move(guest: Guest) -> None:
    use(guest, 1, 0x1234)
    guest.set(Register.QUEUE_PFN, 0)
    guest.device.queue_stopped(1)
    guest.backend.take()
    use(guest, 1, 0x20, size=8)
    assert started(guest) == QueueSetup(8, 0x20000, 0x20080, 0x21000)


@pytest.mark.normative("mmio.leg.d6")
def test_a_reset_clears_queue_pfn(guest: Guest) -> None:
    for index in range(QUEUES):
        use(guest, index, 0x100 * (index + 1))
    guest.reset()
    for index in range(QUEUES):
        guest.set(Register.QUEUE_SEL, index)
        assert guest.get(Register.QUEUE_PFN) == 0


@pytest.mark.normative("mmio.leg.d7")
@pytest.mark.parametrize(("index", "maximum"), [(QUEUES - 1, 1024), (QUEUES, 0), (1 << 31, 0)])
def test_queue_size_max(guest: Guest, index: int, maximum: int) -> None:
    guest.set(Register.QUEUE_SEL, index)
    assert guest.get(Register.QUEUE_SIZE_MAX) == maximum


@pytest.mark.parametrize("value", [0, 3, 4095, 0xFFFF_FFFF])
def test_sizes_and_alignments_are_powers_of_two(guest: Guest, value: int) -> None:
    guest.set(Register.GUEST_PAGE_SIZE, value)
    guest.set(Register.QUEUE_SEL, 0)
    guest.set(Register.QUEUE_ALIGN, value)
    assert guest.device.counters == {Misuse.VALUE: 2}
    guest.set(Register.QUEUE_SIZE, 16)
    guest.set(Register.QUEUE_PFN, 1)
    assert started(guest) == QueueSetup(16, PAGE, PAGE + 256, 2 * PAGE), "as before"


def test_a_queue_in_use_stays_where_it_is(guest: Guest) -> None:
    use(guest, 0, 0x1234)
    guest.backend.take()
    use(guest, 0, 0x5678, size=16)
    assert guest.get(Register.QUEUE_PFN) == 0x1234
    assert guest.device.counters == {Misuse.QUEUE_IN_USE: 3}
    assert not guest.backend.calls


@pytest.mark.normative("init.leg.d2")
def test_a_queue_works_before_driver_ok() -> None:
    guest = Guest(LEGACY)
    guest.acknowledge()
    guest.choose(Feature.EVENT_IDX)
    guest.set(Register.GUEST_PAGE_SIZE, PAGE)
    use(guest, 2, 0x10, size=8)
    guest.set(Register.QUEUE_NOTIFY, 2)
    assert guest.backend.take() == [
        ("features", Feature.EVENT_IDX),
        ("start", 2, QueueSetup(8, 0x10000, 0x10080, 0x11000)),
        ("notify", 2),
    ]
    guest.add_status(Status.DRIVER_OK)
    assert not guest.backend.calls, "it runs already"


@pytest.mark.normative("init.leg.d1")
def test_config_may_be_written_before_features() -> None:
    guest = Guest(LEGACY)
    guest.device.write(Register.CONFIG + 20, 1, 0x55)
    assert guest.device.read(Register.CONFIG + 20, 1) == 0x55
    guest.choose(OFFERED)
    assert guest.device.read(Register.CONFIG + 20, 1) == 0x55


def test_config_written_before_all_else_is_undone_by_a_reset() -> None:
    guest = Guest(LEGACY)
    guest.device.write(Register.CONFIG + 20, 1, 0x55)
    guest.set(Register.STATUS, 0)
    assert guest.backend.take() == [("reset",)]
    assert guest.status, "0 would say that the reset is complete"
    guest.device.reset_done()
    assert guest.status == 0


@pytest.mark.normative("status.d3")
@pytest.mark.parametrize("size", [0, 3, 2048])
def test_a_queue_that_cannot_start_breaks_the_device(guest: Guest, size: int) -> None:
    use(guest, 0, 1, size=size)
    assert Status.NEEDS_RESET in guest.status
    assert guest.get(Register.INTERRUPT_STATUS) == InterruptBit.CONFIG_CHANGE
    assert not guest.backend.calls


def test_a_queue_without_a_page_size_breaks_the_device() -> None:
    guest = Guest(LEGACY)
    guest.run()
    use(guest, 0, 1)
    assert Status.NEEDS_RESET in guest.status


def test_the_highest_page_of_the_largest_size_has_an_address(guest: Guest) -> None:
    guest.set(Register.GUEST_PAGE_SIZE, 1 << 31)
    use(guest, 0, 0xFFFF_FFFF, align=1 << 31)
    assert started(guest).device == 1 << 63
