import pytest
from hypothesis import given
from hypothesis import strategies as st

from vscsi_emu.driver.dma import DmaAllocator, DmaExhausted


def test_alignment_and_exhaustion() -> None:
    allocator = DmaAllocator(1, 4096)
    assert allocator.alloc(1, 1) == 1
    assert allocator.alloc(16, 1024) == 1024
    with pytest.raises(DmaExhausted, match="4096 bytes"):
        allocator.alloc(4096)


def test_free_of_what_was_never_handed_out() -> None:
    with pytest.raises(KeyError):
        DmaAllocator(0, 64).free(0)


@given(
    st.lists(
        st.tuples(st.integers(0, 900), st.sampled_from([1, 2, 16, 64, 256]), st.booleans()),
        max_size=40,
    )
)
def test_ranges_never_overlap_and_all_comes_back(steps: list[tuple[int, int, bool]]) -> None:
    allocator = DmaAllocator(0x1000, 8192)
    live: dict[int, int] = {}
    for size, align, free in steps:
        try:
            address = allocator.alloc(size, align)
        except DmaExhausted:
            continue
        size = -(-max(size, 1) // align) * align
        assert address % align == 0
        assert address >= 0x1000
        assert address + size <= 0x1000 + 8192
        assert all(address + size <= a or a + n <= address for a, n in live.items())
        live[address] = size
        if free:
            allocator.free(address)
            del live[address]
    assert allocator.allocated == sum(live.values())
    for address in live:
        allocator.free(address)
    assert allocator.alloc(8192, 1) == 0x1000
