"""Replay a stream of events through the allocator: peaks, with their phase and categories."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..allocator.blocks import DEFAULT_LANE, Block, Lane
from ..allocator.caching import CachingAllocator
from ..allocator.out_of_memory import OutOfMemoryError, format_bytes
from ..tracing.stream import Allocations, Segment

Moment = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Replay:
    """The allocator's statistics for a stream; counts are exact bytes of whole blocks.

    `peak_by_category` divides `peak_allocated` at the first moment of the peak, in `peak_phase`:
    just after event `peak_moment[1]` of segment `peak_moment[0]`. `kept` is the bytes of the chosen
    allocations at the end of the last "step", None without a step. If the device runs out of
    memory, `error` says so in one line, and the other fields cover the events before it. `last` is
    the last event.

    For a timeline, `segment_peaks` is the peak of each segment, and `block_bytes` the block of each
    allocation by number. `reserved_changes` has the reserved bytes after each event that changed
    them, by place of the segment and index of the event.
    """

    peak_allocated: int
    peak_reserved: int
    peak_moment: Moment
    peak_phase: str
    peak_by_category: Mapping[str, int]
    peak_by_phase: Mapping[str, int]
    kept: int | None
    last: Moment
    error: str | None
    segment_peaks: Sequence[int]
    block_bytes: Mapping[int, int]
    reserved_changes: Mapping[int, Mapping[int, int]]


def play(
    segment: Segment,
    allocations: Allocations,
    allocator: CachingAllocator,
    blocks: dict[int, Block],
) -> Iterator[tuple[int, Block]]:
    """Run one segment through the allocator and yield each event with its block.

    `blocks` is the blocks in use by allocation number, which this updates. A block in use keeps its
    size and place; a free one may already be part of a larger one.
    """
    nbytes, streams = allocations.nbytes, allocations.streams
    for event in segment.events:
        if event < 0:
            block = blocks.pop(~event)
            allocator.free(block)
        else:
            lane = Lane(streams[event]) if event in streams else DEFAULT_LANE
            block = blocks[event] = allocator.malloc(nbytes[event], lane)
        yield event, block


def replay(
    segments: list[Segment],
    allocations: Allocations,
    keep: Iterable[int],
    allocator: CachingAllocator | None = None,
) -> Replay:
    """Run the segments through a fresh allocator, by default of an unlimited device.

    `keep` has the allocations that `Replay.kept` counts.
    """
    allocator = allocator or CachingAllocator()
    blocks: dict[int, Block] = {}
    sizes: dict[int, int] = {}
    peak_by_phase: dict[str, int] = {}
    segment_peaks: list[int] = []
    reserved_changes: dict[int, dict[int, int]] = {}
    peak, moment, last, reserved = 0, (0, -1), (0, -1), 0
    kept, error = None, None
    for place, segment in enumerate(segments):
        phase_peak = allocator.allocated_bytes
        index = -1
        try:
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
        except OutOfMemoryError as failure:
            error = _describe(failure, segments, place, segment.events[index + 1], allocations)
        last = place, index
        segment_peaks.append(phase_peak)
        peak_by_phase[segment.phase] = max(peak_by_phase.get(segment.phase, 0), phase_peak)
        if error is not None:
            break
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
        last=last,
        error=error,
        segment_peaks=segment_peaks,
        block_bytes=sizes,
        reserved_changes=reserved_changes,
    )


def until(segments: list[Segment], moment: Moment) -> list[Segment]:
    """Return the segments up to and including one event."""
    place, index = moment
    return [*segments[:place], Segment(segments[place].phase, segments[place].events[: index + 1])]


def live_at(segments: list[Segment], moment: Moment) -> dict[int, int]:
    """Return the allocations in use just after one event, with the places of their segments."""
    live: dict[int, int] = {}
    for place, segment in enumerate(until(segments, moment)):
        for event in segment.events:
            if event < 0:
                del live[~event]
            else:
                live[event] = place
    return live


def _by_category(
    live: Iterable[int], sizes: Mapping[int, int], allocations: Allocations
) -> dict[str, int]:
    nbytes: Counter[str] = Counter()
    for number in live:
        nbytes[allocations.categories[number]] += sizes[number]
    return dict(nbytes.most_common())


def _describe(
    failure: OutOfMemoryError,
    segments: list[Segment],
    place: int,
    number: int,
    allocations: Allocations,
) -> str:
    """Return one line with the phase and step, the request and its source, and torch's figures."""
    phase = segments[place].phase
    step = f"step {1 + sum(segment.phase == 'step' for segment in segments[:place])}"
    where = {"build": "build", "step": step}.get(phase, f"{phase} of {step}")
    source = allocations.sources[number]
    asking = ", ".join(filter(None, (source.op, source.module)))
    category = allocations.categories[number].replace("_", " ")
    return (
        f"out of memory in {where}, for {category} of"
        f" {format_bytes(failure.requested)}{f' ({asking})' if asking else ''}: {failure}"
    )
