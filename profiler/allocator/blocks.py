"""Blocks of the caching allocator, and pools of the free ones in the order of best fit."""

from bisect import bisect_left, insort
from typing import NamedTuple

from .device import DeviceMemory


class Lane(NamedTuple):
    """A stream and a pool: a block never serves a request of another stream or pool.

    The pool (0, 0) is the usual one; CUDA graphs and torch.cuda.MemPool have private ones. Torch
    numbers the pools that it makes for a graph (1, 0), (2, 0), and so on, and those that a program
    makes (0, 1), (0, 2).
    """

    stream: int = 0
    pool: tuple[int, int] = (0, 0)

    @property
    def is_captured(self) -> bool:
        """True if every request of the pool is part of the capture of a CUDA graph."""
        return self.pool[0] > 0


DEFAULT_LANE = Lane()


class Block:
    """A run of bytes inside a segment.

    The statistics count `size`; `requested` are the bytes of the request. `segment` is the number
    of the segment: its age, or its address. `allocated` is False for a free block; a block that is
    freed and still `pending`, because another stream may use it, counts as allocated here. `mapped`
    is False for a run of addresses without memory in an expandable segment. `inserted` is the
    number of searches of the pool before the block was last freed.
    """

    __slots__ = (
        "allocated",
        "inserted",
        "mapped",
        "next",
        "offset",
        "pending",
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
        self.pending = False
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

    def renew(self) -> "Block":
        """Put a new block into this one's place and return it; the old one is in no segment."""
        new = Block(self.pool, self.segment, self.offset, self.size)
        new.requested, new.allocated = self.requested, self.allocated
        new.previous, new.next = self.previous, self.next
        if new.previous is not None:
            new.previous.next = new
        if new.next is not None:
            new.next.previous = new
        self.allocated = self.pending = False
        self.previous = self.next = None
        return new

    def join_next(self) -> None:
        """Merge the block after this one into it."""
        following = self.next
        assert following is not None
        self.size += following.size
        self.next = following.next
        if following.next is not None:
            following.next.previous = self


class Pool:
    """The free blocks of one size class of a lane, in the order of size, segment and offset.

    A block is split if the rest is at least `least_rest` and the request smaller than
    `split_below`. `unmapped` holds the runs of addresses without memory, the lowest first; memory
    is mapped into them in units of `handle`. `searches` counts the requests in one item, which all
    streams of a pool share. The device counts the bytes of wholly free segments.
    """

    __slots__ = (
        "blocks",
        "device",
        "handle",
        "lane",
        "least_rest",
        "searches",
        "split_below",
        "unmapped",
    )

    def __init__(
        self,
        device: DeviceMemory,
        lane: Lane,
        *,
        least_rest: int,
        split_below: int,
        handle: int,
        searches: list[int],
    ) -> None:
        self.device = device
        self.lane = lane
        self.least_rest = least_rest
        self.split_below = split_below
        self.handle = handle
        self.searches = searches
        self.blocks: list[tuple[int, int, int, Block]] = []
        self.unmapped: list[tuple[int, int, Block]] = []

    def add(self, block: Block) -> None:
        """Add a free block."""
        block.inserted = self.searches[0]
        if block.previous is None and block.next is None:
            self.device.idle += block.size
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
            self.device.idle -= block.size
        return block
