"""The simulated caching allocator: hand-worked examples, and what always holds.

The examples follow from the constants of c10/core/AllocatorConfig.h and the rules of c10/cuda/CUDACachingAllocator.cpp (PyTorch 2.13).
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vramplan.allocator import ALLOC, FREE, STREAM, Allocator, ExpandableAllocator, OutOfMemory, replay

MiB = 1 << 20
SIZES = st.sampled_from([1, 512, 513, MiB // 2, MiB, MiB + 1, 3 * MiB, 9 * MiB, 10 * MiB, 11 * MiB, 25 * MiB]) | st.integers(1, 40 * MiB)
ACTIONS = st.lists(st.tuples(st.booleans(), SIZES, st.integers(0, 1000)), max_size=120)


def free_bytes(allocator: Allocator) -> int:
    return sum(size for pool in allocator.pools.values() for size, _, _ in pool)


def test_a_small_block_takes_a_segment_of_two_mib_and_shares_it() -> None:
    allocator = Allocator()
    allocator.malloc(0, 100)
    allocator.malloc(1, 600)
    assert (allocator.allocated, allocator.reserved) == (512 + 1024, 2 * MiB)


def test_a_middle_block_takes_twenty_mib_and_the_next_one_fits_behind_it() -> None:
    allocator = Allocator()
    first, second = allocator.malloc(0, 3 * MiB), allocator.malloc(1, 9 * MiB)
    assert allocator.reserved == 20 * MiB
    assert second.address == first.address + 3 * MiB


def test_a_large_block_takes_its_own_size_in_two_mib() -> None:
    allocator = Allocator()
    allocator.malloc(0, 25 * MiB)
    assert allocator.reserved == 26 * MiB
    assert allocator.allocated == 26 * MiB, "a remainder of 1 MiB is not split off, so it counts as allocated"


def test_a_remainder_above_one_mib_is_split_off() -> None:
    allocator = Allocator()
    allocator.malloc(0, 25 * MiB - 512)
    assert allocator.allocated == 25 * MiB - 512
    assert allocator.pools[0, False][0][0] == MiB + 512


def test_the_smallest_block_that_is_large_enough_is_taken() -> None:
    allocator = Allocator()
    for number, size in enumerate((30, 24, 28)):
        allocator.malloc(number, size * MiB)
    for number in range(3):
        allocator.free(number)
    assert allocator.malloc(3, 27 * MiB).size == 28 * MiB
    assert allocator.malloc(4, 20 * MiB).size == 20 * MiB
    assert allocator.reserved == 82 * MiB


def test_freed_neighbours_become_one_block() -> None:
    allocator = Allocator()
    for number in range(3):
        allocator.malloc(number, 6 * MiB)
    for number in (0, 2, 1):
        allocator.free(number)
    assert [size for size, _, _ in allocator.pools[0, False]] == [20 * MiB]


def test_a_small_block_is_not_taken_from_the_large_pool() -> None:
    allocator = Allocator()
    allocator.malloc(0, 20 * MiB)
    allocator.free(0)
    allocator.malloc(1, MiB)
    assert allocator.reserved == 22 * MiB


def test_a_full_device_gives_back_cached_segments_and_tries_again() -> None:
    allocator = Allocator(capacity=60 * MiB)
    allocator.malloc(0, 40 * MiB)
    allocator.free(0)
    allocator.malloc(1, 50 * MiB)
    assert (allocator.reserved, allocator.max_reserved, allocator.retries) == (50 * MiB, 50 * MiB, 1)
    with pytest.raises(OutOfMemory):
        allocator.malloc(2, 11 * MiB)


def test_a_segment_in_part_use_is_not_given_back() -> None:
    """Fragmentation: 38 MiB of 60 are free, and yet there is no room for 24."""
    events = [(ALLOC, n, 20 * MiB) for n in range(3)] + [(FREE, n, 0) for n in range(3)]
    events += [(ALLOC, n, 6 * MiB) for n in range(3, 10)] + [(FREE, n, 0) for n in (3, 4, 6, 7)] + [(ALLOC, 10, 24 * MiB)]
    assert replay(events, capacity=60 * MiB).out_of_memory_at == len(events) - 1
    assert replay(events).out_of_memory_at is None


def test_expandable_segments_grow_where_the_plain_allocator_leaves_holes() -> None:
    """One block after another, each larger than the last: the plain one needs a new segment each time, the other grows the last."""
    events = []
    for number in range(10):
        events += [(ALLOC, number, (20 + 2 * number) * MiB), (FREE, number, 0)]
    assert replay(events).max_reserved == sum((20 + 2 * n) * MiB for n in range(10))
    assert replay(events, expandable=True).max_reserved == 40 * MiB


def test_expandable_segments_map_whole_pages_and_split_them_to_the_byte() -> None:
    allocator = ExpandableAllocator()
    allocator.malloc(0, 25 * MiB)
    assert (allocator.allocated, allocator.reserved) == (25 * MiB, 40 * MiB)
    allocator.malloc(1, 15 * MiB)
    assert allocator.reserved == 40 * MiB


def test_expandable_segments_unmap_free_pages_on_a_full_device() -> None:
    allocator = ExpandableAllocator(capacity=80 * MiB)
    for number in range(4):
        allocator.malloc(number, 20 * MiB)
    allocator.free(0)
    allocator.free(2)
    allocator.malloc(4, 40 * MiB)
    assert (allocator.allocated, allocator.reserved, allocator.retries) == (80 * MiB, 80 * MiB, 1)


@pytest.mark.parametrize("kind", [Allocator, ExpandableAllocator])
@given(actions=ACTIONS, capacity=st.none() | st.just(120 * MiB))
def test_what_always_holds(kind: Any, actions: list[tuple[bool, int, int]], capacity: int | None) -> None:
    allocator = kind(capacity)
    alive: list[int] = []
    for number, (takes, size, choice) in enumerate(actions):
        if takes or not alive:
            try:
                block = allocator.malloc(number, size)
            except OutOfMemory:
                assert capacity is not None
                continue
            alive.append(number)
            assert block.size >= size
        else:
            allocator.free(alive.pop(choice % len(alive)))
        ranges = sorted((block.address, block.size) for block in allocator.blocks.values())
        assert all(a + size <= b for (a, size), (b, _) in pairwise(ranges)), "blocks overlap"
        assert allocator.allocated == sum(size for _, size in ranges) <= allocator.reserved <= allocator.max_reserved
        assert allocator.reserved == allocator.allocated + free_bytes(allocator)
        assert capacity is None or allocator.reserved <= capacity
    for number in alive:
        allocator.free(number)
    assert allocator.allocated == 0
    if capacity is None and kind is Allocator:
        assert free_bytes(allocator) == sum(allocator.segments.values())


def test_what_is_freed_in_one_stream_serves_no_other() -> None:
    events = [
        (ALLOC, 0, 30 * MiB),
        (FREE, 0, 0),
        (ALLOC + STREAM, 1, 30 * MiB),
        (FREE, 1, 0),
        (ALLOC, 2, 30 * MiB),
        (ALLOC + STREAM, 3, 30 * MiB),
    ]
    assert [replay(events, expandable=grows).max_reserved for grows in (False, True)] == [60 * MiB, 80 * MiB]
