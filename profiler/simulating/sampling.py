"""Sample a replay as a timeline: fewer events than the stream, with every maximum and minimum."""

from collections.abc import Iterable, Mapping, Sequence
from heapq import nlargest

from ..records.timeline import MOST_PHASES, HeldBlock, Stretch, Timeline
from ..tracing.stream import Allocations, Segment
from .explaining import BlockSources, peak_groups
from .replay import Moment, Replay, live_at

# The shown steps have this many stretches, each with its extremes; a picture has fewer pixels.
STRETCHES = 4096
LARGEST = 10


def sample(
    segments: list[Segment], steps: Sequence[range], allocations: Allocations, replayed: Replay
) -> Timeline:
    """Return the timeline of a replay; `steps` has the places of each step's segments."""
    highest = max(
        range(len(steps)),
        key=lambda number: max(replayed.segment_peaks[place] for place in steps[number]),
    )
    shown = sorted({0, highest, len(steps) - 1})
    if sum(len(steps[number]) for number in shown) > MOST_PHASES:
        # Each of thousands of micro-batches is two phases.
        shown = [highest]
    stretches = max(STRETCHES // sum(len(steps[number]) for number in shown), 1)
    sources = BlockSources(allocations)
    samples = _Samples(allocations.categories, replayed.block_bytes, sources)
    for place, segment in enumerate(segments):
        step = next((number for number in shown if place in steps[number]), None)
        changes = replayed.reserved_changes.get(place, {})
        if step is None:
            samples.pass_over(segment, changes)
        else:
            samples.add(segment, changes, step + 1, place, stretches)
    peak = max(range(len(samples.allocated)), key=samples.allocated.__getitem__)
    place, count = samples.moments[peak]
    live = live_at(segments, (place, count - 1))
    return Timeline(
        steps=len(steps),
        phases=tuple(samples.phases),
        places=tuple(place for _, place in samples.moments),
        categories=samples.by_category(),
        reserved=tuple(samples.reserved),
        peak=peak,
        largest=tuple(_largest(live, segments, steps, allocations, replayed.block_bytes)),
        groups=peak_groups(live, segments, sources, replayed.block_bytes),
        sources=sources.all,
        events=tuple(samples.events),
        layers=tuple(samples.layers),
    )


class _Samples:
    """The columns of a timeline, filled as the events go by."""

    def __init__(
        self, categories: Sequence[str], block_bytes: Mapping[int, int], sources: BlockSources
    ) -> None:
        self.phases: list[Stretch] = []
        self.moments: list[Moment] = []
        self.allocated: list[int] = []
        self.reserved: list[int] = []
        self.events: list[int] = []
        self.layers: list[str] = []
        self._by_category: list[dict[str, int]] = []
        self._categories, self._block_bytes = categories, block_bytes
        self._sources = sources
        # The bytes in use now, by category, and reserved.
        self._used = dict.fromkeys(categories, 0)
        self._reserved = 0

    def pass_over(self, segment: Segment, reserved_changes: Mapping[int, int]) -> None:
        """Apply the events of a segment that is not shown."""
        self._apply(segment.events)
        for reserved in reserved_changes.values():
            self._reserved = reserved

    def add(
        self,
        segment: Segment,
        reserved_changes: Mapping[int, int],
        step: int,
        place: int,
        stretches: int,
    ) -> None:
        """Sample the segment at `place`, a phase of a step, at the extremes of its stretches."""
        allocated = self._allocated_after(segment.events)
        kept = sorted(
            {0, *_extremes(allocated, stretches), *(index + 1 for index in reserved_changes)}
        )
        done = 0
        for count in kept:
            self._apply(segment.events[done:count])
            done = count
            self._reserved = reserved_changes.get(count - 1, self._reserved)
            self.moments.append((place, count))
            self.allocated.append(allocated[count])
            self.reserved.append(self._reserved)
            self._name(segment.events[count - 1] if count else None)
            self._by_category.append(dict(self._used))
        self.phases.append(
            Stretch(step=step, phase=segment.phase, events=len(segment.events), samples=len(kept))
        )

    def by_category(self) -> dict[str, tuple[int, ...]]:
        """Return the samples of each category that ever has any bytes."""
        names = [name for name in self._used if any(used[name] for used in self._by_category)]
        return {name: tuple(used[name] for used in self._by_category) for name in names}

    def _name(self, event: int | None) -> None:
        """Keep the source of a sample's event; a sample at the start of a phase has no event."""
        if event is None:
            number, layers = 0, ""
        else:
            number, layers = self._sources.of(~event if event < 0 else event)
        self.events.append(-number if event is not None and event < 0 else number)
        self.layers.append(layers)

    def _apply(self, events: Iterable[int]) -> None:
        used, categories, block_bytes = self._used, self._categories, self._block_bytes
        for event in events:
            if event < 0:
                used[categories[~event]] -= block_bytes[~event]
            else:
                used[categories[event]] += block_bytes[event]

    def _allocated_after(self, events: Iterable[int]) -> list[int]:
        """Return the bytes of all categories now, and after each of these events."""
        allocated = [sum(self._used.values())]
        for event in events:
            change = -self._block_bytes[~event] if event < 0 else self._block_bytes[event]
            allocated.append(allocated[-1] + change)
        return allocated


def _extremes(values: Sequence[int], stretches: int) -> set[int]:
    """Return the places of each stretch's maximum and minimum, and the last place."""
    size = -(-len(values) // stretches)
    places = {len(values) - 1}
    for first in range(0, len(values), size):
        stretch = range(first, min(first + size, len(values)))
        places |= {max(stretch, key=values.__getitem__), min(stretch, key=values.__getitem__)}
    return places


def _largest(
    live: Mapping[int, int],
    segments: list[Segment],
    steps: Sequence[range],
    allocations: Allocations,
    block_bytes: Mapping[int, int],
) -> list[HeldBlock]:
    """Return the largest blocks in use with their sources; `live` has the places of segments."""
    numbers = nlargest(LARGEST, sorted(live), key=block_bytes.__getitem__)
    return [
        HeldBlock(
            block_bytes=block_bytes[number],
            requested_bytes=allocations.nbytes[number],
            category=allocations.categories[number],
            step=next(
                (count for count, places in enumerate(steps, start=1) if live[number] in places), 0
            ),
            phase=segments[live[number]].phase,
            **allocations.sources[number]._asdict(),
        )
        for number in numbers
    ]
