"""Blocks of the caching allocator, and pools of the free ones in the order of best fit."""

from bisect import bisect_left, insort


class Block:
    """A run of bytes inside a segment.

    The statistics count `size`; `requested` are the bytes of the request. `segment` is the number
    of the segment: its age, or its address. `mapped` is False for a run of addresses without memory
    in an expandable segment. `inserted` is the number of searches of the pool before the block was
    last freed.
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
        """True if the segment holds other blocks too."""
        return self.previous is not None or self.next is not None

    def split(self, size: int) -> "Block":
        """Cut the block to `size`, and return the rest as the block after it."""
        rest = Block(self.pool, self.segment, self.offset + size, self.size - size)
        rest.previous, rest.next = self, self.next
        if self.next is not None:
            self.next.previous = rest
        self.next = rest
        self.size = size
        return rest

    def join_next(self) -> None:
        """Merge the block after this one into it."""
        following = self.next
        assert following is not None
        self.size += following.size
        self.next = following.next
        if following.next is not None:
            following.next.previous = self


class Pool:
    """The free blocks of one size class, in the order of size, segment and offset.

    A block is split if the rest is at least `least_rest` and the request smaller than
    `split_below`. `idle` counts the bytes of wholly free segments. `unmapped` holds the runs of
    addresses without memory, the lowest first; memory is mapped into them in units of `handle`.
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
        """Add a free block."""
        block.inserted = self.searches
        if block.previous is None and block.next is None:
            self.idle += block.size
        insort(self.blocks, (block.size, block.segment, block.offset, block))

    def add_unmapped(self, block: Block) -> None:
        """Add a run of addresses without memory."""
        insort(self.unmapped, (block.segment, block.offset, block))

    def remove(self, block: Block) -> None:
        """Remove a free block."""
        self.pop(bisect_left(self.blocks, (block.size, block.segment, block.offset)))

    def place(self, size: int) -> int:
        """Return the place of the best fit for `size`; the end if no block is large enough."""
        return bisect_left(self.blocks, (size,))

    def pop(self, place: int) -> Block:
        """Remove and return the block at a place."""
        block = self.blocks.pop(place)[3]
        if block.previous is None and block.next is None:
            self.idle -= block.size
        return block
