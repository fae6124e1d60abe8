"""The allocator's model, compared with a plain second model that scans unsorted lists.

Both get the same requests of several streams and pools under all settings, on devices that run
out, and must agree after every event.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import settings as run_with
from hypothesis import strategies as st

from optprof.profiler.allocator.blocks import Block, Lane, Pool
from optprof.profiler.allocator.caching import CachingAllocator
from optprof.profiler.allocator.out_of_memory import OutOfMemoryError
from optprof.profiler.allocator.segments import LowestAddresses
from optprof.profiler.allocator.settings import UNLIMITED, AllocatorSettings

KIB, MIB = 1 << 10, 1 << 20
PRIVATE, GRAPH = (0, 1), (1, 0)
LANES = (
    Lane(),
    Lane(),
    Lane(stream=7),
    Lane(stream=9),
    Lane(pool=PRIVATE),
    Lane(stream=7, pool=PRIVATE),
    Lane(pool=GRAPH),
)


@dataclass
class Run:
    """Adjacent bytes: in use, waiting for a stream, free, or addresses without memory."""

    start: int
    size: int
    state: str
    requested: int = 0
    since: int = 0


@dataclass
class Range:
    """A segment: its number or address, its pools, and its runs in the order of addresses."""

    number: int
    small: bool
    lane: Lane
    runs: list[Run] = field(default_factory=list)


class PlainAllocator:
    """The rules in their plainest form; `malloc` returns a number for each run in use."""

    def __init__(
        self, settings: AllocatorSettings, total: int | None, occupied: int, by_address: bool
    ) -> None:
        self.settings, self.total, self.occupied, self.by_address = (
            settings,
            total,
            occupied,
            by_address,
        )
        self.ranges: list[Range] = []
        self.searches = dict.fromkeys(
            [(small, pool) for small in (True, False) for pool in ((0, 0), PRIVATE, GRAPH)], 0
        )
        self.released = {(0, 0)}
        self.live: dict[int, tuple[Range, Run]] = {}
        self.waiting: list[tuple[Range, Run]] = []
        self.calls = self.numbers = self.retries = self.peak_split = 0

    def all_runs(self, state: str, of: tuple[bool, Lane] | None = None) -> list[tuple[Range, Run]]:
        return [
            (rng, run)
            for rng in self.ranges
            for run in rng.runs
            if run.state == state and of in (None, (rng.small, rng.lane))
        ]

    @property
    def allocated(self) -> int:
        return sum(run.size for _, run in self.all_runs("used"))

    @property
    def active(self) -> int:
        return self.allocated + sum(run.size for _, run in self.all_runs("waiting"))

    @property
    def requested(self) -> int:
        busy = [*self.all_runs("used"), *self.all_runs("waiting")]
        return sum(run.requested for _, run in busy)

    @property
    def reserved(self) -> int:
        return self.active + sum(run.size for _, run in self.all_runs("free"))

    @property
    def inactive_split(self) -> int:
        if self.settings.expandable_segments:
            return 0
        return sum(run.size for rng, run in self.all_runs("free") if len(rng.runs) > 1)

    @property
    def limit(self) -> int | None:
        if self.total is None or self.settings.memory_fraction == 1:
            return None
        return int(self.settings.memory_fraction * self.total)

    @property
    def collects(self) -> bool:
        return self.limit is not None and self.settings.garbage_collection_threshold > 0

    def rounded(self, nbytes: int) -> int:
        floor, place = 1, -20
        while floor * 2 <= nbytes:
            floor, place = floor * 2, place + 1
        divisions = self.settings.divisions[max(0, min(place, 15))]
        if divisions < 2 or nbytes <= 512 * divisions:
            size = 512
            while size < nbytes:
                size += 512 if nbytes - size < MIB else (nbytes - size) // 512 * 512
            return size
        size = floor
        while size < nbytes:
            size += floor // divisions
        return size

    def segment(self, size: int) -> int:
        if size <= MIB:
            return 2 * MIB
        if size < 10 * MIB:
            return self.settings.large_segment_size
        return size if size % (2 * MIB) == 0 else (size // (2 * MIB) + 1) * 2 * MIB

    def malloc(self, nbytes: int, lane: Lane) -> int | MemoryError:
        size = self.rounded(nbytes)
        small = size <= MIB
        place = self.search(small, lane, size) or self.fetch(small, lane, size)
        if place is None:
            return MemoryError(self.segment(size), self.room(), self.allocated, self.reserved)
        rng, run = place
        rest = run.size - size
        splits = (
            rest >= 512
            if small or self.settings.expandable_segments
            else rest > MIB and size < self.settings.max_split_size
        )
        run.state, run.requested = "used", nbytes
        if splits:
            run.size = size
            rng.runs.insert(
                rng.runs.index(run) + 1,
                Run(run.start + size, rest, "free", since=self.searches[small, lane.pool]),
            )
        self.calls += 1
        self.live[self.calls] = rng, run
        return self.calls

    def free(self, number: int, pending: bool = False) -> None:
        rng, run = self.live.pop(number)
        run.state = "waiting"
        if pending:
            self.waiting.append((rng, run))
        else:
            self.complete(rng, run)

    def complete(self, rng: Range, run: Run) -> None:
        if run.state == "waiting":
            run.state, run.requested = "free", 0
            run.since = self.searches[rng.small, rng.lane.pool]
            self.merge(rng)
            # A request may wait for several blocks, and release what they leave.
            self.peak_split = max(self.peak_split, self.inactive_split)

    def merge(self, rng: Range) -> None:
        merged: list[Run] = []
        for run in rng.runs:
            if merged and run.state in ("free", "bare") and merged[-1].state == run.state:
                merged[-1].size += run.size
                merged[-1].since = self.searches[rng.small, rng.lane.pool]
            else:
                merged.append(run)
        rng.runs = merged

    def search(self, small: bool, lane: Lane, size: int) -> tuple[Range, Run] | None:
        if self.collects:
            self.searches[small, lane.pool] += 1
        fits = [
            (run.size, rng.number, run.start, rng, run)
            for rng, run in self.all_runs("free", (small, lane))
            if run.size >= size
        ]
        fits.sort(key=lambda fit: fit[:3])
        if not fits:
            return None
        best = 0
        if self.settings.expandable_segments:
            while best + 1 < len(fits) and self.reach(*fits[best + 1][3:]) < self.reach(
                *fits[best][3:]
            ):
                best += 1
        rng, run = fits[best][3:]
        oversize = self.settings.max_split_size
        if size < oversize and run.size >= oversize:
            return None
        if size >= oversize and run.size - size >= self.settings.max_non_split_rounding:
            return None
        return rng, run

    def reach(self, rng: Range, run: Run) -> int:
        after = rng.runs[rng.runs.index(run) + 1 :]
        return run.size + (after[0].size if after and after[0].state == "bare" else 0)

    def fetch(self, small: bool, lane: Lane, size: int) -> tuple[Range, Run] | None:
        if self.collects:
            self.collect()
        place = self.ask(small, lane, size)
        if place is None and self.release_oversize(small, lane, size):
            place = self.ask(small, lane, size)
        if place is None and lane.pool != GRAPH:
            self.empty_cache()
            self.retries += 1
            place = self.ask(small, lane, size)
        return place

    def room(self) -> int:
        return (1 << 80) if self.total is None else self.total - self.occupied - self.reserved

    def ask(self, small: bool, lane: Lane, size: int) -> tuple[Range, Run] | None:
        nbytes = self.segment(size)
        if self.limit is not None and self.reserved + nbytes > self.limit:
            return None
        if self.settings.expandable_segments:
            return self.grow(small, lane, size)
        if nbytes > self.room():
            return None
        rng = self.new_range(small, lane, nbytes, "free")
        return rng, rng.runs[0]

    def new_range(self, small: bool, lane: Lane, nbytes: int, state: str) -> Range:
        self.numbers += 1
        rng = Range(
            self.lowest_gap(nbytes) if self.by_address else self.numbers,
            small,
            lane,
            [Run(0, nbytes, state)],
        )
        self.ranges.append(rng)
        return rng

    def lowest_gap(self, nbytes: int) -> int:
        spans = [
            (rng.number, rng.number + sum(run.size for run in rng.runs)) for rng in self.ranges
        ]
        starts = sorted([0, *(end for _, end in spans)])
        return next(
            at for at in starts if all(at + nbytes <= start or at >= end for start, end in spans)
        )

    def grow(self, small: bool, lane: Lane, size: int) -> tuple[Range, Run] | None:
        rng, start = self.lowest_room(small, lane, size)
        while True:
            place = next(place for place, run in enumerate(rng.runs) if run.start == start)
            run = rng.runs[place]
            if run.state == "free" and run.size >= size:
                return rng, run
            bare = run if run.state == "bare" else rng.runs[place + 1]
            missing = size if run is bare else size - run.size
            if not self.map(rng, bare, min(missing, bare.size)):
                return None

    def handle(self, small: bool) -> int:
        return 2 * MIB if small else self.settings.large_segment_size

    def lowest_room(self, small: bool, lane: Lane, size: int) -> tuple[Range, int]:
        for rng in sorted(self.ranges, key=lambda rng: rng.number):
            for place, run in enumerate(rng.runs):
                if (rng.small, rng.lane) != (small, lane) or run.state != "bare":
                    continue
                first = place - 1 if place and rng.runs[place - 1].state == "free" else place
                room = 0
                for other in rng.runs[first:]:
                    if other.state in ("used", "waiting"):
                        break
                    room += other.size
                if room >= size:
                    return rng, rng.runs[first].start
        whole = (1 << 50) if self.total is None else self.total + self.total // 8
        handle = self.handle(small)
        count = whole // handle if self.total is None else (whole + handle - 1) // handle
        return self.new_range(small, lane, count * handle, "bare"), 0

    def map(self, rng: Range, bare: Run, nbytes: int) -> bool:
        handle = self.handle(rng.small)
        while nbytes % handle:
            nbytes += min(512, handle - nbytes % handle) if nbytes % handle % 512 == 0 else 1
        if nbytes > self.room():
            return False
        if nbytes < bare.size:
            rng.runs.insert(
                rng.runs.index(bare) + 1, Run(bare.start + nbytes, bare.size - nbytes, "bare")
            )
            bare.size = nbytes
        bare.state = "free"
        self.merge(rng)
        return True

    def empty_cache(self) -> None:
        for place in self.waiting:
            self.complete(*place)
        self.waiting.clear()
        for rng in [rng for rng in self.ranges if rng.lane.pool in self.released]:
            if not self.settings.expandable_segments:
                if [run.state for run in rng.runs] == ["free"]:
                    self.ranges.remove(rng)
                continue
            handle, runs, was_mapped = (
                self.handle(rng.small),
                [],
                [run.state for run in rng.runs] != ["bare"],
            )
            for run in rng.runs:
                start, end = (
                    -(-run.start // handle) * handle,
                    (run.start + run.size) // handle * handle,
                )
                if run.state != "free" or start >= end:
                    runs.append(run)
                    continue
                pieces = [
                    (run.start, start, "free"),
                    (start, end, "bare"),
                    (end, run.start + run.size, "free"),
                ]
                runs += [Run(low, high - low, state) for low, high, state in pieces if high > low]
            rng.runs = runs
            self.merge(rng)
            # Addresses that never had memory stay for the next request.
            if was_mapped and [run.state for run in rng.runs] == ["bare"]:
                self.ranges.remove(rng)

    def release_oversize(self, small: bool, lane: Lane, size: int) -> bool:
        oversize = self.settings.max_split_size
        if oversize == UNLIMITED or self.settings.expandable_segments:
            return False
        free = sorted(
            self.all_runs("free", (small, lane)),
            key=lambda place: (place[1].size, place[0].number, place[1].start),
        )
        needed = max(size, oversize)
        enough = [rng for rng, run in free if run.size >= needed]
        if enough:
            self.ranges.remove(enough[0])
            return True
        released = 0
        for rng, run in reversed(free):
            if released >= needed or run.size < oversize:
                break
            released += run.size
            self.ranges.remove(rng)
        return released >= needed

    def collect(self) -> None:
        assert self.limit is not None
        target = self.reserved - int(self.settings.garbage_collection_threshold * self.limit)
        if target <= 0 or self.settings.expandable_segments:
            return
        reclaimed = 0
        while reclaimed < target:
            idle = [
                rng
                for rng in self.ranges
                if not rng.small and rng.lane.pool == (0, 0)
                if [run.state for run in rng.runs] == ["free"]
            ]
            if not idle:
                return
            ages = [self.searches[False, (0, 0)] - rng.runs[0].since for rng in idle]
            for rng, age in zip(idle, ages, strict=True):
                if age >= sum(ages) / len(ages):
                    reclaimed += rng.runs[0].size
                    self.ranges.remove(rng)


def segments_of(allocator: CachingAllocator, live: list[Block]) -> Iterator[list[Block]]:
    """Yield the blocks of each of the allocator's segments, by offset."""
    pools = [pool for both in allocator._pools.values() for pool in both]
    blocks = [*live, *(block for pool in pools for *_, block in [*pool.blocks, *pool.unmapped])]
    for block in blocks:
        if block.previous is None:
            segment = [block]
            while segment[-1].next is not None:
                assert segment[-1].next.previous is segment[-1]
                segment.append(segment[-1].next)
            yield segment


