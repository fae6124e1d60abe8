"""A stream of events replayed through the allocator: peaks, whose phase they fall in, and what they are made of."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from .allocator import Block, CachingAllocator
from .trace import Allocations, Segment

Moment = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Replay:
    """What the allocator's statistics say about a stream; all counts are exact bytes of blocks, tails included.

    `peak_by_category` splits `peak_allocated` at the first moment it is reached, in `peak_phase`: just after event `peak_moment[1]` of
    segment `peak_moment[0]`. `kept` is what the allocations that were asked about occupy when the last "step" ends.

    For a timeline: `segment_peaks` is the most that was allocated in each segment, `block_bytes` the block of each allocation by number,
    and `reserved_changes` the reserved bytes after those events that changed them, by place of the segment and index of the event.
    """

    peak_allocated: int
    peak_reserved: int
    peak_moment: Moment
    peak_phase: str
    peak_by_category: Mapping[str, int]
    peak_by_phase: Mapping[str, int]
    kept: int
    segment_peaks: Sequence[int]
    block_bytes: Mapping[int, int]
    reserved_changes: Mapping[int, Mapping[int, int]]


def play(segment: Segment, allocations: Allocations, allocator: CachingAllocator, blocks: dict[int, Block]) -> Iterator[tuple[int, Block]]:
    """Run one segment through the allocator and yield each event with its block when it is done.

    `blocks` holds the blocks in use by allocation number and is kept up to date; the allocator's counters say what the device holds. A
    block keeps its size and place while it is in use; one that was given back may be part of a larger one already.
    """
    nbytes = allocations.nbytes
    for event in segment.events:
        if event < 0:
            block = blocks.pop(~event)
            allocator.free(block)
        else:
            block = blocks[event] = allocator.malloc(nbytes[event])
        yield event, block


def replay(segments: list[Segment], allocations: Allocations, keep: Iterable[int]) -> Replay:
    """Run the segments through a fresh allocator; `keep` names the allocations whose blocks `kept` counts."""
    allocator = CachingAllocator()
    blocks: dict[int, Block] = {}
    sizes: dict[int, int] = {}
    peak_by_phase: dict[str, int] = {}
    segment_peaks: list[int] = []
    reserved_changes: dict[int, dict[int, int]] = {}
    peak, moment, kept, reserved = 0, (0, 0), 0, 0
    for place, segment in enumerate(segments):
        phase_peak = allocator.allocated_bytes
        for index, (event, block) in enumerate(play(segment, allocations, allocator, blocks)):
            if event < 0:
                continue
            sizes[event] = block.size
            if allocator.reserved_bytes != reserved:
                reserved = allocator.reserved_bytes
                reserved_changes.setdefault(place, {})[index] = reserved
            if allocator.allocated_bytes > phase_peak:
                phase_peak = allocator.allocated_bytes
                if phase_peak > peak:
                    peak, moment = phase_peak, (place, index)
        segment_peaks.append(phase_peak)
        peak_by_phase[segment.phase] = max(peak_by_phase.get(segment.phase, 0), phase_peak)
        if segment.phase == "step":
            kept = sum(sizes[number] for number in keep if number in blocks)
    return Replay(
        peak_allocated=peak,
        peak_reserved=allocator.peak_reserved_bytes,
        peak_moment=moment,
        peak_phase=segments[moment[0]].phase,
        peak_by_category=_by_category(live_at(segments, moment), sizes, allocations),
        peak_by_phase=peak_by_phase,
        kept=kept,
        segment_peaks=segment_peaks,
        block_bytes=sizes,
        reserved_changes=reserved_changes,
    )


def live_at(segments: list[Segment], moment: Moment) -> set[int]:
    """The allocations that are in use just after one event."""
    last_segment, last_event = moment
    live: set[int] = set()
    for segment in (*segments[:last_segment], Segment("build", segments[last_segment].events[: last_event + 1])):
        for event in segment.events:
            if event < 0:
                live.remove(~event)
            else:
                live.add(event)
    return live


def _by_category(live: set[int], sizes: Mapping[int, int], allocations: Allocations) -> dict[str, int]:
    found: Counter[str] = Counter()
    for number in live:
        found[allocations.categories[number]] += sizes[number]
    return dict(found.most_common())
