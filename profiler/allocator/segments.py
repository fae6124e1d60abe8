"""Segments of the caching allocator: memory that is taken from the device and released whole."""

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import Protocol

from .blocks import Block, Pool
from .device import DeviceMemory

SMALL_REQUEST = 1 << 20
SMALL_SEGMENT = 2 << 20
OWN_SEGMENT = 10 << 20
SEGMENT_MULTIPLE = 2 << 20
# The range of addresses of an expandable segment on an unlimited device.
UNLIMITED_RANGE = 1 << 50


def segment_bytes(size: int, large_segment_size: int) -> int:
    """Return the bytes of the segment that a request of `size` takes from the device."""
    if size <= SMALL_REQUEST:
        return SMALL_SEGMENT
    if size < OWN_SEGMENT:
        return large_segment_size
    return -(-size // SEGMENT_MULTIPLE) * SEGMENT_MULTIPLE


class Addresses(Protocol):
    """Gives segments their addresses, which order free blocks of equal size."""

    def take(self, nbytes: int) -> int:
        """Return the address of a new segment."""
        ...

    def give_back(self, address: int, nbytes: int) -> None:
        """Make the addresses of a segment available again."""

    def map(self, address: int, nbytes: int) -> None:
        """Note that a run of addresses in an expandable segment has memory."""

    def unmap(self, address: int, nbytes: int) -> None:
        """Note that a run of addresses has no memory any more."""


class Ages(Addresses):
    """Numbers in the order in which segments are taken, as torch orders blocks from 2.13 on."""

    def __init__(self) -> None:
        self._count = 0

    def take(self, nbytes: int) -> int:
        """Return the number of a new segment; none is used twice."""
        del nbytes
        self._count += 1
        return self._count


class LowestAddresses(Addresses):
    """Addresses of a driver that always takes the lowest gap, as torch orders blocks up to 2.11."""

    def __init__(self) -> None:
        self._gaps = [(0, 1 << 62)]

    def take(self, nbytes: int) -> int:
        """Return the lowest address with `nbytes` free behind it."""
        place = next(
            place for place, (start, end) in enumerate(self._gaps) if end - start >= nbytes
        )
        start, end = self._gaps[place]
        self._gaps[place : place + 1] = [(start + nbytes, end)] if end - start > nbytes else []
        return start

    def give_back(self, address: int, nbytes: int) -> None:
        """Make the addresses of a segment available again."""
        start, end = address, address + nbytes
        place = bisect_left(self._gaps, (start,))
        if place < len(self._gaps) and self._gaps[place][0] == end:
            end = self._gaps.pop(place)[1]
        if place and self._gaps[place - 1][1] == start:
            start = self._gaps.pop(place - 1)[0]
        insort(self._gaps, (start, end))


class WholeSegments:
    """Segments that are taken from the device one by one, and released only if wholly free."""

    def __init__(self, device: DeviceMemory, addresses: Addresses, large_segment_size: int) -> None:
        self._device = device
        self._addresses = addresses
        self._large_segment_size = large_segment_size

    def obtain(self, pool: Pool, size: int) -> Block | None:
        """Return a new segment as one block of at least `size`; None if the device is full."""
        nbytes = segment_bytes(size, self._large_segment_size)
        if not self._device.take(nbytes):
            return None
        return Block(pool, self._addresses.take(nbytes), 0, nbytes)

    def release(self, block: Block) -> None:
        """Release a wholly free segment, whose only block leaves its pool."""
        block.pool.remove(block)
        self._addresses.give_back(block.segment, block.size)
        self._device.release(block.size)

    def release_idle(self, pool: Pool) -> None:
        """Release every wholly free segment of the pool."""
        for *_, block in list(pool.blocks):
            if not block.is_split:
                self.release(block)

    def release_oversize(self, pool: Pool, size: int, oversize: int) -> bool:
        """Release idle oversize segments until they cover `size`; return False if they do not.

        That is the smallest one that covers it, or else the largest ones. Only segments that were
        adopted may hold an oversize free block with others; they stay.
        """
        needed = max(size, oversize)
        oversized = [
            block for *_, block in pool.blocks[pool.place(oversize) :] if not block.is_split
        ]
        for block in oversized:
            if block.size >= needed:
                self.release(block)
                return True
        released = 0
        while oversized and released < needed:
            block = oversized.pop()
            released += block.size
            self.release(block)
        return released >= needed

    def collect(self, pools: Sequence[Pool], target: int) -> None:
        """Release idle segments of at least average age, in rounds, up to `target` bytes.

        The age is the number of searches in the pool since the segment became idle.
        """
        idle = [block for pool in pools for *_, block in pool.blocks if not block.is_split]
        total_age = sum(map(_age, idle))
        reclaimed = 0
        while idle and reclaimed < target:
            threshold = total_age / len(idle)
            old = [block for block in idle if _age(block) >= threshold]
            idle = [block for block in idle if _age(block) < threshold]
            for block in old:
                reclaimed += block.size
                total_age -= _age(block)
                self.release(block)


def _age(block: Block) -> int:
    return block.pool.searches[0] - block.inserted