def check_books(allocator: CachingAllocator, live: list[Block]) -> None:
    """Check the invariants that hold after every event, under any rules."""
    segments = list(segments_of(allocator, live))
    blocks = [block for segment in segments for block in segment]
    for segment in segments:
        end = 0
        for block in segment:
            assert (block.offset, block.segment, block.pool) == (
                end,
                segment[0].segment,
                segment[0].pool,
            )
            end += block.size
        for low, high in pairwise(segment):
            assert low.allocated or high.allocated or low.mapped != high.mapped, (
                "free neighbours stay apart"
            )
    assert {id(block) for block in blocks if block.allocated} == {id(block) for block in live}
    for pool in [pool for both in allocator._pools.values() for pool in both]:
        assert pool.blocks == sorted(pool.blocks, key=lambda entry: entry[:3])
        check_pool(
            pool,
            [entry[3] for entry in pool.blocks],
            [block for block in blocks if block.mapped and not block.allocated],
        )
        check_pool(
            pool,
            [entry[2] for entry in pool.unmapped],
            [block for block in blocks if not block.mapped],
        )
    assert allocator.reserved_bytes == sum(block.size for block in blocks if block.mapped)
    assert allocator.allocated_bytes == sum(block.size for block in live if not block.pending)
    assert allocator.active_bytes == sum(block.size for block in live)
    assert allocator.requested_bytes == sum(block.requested for block in live)
    assert (
        allocator.requested_bytes
        <= allocator.active_bytes
        <= allocator.reserved_bytes
        <= allocator.peak_reserved_bytes
    )
    assert allocator.allocated_bytes <= allocator.peak_allocated_bytes


