"""Expandable segments: ranges of addresses into which memory is mapped on demand."""

from bisect import bisect_left
from collections.abc import Sequence

from .blocks import Block, Pool
from .device import DeviceMemory
from .segments import UNLIMITED_RANGE, Addresses


class ExpandableSegments:
    """A range of addresses for each pool, an eighth larger than the device.

    Memory is mapped into it in handles of one size. Another range is taken if no run of free
    addresses is long enough.
    """

    def __init__(self, device: DeviceMemory, addresses: Addresses) -> None:
        self._device = device
        self._addresses = addresses

    def obtain(self, pool: Pool, size: int) -> Block | None:
        """Return a block of at least `size`, a free one grown by new memory.

        None if the device is full; memory that was mapped until then stays mapped.
        """
        block = self._lowest_room(pool, size)
        if not block.mapped:
            grown = self._map(block, min(block.size, size))
            if grown is None:
                return None
            block = grown
        while block.size < size:
            following = block.next
            assert following is not None
            grown = self._map(following, min(size - block.size, following.size))
            if grown is None:
                return None
            block = grown
        pool.remove(block)
        return block

    def release_idle(self, pool: Pool) -> None:
        """Unmap every handle of the pool's segments that no block in use touches."""
        for *_, block in list(pool.blocks):
            self._unmap(block)

    def release_oversize(self, pool: Pool, size: int, oversize: int) -> bool:
        """Return False: `max_split_size` releases only whole segments."""
        del pool, size, oversize
        return False

    def collect(self, pools: Sequence[Pool], target: int) -> None:
        """Do nothing: garbage collection skips expandable segments."""

    def _lowest_room(self, pool: Pool, size: int) -> Block:
        """Return the first block of the lowest run of free and unmapped blocks that fits `size`."""
        for *_, block in pool.unmapped:
            first = (
                block.previous
                if block.previous is not None and not block.previous.allocated
                else block
            )
            room, reached = 0, first
            while reached is not None and not reached.allocated and room < size:
                room += reached.size
                reached = reached.next
            if room >= size:
                return first
        return self._reserve(pool)

    def _reserve(self, pool: Pool) -> Block:
        handle = pool.handle
        total = self._device.total
        nbytes = (
            UNLIMITED_RANGE // handle * handle
            if total is None
            else -(-(total + total // 8) // handle) * handle
        )
        block = Block(pool, self._addresses.take(nbytes), 0, nbytes)
        block.mapped = False
        pool.add_unmapped(block)
        return block

    def _map(self, block: Block, size: int) -> Block | None:
        """Map memory into the first `size` bytes of an unmapped block.

        Return the free block that then holds them, or None if the device is full.
        """
        handle = block.pool.handle
        nbytes = -(-size // handle) * handle
        if not self._device.take(nbytes):
            return None
        self._addresses.map(block.segment + block.offset, nbytes)
        self._forget(block)
        if nbytes < block.size:
            rest = block.split(nbytes)
            rest.mapped = False
            block.pool.add_unmapped(rest)
        block.mapped = True
        if block.next is not None and block.next.mapped and not block.next.allocated:
            block.pool.remove(block.next)
            block.join_next()
        before = block.previous
        if before is not None and before.mapped and not before.allocated:
            block.pool.remove(before)
            before.join_next()
            block = before
        block.pool.add(block)
        return block

    def _unmap(self, block: Block) -> None:
        """Unmap all handles that lie wholly inside a free block; its ends stay mapped."""
        handle = block.pool.handle
        start = -(-block.offset // handle) * handle
        end = (block.offset + block.size) // handle * handle
        if start >= end:
            return
        pool = block.pool
        pool.remove(block)
        if end < block.offset + block.size:
            pool.add(block.split(end - block.offset))
        if start > block.offset:
            low, block = block, block.split(start - block.offset)
            pool.add(low)
        block.mapped = False
        self._device.release(block.size)
        self._addresses.unmap(block.segment + block.offset, block.size)
        self._merge_unmapped(block)

    def _merge_unmapped(self, block: Block) -> None:
        if block.next is not None and not block.next.mapped:
            self._forget(block.next)
            block.join_next()
        before = block.previous
        if before is not None and not before.mapped:
            self._forget(before)
            before.join_next()
            block = before
        if block.is_split:
            block.pool.add_unmapped(block)
        else:
            self._addresses.give_back(block.segment, block.size)

    def _forget(self, block: Block) -> None:
        unmapped = block.pool.unmapped
        del unmapped[bisect_left(unmapped, (block.segment, block.offset))]
