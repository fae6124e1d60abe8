"""Segments of the caching allocator: memory taken from the device piece by piece, and given back
only whole.
"""

from bisect import bisect_left, insort
from typing import Protocol

from .blocks import Block, Pool

SMALL_REQUEST = 1 << 20
SMALL_SEGMENT = 2 << 20
OWN_SEGMENT = 10 << 20
SEGMENT_MULTIPLE = 2 << 20
ENDLESS = 1 << 50


def segment_bytes(size: int, large_segment_size: int) -> int:
    """Bytes of the segment that a request of `size` asks the device for."""
    if size <= SMALL_REQUEST:
        return SMALL_SEGMENT
    if size < OWN_SEGMENT:
        return large_segment_size
    return -(-size // SEGMENT_MULTIPLE) * SEGMENT_MULTIPLE


class DeviceMemory:
    """What a device has and what is taken of it.

    `total` are its bytes, None for a device without end; `occupied` are bytes that are not the
    allocator's, such as the CUDA context. `limit` is the most that the process may take, None
    without one.
    """

    __slots__ = ("allocations", "limit", "occupied", "peak", "releases", "reserved", "total")

    def __init__(self, total: int | None, occupied: int, limit: int | None) -> None:
        self.total = total
        self.occupied = occupied
        self.limit = limit
        self.reserved = 0
        self.peak = 0
        self.allocations = 0
        self.releases = 0

    def take(self, nbytes: int) -> bool:
        """Reserve bytes; False when the device does not have them."""
        if self.total is not None and self.reserved + self.occupied + nbytes > self.total:
            return False
        self.reserved += nbytes
        self.allocations += 1
        if self.reserved > self.peak:
            self.peak = self.reserved
        return True

    def give_back(self, nbytes: int) -> None:
        """Let the device have bytes back."""
        self.reserved -= nbytes
        self.releases += 1


class Addresses(Protocol):
    """Says where segments lie; their addresses then order blocks of equal size, as they do up to
    torch 2.11.
    """

    def take(self, nbytes: int) -> int:
        """The address of a new segment."""
        ...

    def give_back(self, address: int, nbytes: int) -> None:
        """Let the addresses of a segment be used again."""
        ...

    def map(self, address: int, nbytes: int) -> None:
        """Learn that memory stands behind a run of addresses of an expandable segment."""
        ...

    def unmap(self, address: int, nbytes: int) -> None:
        """Learn that no memory stands behind it any more."""
        ...


class _Unheeding:
    """What does not care where memory stands behind addresses."""

    def map(self, address: int, nbytes: int) -> None:
        """Nothing."""

    def unmap(self, address: int, nbytes: int) -> None:
        """Nothing."""


class Ages(_Unheeding):
    """Numbers segments in the order in which they are taken, which orders blocks of equal size from
    torch 2.13 on.
    """

    def __init__(self) -> None:
        self._count = 0

    def take(self, nbytes: int) -> int:
        """The number of a new segment."""
        del nbytes
        self._count += 1
        return self._count

    def give_back(self, address: int, nbytes: int) -> None:
        """A number is never used again."""


class LowestAddresses(_Unheeding):
    """Addresses as a driver that always takes the lowest gap would give them out."""

    def __init__(self) -> None:
        self._gaps = [(0, 1 << 62)]

    def take(self, nbytes: int) -> int:
        """The lowest address with `nbytes` free behind it."""
        place = next(
            place for place, (start, end) in enumerate(self._gaps) if end - start >= nbytes
        )
        start, end = self._gaps[place]
        self._gaps[place : place + 1] = [(start + nbytes, end)] if end - start > nbytes else []
        return start

    def give_back(self, address: int, nbytes: int) -> None:
        """Let the addresses of a segment be used again."""
        start, end = address, address + nbytes
        place = bisect_left(self._gaps, (start,))
        if place < len(self._gaps) and self._gaps[place][0] == end:
            end = self._gaps.pop(place)[1]
        if place and self._gaps[place - 1][1] == start:
            start = self._gaps.pop(place - 1)[0]
        insort(self._gaps, (start, end))


class WholeSegments:
    """Segments taken from the device one by one, and given back only when they are free as a
    whole.
    """

    def __init__(self, device: DeviceMemory, addresses: Addresses, large_segment_size: int) -> None:
        self._device = device
        self._addresses = addresses
        self._large_segment_size = large_segment_size

    def obtain(self, pool: Pool, size: int) -> Block | None:
        """A new segment as one block of at least `size`; None when the device is full."""
        nbytes = segment_bytes(size, self._large_segment_size)
        if not self._device.take(nbytes):
            return None
        return Block(pool, self._addresses.take(nbytes), 0, nbytes)

    def release(self, block: Block) -> None:
        """Give a segment back; `block`, all of it, is free and leaves its pool."""
        block.pool.remove(block)
        self._addresses.give_back(block.segment, block.size)
        self._device.give_back(block.size)

    def release_idle(self, pool: Pool) -> None:
        """Give every segment of the pool back that is free as a whole."""
        for *_, block in list(pool.blocks):
            if not block.is_split:
                self.release(block)

    def release_oversize(self, pool: Pool, size: int, oversize: int) -> bool:
        """Give back the smallest segment of at least `oversize` bytes that covers `size`, or else
        the largest until together they do.

        Whether they cover it; only segments that are never split are looked at, and without an
        `oversize` there are none.
        """
        needed = max(size, oversize)
        place = pool.place(needed)
        if place < len(pool.blocks):
            self.release(pool.blocks[place][3])
            return True
        released = 0
        while released < needed and place and pool.blocks[place - 1][0] >= oversize:
            place -= 1
            block = pool.blocks[place][3]
            released += block.size
            self.release(block)
        return released >= needed

    def collect(self, pool: Pool, target: int) -> None:
        """Give back idle segments that are at least of average age, again and again, until `target`
        bytes are reached.

        The age is the number of searches in the pool since the segment fell idle.
        """
        idle = [block for *_, block in pool.blocks if not block.is_split]
        total_age = sum(pool.searches - block.inserted for block in idle)
        reclaimed = 0
        while idle and reclaimed < target:
            threshold = total_age / len(idle)
            old = [block for block in idle if pool.searches - block.inserted >= threshold]
            for block in old:
                reclaimed += block.size
                total_age -= pool.searches - block.inserted
                self.release(block)
            idle = [block for block in idle if pool.searches - block.inserted < threshold]