def check_pool(pool: Pool, members: list[Block], expected: list[Block]) -> None:
    assert sorted(map(id, members)) == sorted(id(block) for block in expected if block.pool is pool)


@dataclass(frozen=True)
class Device:
    settings: AllocatorSettings
    total: int | None
    occupied: int
    by_address: bool


Wish = tuple[int, int, int, int]


def run_both(device: Device, stream: list[Wish]) -> int:
    """Run a stream on both models; return how often memory ran out.

    Each entry is a size to allocate, or frees a live block if `choice` points at one; the lane of
    a request; and how a block is freed, at once or pending (1), or what else ends: a pending block
    (2), or the use of the private pool (3).
    """
    addresses = LowestAddresses() if device.by_address else None
    fast = CachingAllocator(
        device.settings, total=device.total, occupied=device.occupied, addresses=addresses
    )
    plain = PlainAllocator(device.settings, device.total, device.occupied, device.by_address)
    live: list[tuple[Block, int]] = []
    waiting: list[tuple[Block, tuple[Range, Run]]] = []
    done: list[Block] = []
    peaks = [0, 0, 0, 0]
    failures = 0
    for nbytes, choice, lane, how in stream:
        # A full device waits for all; a block that is complete may be completed again.
        done += [block for block, _ in waiting if not block.pending]
        waiting = [each for each in waiting if each[0].pending]
        for block in done:
            fast.complete(block)
        if how == 2 and waiting:
            block, place = waiting.pop(choice % len(waiting))
            fast.complete(block)
            done.append(block)
            plain.complete(*place)
        elif how == 3:
            fast.release_pool(PRIVATE)
            plain.released.add(PRIVATE)
        elif choice < len(live):
            block, number = live.pop(choice)
            fast.free(block, pending=how == 1)
            plain.free(number, pending=how == 1)
            if how == 1:
                waiting.append((block, plain.waiting[-1]))
        elif nbytes == 0:
            fast.empty_cache()
            plain.empty_cache()
        else:
            taken = plain.malloc(nbytes, LANES[lane])
            if isinstance(taken, MemoryError):
                failures += 1
                with pytest.raises(OutOfMemoryError) as caught:
                    fast.malloc(nbytes, LANES[lane])
                error = caught.value
                assert (
                    error.tried,
                    error.free,
                    error.allocated,
                    error.reserved,
                    error.requested,
                ) == (*taken.args, nbytes)
            else:
                block = fast.malloc(nbytes, LANES[lane])
                rng, run = plain.live[taken]
                assert (block.segment, block.offset, block.size, block.requested) == (
                    rng.number,
                    run.start,
                    run.size,
                    nbytes,
                )
                assert block.pool.lane == LANES[lane]
                live.append((block, taken))
        statistics = (
            fast.allocated_bytes,
            fast.active_bytes,
            fast.requested_bytes,
            fast.reserved_bytes,
            fast.inactive_split_bytes,
            fast.retries,
        )
        assert statistics == (
            plain.allocated,
            plain.active,
            plain.requested,
            plain.reserved,
            plain.inactive_split,
            plain.retries,
        )
        plain.peak_split = max(plain.peak_split, plain.inactive_split)
        now = plain.allocated, plain.active, plain.requested, plain.peak_split
        peaks = list(map(max, peaks, now))
        assert [
            fast.peak_allocated_bytes,
            fast.peak_active_bytes,
            fast.peak_requested_bytes,
            fast.peak_inactive_split_bytes,
        ] == peaks
        busy = [block for block, _ in live] + [block for block, _ in waiting if block.pending]
        check_books(fast, busy)
    return failures


