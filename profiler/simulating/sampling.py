"""A replay sampled as a timeline: steps from event to event, thinned without losing a summit or a
valley.
"""

from collections.abc import Iterable, Mapping, Sequence
from heapq import nlargest

from ..records.timeline import MOST_PHASES, HeldBlock, Stretch, Timeline
from ..tracing.stream import Allocations, Segment
from .replay import Moment, Replay, live_at

# Stretches of the shown steps that each keep their extremes; a picture has fewer pixels.
STRETCHES = 4096
LARGEST = 10


def sample(
    segments: list[Segment], steps: Sequence[range], allocations: Allocations, found: Replay
) -> Timeline:
    """The timeline of a replay; `steps` has the places of each step's segments, `found` what the
    replay says of them.
    """
    highest = max(
        range(len(steps)),
        key=lambda number: max(found.segment_peaks[place] for place in steps[number]),
    )
    shown = sorted({0, highest, len(steps) - 1})
    if sum(len(steps[number]) for number in shown) > MOST_PHASES:
        # Each of thousands of micro-batches is two phases.
        shown = [highest]
    stretches = max(STRETCHES // sum(len(steps[number]) for number in shown), 1)
    samples = _Samples(_Held(allocations.categories, found.block_bytes))
    for place, segment in enumerate(segments):
        step = next((number for number in shown if place in steps[number]), None)
        changes = found.reserved_changes.get(place, {})
        if step is None:
            samples.pass_over(segment, changes)
        else:
            samples.add(segment, changes, step + 1, place, stretches)
    peak = max(range(len(samples.allocated)), key=samples.allocated.__getitem__)
    return Timeline(
        steps=len(steps),
        phases=tuple(samples.phases),
        places=tuple(place for _, place in samples.moments),
        categories=samples.by_category(),
        reserved=tuple(samples.reserved),
        peak=peak,
        largest=tuple(
            _largest(segments, steps, allocations, found.block_bytes, samples.moments[peak])
        ),
    )


class _Held:
    """Bytes in use by category, as events go by."""

    def __init__(self, categories: Sequence[str], block_bytes: Mapping[int, int]) -> None:
        self.bytes = dict.fromkeys(categories, 0)
        self._categories = categories
        self._block_bytes = block_bytes

    def pass_over(self, events: Iterable[int]) -> None:
        """Let these events happen."""
        held, categories, block_bytes = self.bytes, self._categories, self._block_bytes
        for event in events:
            if event < 0:
                held[categories[~event]] -= block_bytes[~event]
            else:
                held[categories[event]] += block_bytes[event]

    def allocated_after(self, events: Iterable[int]) -> list[int]:
        """The bytes of all categories now, and after each of these events if they were to
        happen.
        """
        course = [sum(self.bytes.values())]
        for event in events:
            course.append(
                course[-1] + (-self._block_bytes[~event] if event < 0 else self._block_bytes[event])
            )
        return course


class _Samples:
    """The columns of a timeline, as they grow."""

    def __init__(self, held: _Held) -> None:
        self.phases: list[Stretch] = []
        self.moments: list[Moment] = []
        self.allocated: list[int] = []
        self.reserved: list[int] = []
        self._by_category: list[dict[str, int]] = []
        self._held = held
        self._reserved_now = 0

    def pass_over(self, segment: Segment, reserved_changes: Mapping[int, int]) -> None:
        """Let a segment happen that is not shown."""
        self._held.pass_over(segment.events)
        for reserved in reserved_changes.values():
            self._reserved_now = reserved

    def add(
        self,
        segment: Segment,
        reserved_changes: Mapping[int, int],
        step: int,
        place: int,
        stretches: int,
    ) -> None:
        """Sample the segment at `place`, a phase of a step, at the extremes of so many stretches of
        it.
        """
        allocated = self._held.allocated_after(segment.events)
        kept = sorted(
            {0, *_extremes(allocated, stretches), *(index + 1 for index in reserved_changes)}
        )
        done = 0
        for count in kept:
            self._held.pass_over(segment.events[done:count])
            done = count
            self._reserved_now = reserved_changes.get(count - 1, self._reserved_now)
            self.moments.append((place, count))
            self.allocated.append(allocated[count])
            self.reserved.append(self._reserved_now)
            self._by_category.append(dict(self._held.bytes))
        self.phases.append(
            Stretch(step=step, phase=segment.phase, events=len(segment.events), samples=len(kept))
        )

    def by_category(self) -> dict[str, tuple[int, ...]]:
        """The bytes of each category that ever holds any."""
        names = [name for name in self._held.bytes if any(held[name] for held in self._by_category)]
        return {name: tuple(held[name] for held in self._by_category) for name in names}


def _extremes(course: Sequence[int], stretches: int) -> set[int]:
    """The places of the highest and the lowest value of each of so many stretches, and the last
    place.
    """
    size = -(-len(course) // stretches)
    kept = {len(course) - 1}
    for first in range(0, len(course), size):
        stretch = range(first, min(first + size, len(course)))
        kept |= {max(stretch, key=course.__getitem__), min(stretch, key=course.__getitem__)}
    return kept


def _largest(
    segments: list[Segment],
    steps: Sequence[range],
    allocations: Allocations,
    block_bytes: Mapping[int, int],
    moment: Moment,
) -> list[HeldBlock]:
    """The largest blocks in use when so many events of a segment are done, and where they come
    from.
    """
    place, count = moment
    numbers = nlargest(
        LARGEST, sorted(live_at(segments, (place, count - 1))), key=block_bytes.__getitem__
    )
    wanted = set(numbers)
    made = {
        event: place
        for place, segment in enumerate(segments)
        for event in segment.events
        if event in wanted
    }
    return [
        HeldBlock(
            block_bytes=block_bytes[number],
            requested_bytes=allocations.nbytes[number],
            category=allocations.categories[number],
            step=next(
                (count for count, places in enumerate(steps, start=1) if made[number] in places), 0
            ),
            phase=segments[made[number]].phase,
            **allocations.sources[number]._asdict(),
        )
        for number in numbers
    ]
