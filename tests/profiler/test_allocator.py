"""The allocator's model, judged by hand-worked cases from PyTorch's rules and by what must hold after any stream of requests."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiler.allocator import Block, CachingAllocator

KIB, MIB = 1 << 10, 1 << 20


@pytest.mark.parametrize(
    ("nbytes", "block", "segment"),
    [
        (1, 512, 2 * MIB),
        (513, 1024, 2 * MIB),
        (MIB, MIB, 2 * MIB),
        (MIB + 1, MIB + 512, 20 * MIB),
        (10 * MIB - 512, 10 * MIB - 512, 20 * MIB),
        (10 * MIB, 10 * MIB, 10 * MIB),
        (11 * MIB, 12 * MIB, 12 * MIB),
        (1600 * 6400 * 4, 40 * MIB, 40 * MIB),
    ],
)
def test_a_first_request_gets_the_block_and_segment_that_cuda_gives(nbytes: int, block: int, segment: int):
    allocator = CachingAllocator()
    assert allocator.malloc(nbytes).size == block
    assert (allocator.allocated_bytes, allocator.reserved_bytes) == (block, segment)
    assert allocator.requested_bytes == nbytes


def test_two_attention_weights_of_gpt2_xl_share_a_segment_and_the_second_takes_its_tail():
    allocator = CachingAllocator()
    weight = 1600 * 1600 * 4  # 9.77 MiB
    first, second = allocator.malloc(weight), allocator.malloc(weight)
    assert first.size == weight
    assert second.size == 20 * MIB - weight  # the rest, 0.47 MiB, is not worth a block
    assert allocator.reserved_bytes == 20 * MIB


@pytest.mark.parametrize(("request_bytes", "block"), [(10 * MIB, 11 * MIB), (10 * MIB - 512, 10 * MIB - 512)])
def test_a_rest_of_one_mib_stays_a_tail_and_512_bytes_more_are_split_off(request_bytes: int, block: int):
    allocator = CachingAllocator()
    allocator.malloc(9 * MIB)  # leaves 11 MiB of a 20 MiB segment
    assert allocator.malloc(request_bytes).size == block


def test_the_smallest_fitting_block_wins_and_among_equals_the_oldest_segment_then_the_lowest_offset():
    allocator = CachingAllocator()
    old, _, _, young = allocator.malloc(12 * MIB), allocator.malloc(14 * MIB), allocator.malloc(16 * MIB), allocator.malloc(12 * MIB)
    allocator.free(young)
    allocator.free(old)
    assert allocator.malloc(12 * MIB).segment == old.segment
    small = [allocator.malloc(512) for _ in range(5)]
    allocator.free(small[3])
    allocator.free(small[1])
    assert allocator.malloc(512).offset == 512


def test_free_neighbours_merge_and_segments_are_kept():
    allocator = CachingAllocator()
    blocks = [allocator.malloc(4 * MIB) for _ in range(5)]
    for place in (0, 2, 4, 1, 3):
        allocator.free(blocks[place])
    assert allocator.allocated_bytes == 0
    assert allocator.reserved_bytes == 20 * MIB
    assert allocator.malloc(20 * MIB).offset == 0
    assert allocator.reserved_bytes == 20 * MIB


def test_peaks_stay_when_memory_is_freed():
    allocator = CachingAllocator()
    allocator.free(allocator.malloc(30 * MIB))
    allocator.malloc(512)
    assert (allocator.peak_allocated_bytes, allocator.peak_reserved_bytes) == (30 * MIB, 32 * MIB)


def test_wrong_calls_say_what_is_wrong():
    allocator = CachingAllocator()
    block = allocator.malloc(1)
    allocator.free(block)
    with pytest.raises(ValueError, match="is not allocated"):
        allocator.free(block)
    with pytest.raises(ValueError, match="got 0"):
        allocator.malloc(0)


sizes = st.one_of(st.integers(1, 4 * KIB), st.integers(1, 3 * MIB), st.integers(9 * MIB, 40 * MIB))


@given(st.lists(st.tuples(sizes, st.integers(0, 20)), max_size=200))
def test_any_stream_of_requests_keeps_the_books_and_never_overlaps(stream: list[tuple[int, int]]):
    allocator = CachingAllocator()
    live: list[Block] = []
    for nbytes, choice in stream:
        if choice < len(live):
            allocator.free(live.pop(choice))
        else:
            live.append(allocator.malloc(nbytes))
        assert allocator.allocated_bytes == sum(block.size for block in live)
        assert allocator.requested_bytes == sum(block.requested for block in live)
        assert allocator.requested_bytes <= allocator.allocated_bytes <= allocator.reserved_bytes <= allocator.peak_reserved_bytes
    spans = sorted((block.segment, block.offset, block.offset + block.size) for block in live)
    assert all(a[0] != b[0] or a[2] <= b[1] for a, b in pairwise(spans))
    reserved = allocator.reserved_bytes
    for block in live:
        allocator.free(block)
    assert (allocator.allocated_bytes, allocator.requested_bytes, allocator.reserved_bytes) == (0, 0, reserved)