sizes = st.one_of(
    st.integers(1, 4 * KIB),
    st.integers(1, 3 * MIB),
    st.integers(MIB, 12 * MIB),
    st.integers(9 * MIB, 45 * MIB),
)
streams = st.lists(
    st.tuples(
        st.one_of(sizes, sizes, sizes, sizes, st.just(0)),
        st.integers(0, 16),
        st.integers(0, len(LANES) - 1),
        st.sampled_from([0, 0, 0, 0, 0, 0, 1, 1, 2, 3]),
    ),
    max_size=80,
)
texts = st.lists(
    st.sampled_from(
        [
            "expandable_segments:True",
            "max_split_size_mb:32",
            "max_split_size_mb:33,max_non_split_rounding_mb:35",
            "large_segment_size_mb:12",
            "large_segment_size_mb:32",
            "roundup_power2_divisions:4",
            "roundup_power2_divisions:[1:2,8:4,16:0,>:8]",
            "per_process_memory_fraction:0.75",
            "per_process_memory_fraction:0.6,garbage_collection_threshold:0.3",
        ]
    ),
    unique_by=lambda text: text.partition(":")[0],
    max_size=5,
)
devices = st.builds(
    Device,
    texts.map(lambda parts: AllocatorSettings.parse(",".join(parts))),
    st.one_of(st.none(), st.integers(30 * MIB, 400 * MIB)),
    st.integers(0, 20 * MIB),
    st.booleans(),
)


