"""The CUDA caching allocator of PyTorch 2.13, as a model: which block a request gets, and what the statistics then say.

Facts from c10/core/AllocatorConfig.h and c10/cuda/CUDACachingAllocator.cpp. One device of unlimited memory, one stream, default options:
best fit, splitting, merging and segment sizes; no release and retry, expandable segments or other settings.
"""

from bisect import bisect_left, insort

MIN_BLOCK = 512
SMALL_REQUEST = 1 << 20
SMALL_SEGMENT = 2 << 20
LARGE_SEGMENT = 20 << 20
OWN_SEGMENT = 10 << 20
SEGMENT_MULTIPLE = 2 << 20


class Block:
    """A run of bytes inside a segment; `size` is what the statistics count, `requested` what was asked for."""

    __slots__ = ("allocated", "next", "offset", "pool", "previous", "requested", "segment", "size")

    def __init__(self, pool: "_Pool", segment: int, offset: int, size: int) -> None:
        self.pool = pool
        self.segment = segment
        self.offset = offset
        self.size = size
        self.requested = 0
        self.allocated = False
        self.previous: Block | None = None
        self.next: Block | None = None

    @property
    def key(self) -> tuple[int, int, int]:
        """The order of best fit: smallest first, then the oldest segment, then the lowest offset."""
        return self.size, self.segment, self.offset


class _Pool:
    """The free blocks of one size class, in the order of best fit."""

    def __init__(self, least_rest: int) -> None:
        self.least_rest = least_rest
        self.order: list[tuple[int, int, int]] = []
        self.blocks: dict[tuple[int, int, int], Block] = {}

    def add(self, block: Block) -> None:
        key = block.key
        insort(self.order, key)
        self.blocks[key] = block

    def remove(self, block: Block) -> None:
        key = block.key
        del self.order[bisect_left(self.order, key)]
        del self.blocks[key]

    def take(self, size: int) -> Block | None:
        """The free block that fits `size` best, taken out of the pool; None when none does."""
        place = bisect_left(self.order, (size,))
        if place == len(self.order):
            return None
        return self.blocks.pop(self.order.pop(place))


class CachingAllocator:
    """Bytes in use and in hand on one simulated device.

    All properties are exact bytes: `allocated_bytes` counts blocks with their unsplit tails (torch.cuda.memory_allocated),
    `requested_bytes` what was asked for, `reserved_bytes` whole segments (torch.cuda.memory_reserved); the peaks are since the beginning.
    """

    def __init__(self) -> None:
        # The rest of a block stays a block of its own when it is worth keeping: 512 B in the small pool, more than 1 MiB in the large one.
        self._small = _Pool(least_rest=MIN_BLOCK)
        self._large = _Pool(least_rest=SMALL_REQUEST + 1)
        self._segments = 0
        self.allocated_bytes = 0
        self.requested_bytes = 0
        self.reserved_bytes = 0
        self.peak_allocated_bytes = 0
        self.peak_reserved_bytes = 0

    def malloc(self, nbytes: int) -> Block:
        """The block that a request of `nbytes` gets; ValueError when nbytes < 1 (such a request never reaches CUDA's allocator)."""
        if nbytes < 1:
            raise ValueError(f"nbytes must be >= 1, got {nbytes}")
        size = -(-nbytes // MIN_BLOCK) * MIN_BLOCK
        pool = self._small if size <= SMALL_REQUEST else self._large
        block = pool.take(size) or self._new_segment(pool, size)
        if block.size - size >= pool.least_rest:
            self._split(block, size)
        block.allocated = True
        block.requested = nbytes
        self.requested_bytes += nbytes
        self.allocated_bytes += block.size
        if self.allocated_bytes > self.peak_allocated_bytes:
            self.peak_allocated_bytes = self.allocated_bytes
        return block

    def free(self, block: Block) -> None:
        """Give a block back, merged with its free neighbours; ValueError when it is not in use."""
        if not block.allocated:
            raise ValueError(f"block at offset {block.offset} of segment {block.segment} is not allocated")
        self.allocated_bytes -= block.size
        self.requested_bytes -= block.requested
        block.allocated = False
        if block.previous is not None and not block.previous.allocated:
            block.pool.remove(block.previous)
            block = self._join(block.previous, block)
        if block.next is not None and not block.next.allocated:
            block.pool.remove(block.next)
            block = self._join(block, block.next)
        block.pool.add(block)

    def _new_segment(self, pool: _Pool, size: int) -> Block:
        if size <= SMALL_REQUEST:
            segment_size = SMALL_SEGMENT
        elif size < OWN_SEGMENT:
            segment_size = LARGE_SEGMENT
        else:
            segment_size = -(-size // SEGMENT_MULTIPLE) * SEGMENT_MULTIPLE
        self._segments += 1
        self.reserved_bytes += segment_size
        self.peak_reserved_bytes = self.reserved_bytes
        return Block(pool, self._segments, 0, segment_size)

    @staticmethod
    def _split(block: Block, size: int) -> None:
        """Cut the block to `size`; the rest becomes a free block behind it."""
        rest = Block(block.pool, block.segment, block.offset + size, block.size - size)
        rest.previous, rest.next = block, block.next
        if block.next is not None:
            block.next.previous = rest
        block.next = rest
        block.size = size
        block.pool.add(rest)

    @staticmethod
    def _join(low: Block, high: Block) -> Block:
        low.size += high.size
        low.next = high.next
        if high.next is not None:
            high.next.previous = low
        return low
