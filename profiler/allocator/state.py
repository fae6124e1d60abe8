"""The state of segments at one moment as data, from which an allocator can start."""

from dataclasses import dataclass
from typing import Literal

from .blocks import DEFAULT_LANE, Block, Lane, Pool


@dataclass(frozen=True, kw_only=True)
class BlockState:
    """A block of a segment: its bytes, and the requested ones if it is in use (0 if it is free).

    A block that is not `mapped` is a run of addresses without memory in an expandable segment. One
    in use may be freed and `pending`.
    """

    size: int
    requested: int = 0
    mapped: bool = True
    pending: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.requested <= self.size or self.size < 1:
            raise ValueError(
                f"a block must hold its requested bytes, got {self.requested} in {self.size} bytes"
            )
        if self.requested and not self.mapped:
            raise ValueError(f"a block in use must be mapped, got {self.size} bytes unmapped")
        if self.pending and not self.requested:
            raise ValueError(f"a free block cannot be pending, got {self.size} bytes")


@dataclass(frozen=True, kw_only=True)
class SegmentState:
    """A segment of the small or the large pool of a lane: its blocks in the order of addresses."""

    pool: Literal["small", "large"]
    blocks: tuple[BlockState, ...]
    lane: Lane = DEFAULT_LANE

    def __post_init__(self) -> None:
        if not self.blocks:
            raise ValueError("a segment must have at least one block")
        for before, block in zip(self.blocks, self.blocks[1:], strict=False):
            if not before.requested and not block.requested and before.mapped == block.mapped:
                raise ValueError(
                    f"adjacent free blocks must be merged, got {before.size} and {block.size} bytes"
                )

    @property
    def size(self) -> int:
        """Bytes of its addresses."""
        return sum(block.size for block in self.blocks)

    @property
    def mapped(self) -> int:
        """Bytes of its memory."""
        return sum(block.size for block in self.blocks if block.mapped)

    def lay_out(self, pool: Pool, address: int) -> list[Block]:
        """Return the allocator's blocks for this segment; the free ones are added to the pool."""
        blocks: list[Block] = []
        rest = Block(pool, address, 0, self.size)
        for state in self.blocks:
            block = rest
            if state.size < block.size:
                rest = block.split(state.size)
            block.mapped, block.requested = state.mapped, state.requested
            block.allocated, block.pending = state.requested > 0, state.pending
            blocks.append(block)
        for block in blocks:
            if not block.mapped:
                pool.add_unmapped(block)
            elif not block.allocated:
                pool.add(block)
        return blocks