@given(devices, streams)
@run_with(max_examples=300, deadline=None)
def test_two_models_of_the_rules_agree_after_every_event(device: Device, stream: list[Wish]):
    run_both(device, stream)


LONG = [
    *(
        "",
        "expandable_segments:True",
        "max_split_size_mb:24",
        "max_split_size_mb:24,expandable_segments:True",
    ),
    *(
        "roundup_power2_divisions:[1:8,>:2]",
        "per_process_memory_fraction:0.8,garbage_collection_threshold:0.5",
    ),
    (
        "per_process_memory_fraction:0.8,garbage_collection_threshold:0.5,max_split_size_mb:22"
        ",roundup_power2_divisions:2"
    ),
]


@pytest.mark.parametrize("by_address", [False, True])
@pytest.mark.parametrize("text", LONG)
@pytest.mark.parametrize("lanes", [1, len(LANES)])
def test_two_models_agree_through_a_long_run_on_a_crowded_device(
    text: str, by_address: bool, lanes: int
):
    """Use a few sizes repeatedly, as training does, until memory runs out; then free blocks."""
    draw = random.Random(text)
    common = [
        draw.choice(
            [
                draw.randint(1, 900 * KIB),
                draw.randint(MIB, 9 * MIB),
                draw.randint(10 * MIB, 40 * MIB),
            ]
        )
        for _ in range(12)
    ]
    stream = [
        (
            draw.choice(common),
            draw.randint(0, 30 + 20 * (turn // 150 % 3)),
            draw.randrange(lanes),
            draw.choice([0, 0, 0, 1, 2]) if lanes > 1 else 0,
        )
        for turn in range(900)
    ]
    device = Device(AllocatorSettings.parse(text), 350 * MIB, 13 * MIB, by_address)
    assert run_both(device, stream), "the device was to run out"
