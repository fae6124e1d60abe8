"""Blocks of the caching allocator and the pools that hold the free ones, in the order of best
fit.
"""

from bisect import bisect_left, insort


class Block:
    """A run of bytes inside a segment.

    `size` is what the statistics count, `requested` what was asked for. `segment` is the number of
    the segment: its age, or its address. `mapped` is False for a run of addresses in an expandable
    segment that no memory stands behind. `inserted` counts the searches of its pool that came
    before the block was last set free.
    """

    __slots__ = (
        "allocated",
        "inserted",
        "mapped",
        "next",
        "offset",
        "pool",
        "previous",
        "requested",
        "segment",
        "size",
    )

    def __init__(self, pool: "Pool", segment: int, offset: int, size: int) -> None:
        self.pool = pool
        self.segment = segment
        self.offset = offset
        self.size = size
        self.requested = 0
        self.allocated = False
        self.mapped = True
        self.inserted = 0
        self.previous: Block | None = None
        self.next: Block | None = None

    @property
    def is_split(self) -> bool:
        """Whether the segment holds other blocks too."""
        return self.previous is not None or self.next is not None

    def split(self, size: int) -> "Block":
        """Cut the block to `size`; the rest, as a block behind it."""
        rest = Block(self.pool, self.segment, self.offset + size, self.size - size)
        rest.previous, rest.next = self, self.next
        if self.next is not None:
            self.next.previous = rest
        self.next = rest
        self.size = size
        return rest

    def join_next(self) -> None:
        """Take in the block behind this one."""
        taken = self.next
        assert taken is not None
        self.size += taken.size
        self.next = taken.next
        if taken.next is not None:
            taken.next.previous = self


class Pool:
    """The free blocks of one size class: smallest first, then the lowest segment, then the lowest
    offset.

    A block is cut when the rest is at least `least_rest` and the request smaller than
    `split_below`. `idle` are the bytes of segments that are free as a whole. `unmapped` holds the
    runs of addresses without memory, the lowest first; `handle` is the size in which memory is
    mapped into them.
    """

    __slots__ = ("blocks", "handle", "idle", "least_rest", "searches", "split_below", "unmapped")

    def __init__(self, *, least_rest: int, split_below: int, handle: int) -> None:
        self.least_rest = least_rest
        self.split_below = split_below
        self.handle = handle
        self.blocks: list[tuple[int, int, int, Block]] = []
        self.unmapped: list[tuple[int, int, Block]] = []
        self.searches = 0
        self.idle = 0

    def add(self, block: Block) -> None:
        """Hold a block that is free."""
        block.inserted = self.searches
        if block.previous is None and block.next is None:
            self.idle += block.size
        insort(self.blocks, (block.size, block.segment, block.offset, block))

    def add_unmapped(self, block: Block) -> None:
        """Hold a run of addresses without memory."""
        insort(self.unmapped, (block.segment, block.offset, block))

    def remove(self, block: Block) -> None:
        """Let go of a block."""
        self.pop(bisect_left(self.blocks, (block.size, block.segment, block.offset)))

    def place(self, size: int) -> int:
        """Where the best fit for `size` stands; behind the last block when none is as large."""
        return bisect_left(self.blocks, (size,))

    def pop(self, place: int) -> Block:
        """Let go of the block at a place."""
        block = self.blocks.pop(place)[3]
        if block.previous is None and block.next is None:
            self.idle -= block.size
        return block
