"""The allocator against a naive one that keeps a byte map."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.master.core.allocator import ALIGN_BYTES, Allocator, aligned

CAPACITY = 32 * ALIGN_BYTES


def test_it_says_how_many_extents_it_could_hand_out() -> None:
    allocator = Allocator(64 * 256, used=[(10 * 256, 256), (20 * 256, 256)])  # free: 10, 9 and 43 units
    assert allocator.fits(9 * 256, 1 + 1 + 4)
    assert not allocator.fits(9 * 256, 7)
    assert allocator.fits(10 * 256 - 255, 1 + 0 + 4)
    assert not allocator.fits(10 * 256, 6)
    assert allocator.fits(1, 62)
    assert not allocator.fits(1, 63)
    assert not allocator.fits(44 * 256, 1)


@given(st.data())
def test_extents_never_overlap_and_all_space_comes_back(data: st.DataObject) -> None:
    allocator = Allocator(CAPACITY)
    held: dict[int, int] = {}
    for _ in range(data.draw(st.integers(1, 60))):
        if held and data.draw(st.booleans()):
            offset = data.draw(st.sampled_from(sorted(held)))
            allocator.free(offset, held.pop(offset))
        else:
            length = data.draw(st.integers(1, 8 * ALIGN_BYTES))
            offset = allocator.allocate(length)
            if offset is None:
                assert allocator.largest_free_bytes < aligned(length)
            else:
                held[offset] = length
        position = 0
        free = allocator.extents()
        for start, size in sorted([*free, *((o, aligned(n)) for o, n in held.items())]):
            assert start == position
            position += size
        assert position == CAPACITY
        assert allocator.free_bytes == sum(size for _, size in free)
        starts = {offset for offset, _ in free}
        assert not any(offset + size in starts for offset, size in free), "neighbours are merged"
    for offset, length in held.items():
        allocator.free(offset, length)
    assert allocator.extents() == [(0, CAPACITY)]


def test_the_smallest_extent_that_fits_is_taken() -> None:
    hole = 2 * ALIGN_BYTES
    allocator = Allocator(CAPACITY, [(hole, ALIGN_BYTES), (hole + 2 * ALIGN_BYTES, ALIGN_BYTES)])
    assert allocator.allocate(ALIGN_BYTES) == hole + ALIGN_BYTES
    assert allocator.allocate(hole) == 0


@pytest.mark.parametrize("used", [[(0, 512), (256, 10)], [(CAPACITY, 1)], [(1, 1)], [(0, CAPACITY + 1)]])
def test_extents_that_contradict_each_other_are_refused(used: list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match="extent at"):
        Allocator(CAPACITY, used)


def test_freeing_twice_is_noticed() -> None:
    allocator = Allocator(CAPACITY)
    offset = allocator.allocate(10)
    assert offset is not None
    allocator.free(offset, 10)
    with pytest.raises(AssertionError):
        allocator.free(offset, 10)
