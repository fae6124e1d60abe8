"""A model of the CUDA caching allocator of PyTorch 2.13: the block of each request, and statistics.

It has one device; docs/allocator.md lists the rules, the omissions and the sources.
"""

from bisect import bisect_left
from collections.abc import Iterable

from .blocks import DEFAULT_LANE, Block, Lane, Pool
from .device import DeviceMemory
from .expandable import ExpandableSegments
from .out_of_memory import OutOfMemoryError
from .segments import (
    SMALL_REQUEST,
    SMALL_SEGMENT,
    Addresses,
    Ages,
    WholeSegments,
    segment_bytes,
)
from .settings import UNLIMITED, AllocatorSettings
from .state import SegmentState

MIN_BLOCK = 512
_DEFAULT = AllocatorSettings()


class CachingAllocator:
    """Allocates and frees blocks on one simulated device, and counts bytes.

    `total` is the size of the device, None for an unlimited one; `occupied` are bytes outside of
    the allocator, such as the CUDA context. `addresses` orders free blocks of equal size: by the
    age of their segment, as torch does from 2.13 on, or by address, as up to 2.11. A block never
    serves another stream or pool than that of its request, its lane.

    All counts are exact bytes. `allocated_bytes` counts blocks with their unsplit tails
    (torch.cuda.memory_allocated), `requested_bytes` the requests, `reserved_bytes` whole segments
    (torch.cuda.memory_reserved), and `inactive_split_bytes` free blocks in segments that hold other
    blocks too. `active_bytes` adds to the allocated ones blocks that are freed and pending. Peaks
    cover the whole life of the allocator, and `total_allocated_bytes` sums all blocks ever
    allocated. `retries` counts the requests for which all idle segments were released.
    """

    def __init__(
        self,
        settings: AllocatorSettings = _DEFAULT,
        *,
        total: int | None = None,
        occupied: int = 0,
        addresses: Addresses | None = None,
    ) -> None:
        expandable, large = settings.expandable_segments, settings.large_segment_size
        limit = (
            int(settings.memory_fraction * total)
            if total is not None and settings.memory_fraction < 1
            else None
        )
        self._settings = settings
        self._expandable = expandable
        self._device = DeviceMemory(total, occupied, limit)
        addresses = self._addresses = addresses or Ages()
        self._segments = (
            ExpandableSegments(self._device, addresses)
            if expandable
            else WholeSegments(self._device, addresses, large)
        )
        self._pools: dict[Lane, tuple[Pool, Pool]] = {}
        self._small, self._large = self._pools_of(DEFAULT_LANE)
        self._pending: dict[Block, None] = {}
        self._released_pools = {DEFAULT_LANE.pool}
        self._rounds = any(settings.divisions)
        self._collects = limit is not None and settings.garbage_collection_threshold > 0
        self._plain = not expandable and not self._collects and settings.max_split_size == UNLIMITED
        self.retries = 0
        self.allocated_bytes = 0
        self.requested_bytes = 0
        self.total_allocated_bytes = 0
        self.peak_allocated_bytes = 0
        self.pending_bytes = 0
        self._peak_active_with_pending = 0
        self.peak_requested_bytes = 0
        self.peak_inactive_split_bytes = 0

    @property
    def reserved_bytes(self) -> int:
        """Bytes of all segments; of expandable segments only mapped bytes."""
        return self._device.reserved

    @property
    def peak_reserved_bytes(self) -> int:
        """The largest number of reserved bytes so far."""
        return self._device.peak

    @property
    def releases(self) -> int:
        """The number of times that memory was given back to the device."""
        return self._device.releases

    @property
    def active_bytes(self) -> int:
        """Bytes of blocks in use, and of blocks that are freed and pending."""
        return self.allocated_bytes + self.pending_bytes

    @property
    def peak_active_bytes(self) -> int:
        """The largest number of active bytes so far."""
        # Without pending blocks the active bytes are the allocated ones.
        return max(self._peak_active_with_pending, self.peak_allocated_bytes)

    @property
    def inactive_split_bytes(self) -> int:
        """Free bytes that cannot be released: 0 with expandable segments, whose pages can be."""
        if self._expandable:
            return 0
        return self._device.reserved - self.active_bytes - self._device.idle

    def adopt(self, segments: Iterable[SegmentState]) -> list[Block]:
        """Take over existing segments, such as a snapshot's; return the blocks in use, in order.

        Each segment is taken from the device now, at the address that `addresses` chooses. Raise
        ValueError if the device is too small, or if a segment has unmapped addresses without
        expandable segments.
        """
        expandable = self._settings.expandable_segments
        used: list[Block] = []
        for state in segments:
            if state.mapped < state.size and not expandable:
                raise ValueError(
                    f"{state.size - state.mapped} bytes of a segment are not mapped; this needs"
                    " expandable_segments:True"
                )
            if not self._device.take(state.mapped):
                raise ValueError(
                    f"a segment of {state.mapped} bytes does not fit on the device with"
                    f" {self.reserved_bytes} bytes reserved"
                )
            small, large = self._pools.get(state.lane) or self._pools_of(state.lane)
            blocks = state.lay_out(
                small if state.pool == "small" else large, self._addresses.take(state.size)
            )
            used += [block for block in blocks if block.allocated]
            for block in blocks:
                if expandable and block.mapped:
                    self._addresses.map(block.segment + block.offset, block.size)
        pending = [block for block in used if block.pending]
        self._pending.update(dict.fromkeys(pending))
        self.pending_bytes += sum(block.size for block in pending)
        allocated = sum(block.size for block in used if not block.pending)
        self.allocated_bytes += allocated
        self.total_allocated_bytes += allocated
        self.requested_bytes += sum(block.requested for block in used)
        self.peak_allocated_bytes = max(self.peak_allocated_bytes, self.allocated_bytes)
        self._peak_active_with_pending = max(self._peak_active_with_pending, self.active_bytes)
        self.peak_requested_bytes = max(self.peak_requested_bytes, self.requested_bytes)
        self._note_inactive()
        return used

    def malloc(self, nbytes: int, lane: Lane = DEFAULT_LANE) -> Block:
        """Return the block that a request of `nbytes` gets from a stream and a pool.

        Raise OutOfMemoryError if the device is full, ValueError if nbytes < 1 (such a request never
        reaches CUDA's allocator).
        """
        if nbytes < 1:
            raise ValueError(f"nbytes must be >= 1, got {nbytes}")
        size = self.rounded(nbytes) if self._rounds else -(-nbytes // MIN_BLOCK) * MIN_BLOCK
        if lane is DEFAULT_LANE:
            pool = self._small if size <= SMALL_REQUEST else self._large
        else:
            small, large = self._pools.get(lane) or self._pools_of(lane)
            pool = small if size <= SMALL_REQUEST else large
        if self._plain:
            place = bisect_left(pool.blocks, (size,))
            found = pool.pop(place) if place < len(pool.blocks) else None
            block = found or self._obtain(pool, size, nbytes)
        else:
            block = self._search(pool, size) or self._obtain(pool, size, nbytes)
        split = block.size - size >= pool.least_rest and size < pool.split_below
        if split:
            pool.add(block.split(size))
        block.allocated = True
        block.requested = nbytes
        self.requested_bytes += nbytes
        self.allocated_bytes += block.size
        self.total_allocated_bytes += block.size
        if self.allocated_bytes > self.peak_allocated_bytes:
            self.peak_allocated_bytes = self.allocated_bytes
        if self.pending_bytes and self.active_bytes > self._peak_active_with_pending:
            self._peak_active_with_pending = self.active_bytes
        if self.requested_bytes > self.peak_requested_bytes:
            self.peak_requested_bytes = self.requested_bytes
        if split:
            self._note_inactive()
        return block

    def free(self, block: Block, *, pending: bool = False) -> None:
        """Free a block and merge it with its free neighbours; ValueError if it is not in use.

        A `pending` block stays in its place until `complete`, as a tensor does that another stream
        may still use (torch.Tensor.record_stream).
        """
        if not block.allocated or block.pending:
            raise ValueError(
                f"block at offset {block.offset} of segment {block.segment} is not allocated"
            )
        self.allocated_bytes -= block.size
        if pending:
            block.pending = True
            self._pending[block] = None
            self.pending_bytes += block.size
            return
        self.requested_bytes -= block.requested
        block.allocated = False
        pool, low, high = block.pool, block.previous, block.next
        if high is not None and not high.allocated and high.mapped:
            pool.remove(high)
            block.join_next()
        if low is not None and not low.allocated and low.mapped:
            pool.remove(low)
            low.join_next()
            block = low
        pool.add(block)
        if block.previous is not None or block.next is not None:
            self._note_inactive()

    def complete(self, block: Block) -> None:
        """Free a pending block for other requests, as its last event on other streams does.

        A full device waits for all events, so a block may be complete already; then nothing
        happens.
        """
        if block.pending:
            del self._pending[block]
            self.pending_bytes -= block.size
            self.allocated_bytes += block.size
            # A second call for the old block must not reach the next owner of its bytes.
            self.free(block.renew())

    def release_pool(self, pool: tuple[int, int]) -> None:
        """Let the idle segments of a private pool be released, as when its graphs are gone."""
        self._released_pools.add(pool)

    def empty_cache(self) -> None:
        """Wait for pending blocks, then release idle segments, as torch.cuda.empty_cache does.

        Private pools that are in use keep theirs.
        """
        for block in list(self._pending):
            self.complete(block)
        for lane, (small, large) in self._pools.items():
            if lane.pool in self._released_pools:
                self._segments.release_idle(large)
                self._segments.release_idle(small)

    def _pools_of(self, lane: Lane) -> tuple[Pool, Pool]:
        """Return the small and the large pool of a lane, which are made at its first request.

        The rest of a block is split off from 512 B on in the small pool, and above 1 MiB in the
        large one.
        """
        if lane not in self._pools:
            expandable, settings = self._expandable, self._settings
            streams = (pools for other, pools in self._pools.items() if other.pool == lane.pool)
            searches = [pool.searches for pool in next(streams, ())] or [[0], [0]]
            small = Pool(
                self._device,
                lane,
                least_rest=MIN_BLOCK,
                split_below=UNLIMITED,
                handle=SMALL_SEGMENT,
                searches=searches[0],
            )
            large = Pool(
                self._device,
                lane,
                least_rest=MIN_BLOCK if expandable else SMALL_REQUEST + 1,
                split_below=UNLIMITED if expandable else settings.max_split_size,
                handle=settings.large_segment_size,
                searches=searches[1],
            )
            self._pools[lane] = small, large
        return self._pools[lane]

    def statistics(self) -> dict[str, int]:
        """Return the statistics under the names of torch.cuda.memory_stats."""
        return {
            "allocated_bytes.all.current": self.allocated_bytes,
            "allocated_bytes.all.peak": self.peak_allocated_bytes,
            "allocated_bytes.all.allocated": self.total_allocated_bytes,
            "allocated_bytes.all.freed": self.total_allocated_bytes - self.allocated_bytes,
            "active_bytes.all.current": self.active_bytes,
            "active_bytes.all.peak": self.peak_active_bytes,
            "requested_bytes.all.current": self.requested_bytes,
            "requested_bytes.all.peak": self.peak_requested_bytes,
            "reserved_bytes.all.current": self._device.reserved,
            "reserved_bytes.all.peak": self._device.peak,
            "inactive_split_bytes.all.current": self.inactive_split_bytes,
            "inactive_split_bytes.all.peak": self.peak_inactive_split_bytes,
            "num_alloc_retries": self.retries,
            "num_device_alloc": self._device.allocations,
            "num_device_free": self._device.releases,
        }

    def _note_inactive(self) -> None:
        if self._expandable:
            return
        # As `inactive_split_bytes`, of which this is the most frequent use by far.
        device = self._device
        inactive = device.reserved - self.allocated_bytes - self.pending_bytes - device.idle
        if inactive > self.peak_inactive_split_bytes:
            self.peak_inactive_split_bytes = inactive

    def rounded(self, nbytes: int) -> int:
        """Return the size of the block for a request: a multiple of 512 B, or of a division.

        With `divisions` a request is rounded up to a fraction of the power of two below it.
        """
        power = 1 << (nbytes.bit_length() - 1)
        divisions = self._settings.divisions[
            min(max(nbytes.bit_length() - 21, 0), len(self._settings.divisions) - 1)
        ]
        if divisions > 1 and nbytes > MIN_BLOCK * divisions:
            return -(-nbytes // (power // divisions)) * (power // divisions)
        return -(-nbytes // MIN_BLOCK) * MIN_BLOCK

    def _search(self, pool: Pool, size: int) -> Block | None:
        """Take the free block that fits best out of the pool; None if none fits."""
        place = pool.place(size)
        if self._collects:
            pool.searches[0] += 1
        if place == len(pool.blocks):
            return None
        if self._settings.expandable_segments:
            place = _least_expandable(pool, place)
        best, oversize = pool.blocks[place][0], self._settings.max_split_size
        if size < oversize <= best:
            return None
        if size >= oversize and best >= size + self._settings.max_non_split_rounding:
            return None
        return pool.pop(place)

    def _obtain(self, pool: Pool, size: int, nbytes: int) -> Block:
        """Return a block from the device, after releasing idle segments if necessary."""
        if self._collects:
            self._collect()
        block = self._ask_device(pool, size)
        oversize = self._settings.max_split_size
        if (
            block is None
            and oversize < UNLIMITED
            and self._segments.release_oversize(pool, size, oversize)
        ):
            block = self._ask_device(pool, size)
        # While a CUDA graph is captured, torch can neither wait for events nor release memory.
        if block is None and not pool.lane.is_captured:
            self.empty_cache()
            self.retries += 1
            block = self._ask_device(pool, size)
        if block is None:
            raise self._out_of_memory(size, nbytes)
        return block

    def _ask_device(self, pool: Pool, size: int) -> Block | None:
        device = self._device
        if (
            device.limit is not None
            and device.reserved + segment_bytes(size, self._settings.large_segment_size)
            > device.limit
        ):
            return None
        return self._segments.obtain(pool, size)

    def _collect(self) -> None:
        assert self._device.limit is not None
        target = self._device.reserved - int(
            self._settings.garbage_collection_threshold * self._device.limit
        )
        if target > 0:
            large = [large for lane, (_, large) in self._pools.items() if lane.pool == (0, 0)]
            self._segments.collect(large, target)

    def _out_of_memory(self, size: int, nbytes: int) -> OutOfMemoryError:
        device = self._device
        assert device.total is not None
        return OutOfMemoryError(
            requested=nbytes,
            tried=segment_bytes(size, self._settings.large_segment_size),
            total=device.total,
            free=device.total - device.occupied - device.reserved,
            limit=device.limit,
            allocated=self.allocated_bytes,
            reserved=device.reserved,
        )


def _least_expandable(pool: Pool, place: int) -> int:
    """Return the best fit if each block counts with the addresses that it can grow into."""
    while place + 1 < len(pool.blocks) and _reach(pool.blocks[place + 1][3]) < _reach(
        pool.blocks[place][3]
    ):
        place += 1
    return place


def _reach(block: Block) -> int:
    """Bytes of a block and of the unmapped addresses after it."""
    return block.size + (block.next.size if block.next is not None and not block.next.mapped else 0)
