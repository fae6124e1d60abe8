"""Segments as they stand at some moment, as data: the state in which an allocator can begin."""

from dataclasses import dataclass
from typing import Literal

from .blocks import Block, Pool


@dataclass(frozen=True, kw_only=True)
class BlockState:
    """A block of a segment: its bytes, and those that were requested where it is in use (0 where it
    is free).

    Blocks that are not `mapped` are addresses of an expandable segment without memory.
    """

    size: int
    requested: int = 0
    mapped: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.requested <= self.size or self.size < 1:
            raise ValueError(
                f"a block must hold what is requested of it, got {self.requested} in {self.size}"
                " bytes"
            )
        if self.requested and not self.mapped:
            raise ValueError(f"a block in use must be mapped, got {self.size} bytes that are not")


@dataclass(frozen=True, kw_only=True)
class SegmentState:
    """A segment of the pool for small or for large requests, as its blocks in the order of
    addresses.
    """

    pool: Literal["small", "large"]
    blocks: tuple[BlockState, ...]

    def __post_init__(self) -> None:
        if not self.blocks:
            raise ValueError("a segment must have at least one block")
        for before, block in zip(self.blocks, self.blocks[1:], strict=False):
            if not before.requested and not block.requested and before.mapped == block.mapped:
                raise ValueError(
                    f"free blocks side by side must be one, got {before.size} and {block.size}"
                    " bytes"
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
        """Make the allocator's own blocks of them at an address; the pool holds those that are
        free.
        """
        blocks: list[Block] = []
        rest = Block(pool, address, 0, self.size)
        for state in self.blocks:
            block = rest
            if state.size < block.size:
                rest = block.split(state.size)
            block.mapped, block.requested, block.allocated = (
                state.mapped,
                state.requested,
                state.requested > 0,
            )
            blocks.append(block)
        for block in blocks:
            if not block.mapped:
                pool.add_unmapped(block)
            elif not block.allocated:
                pool.add(block)
        return blocks
