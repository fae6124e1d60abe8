"""Courses: the bytes of each optimizer's training steps from event to event.

They are laid out along a step and thinned to a picture's columns.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from optprof.profiler.records.record import Record
from optprof.profiler.records.store import file_name
from optprof.profiler.records.timeline import Stretch, Timeline

from .entries import Entry, Setting, question
from .labels import OptimizerKey, optimizer_key

# Events have no duration. Phases get widths that read well, the same for every optimizer.
WIDTHS = {"forward": 3.0, "backward": 3.0, "step": 3.0, "clip": 1.0, "zero_grad": 0.6}


@dataclass(frozen=True, kw_only=True)
class Course:
    """A record with its label and timeline, which ends early if the device ran out of memory."""

    label: str
    record: Record
    timeline: Timeline

    @property
    def setting(self) -> Setting:
        """The setting of the record."""
        return Setting.of(self.record.scenario, self.record.memory)


@dataclass(frozen=True, kw_only=True)
class Band:
    """A phase with its place along a picture and its highest bytes.

    The phase reaches from `left` to `right`, between 0 and 1. `samples` are the numbers of its
    samples. `fragmentation` is the most that was reserved and not allocated.
    """

    stretch: Stretch
    left: float
    right: float
    samples: range
    allocated: int
    reserved: int
    fragmentation: int


def courses(
    entries: Sequence[Entry],
    records: Sequence[Record],
    labels: Mapping[OptimizerKey, str],
    timelines: Mapping[str, Timeline],
) -> list[Course]:
    """Return a course for each entry, and for each record that ran out of memory, with a timeline.

    Timelines are looked up by the file names of scenarios. An entry whose bytes were measured gets
    the timeline of a simulation of the same question.
    """
    if not timelines:
        return []
    traced = [
        (record, timelines[name])
        for record in records
        if (name := file_name(record.scenario)) in timelines
    ]
    simulated = {
        question(record): (record, timeline)
        for record, timeline in reversed(traced)
        if record.outcome == "ok"
    }
    labelled = [
        (entry.label, simulated[question(entry.bytes_from)])
        for entry in entries
        if entry.bytes_from and question(entry.bytes_from) in simulated
    ]
    labelled += [
        (labels[optimizer_key(record.scenario)], (record, timeline))
        for record, timeline in traced
        if record.outcome == "out-of-memory"
    ]
    return [
        Course(label=label, record=record, timeline=timeline)
        for label, (record, timeline) in labelled
    ]


def bands(timeline: Timeline) -> list[Band]:
    """Lay the phases side by side."""
    widths = [WIDTHS.get(stretch.phase, 1.0) for stretch in timeline.phases]
    edges = [edge / sum(widths) for edge in accumulate(widths, initial=0.0)]
    ends = accumulate((stretch.samples for stretch in timeline.phases), initial=0)
    fragmentation = timeline.fragmentation
    return [
        Band(
            stretch=stretch,
            left=left,
            right=right,
            samples=range(first, last),
            allocated=max(timeline.allocated[first:last], default=0),
            reserved=max(timeline.reserved[first:last], default=0),
            fragmentation=max(fragmentation[first:last], default=0),
        )
        for stretch, (left, right), (first, last) in zip(
            timeline.phases, pairwise(edges), pairwise(ends), strict=True
        )
    ]


def thinned(timeline: Timeline, columns: int) -> list[tuple[float, int]]:
    """Return the places, from 0 to 1, and the numbers of the samples that a picture shows.

    These are the highest and the lowest sample of each column, and the last one of each phase.
    """
    points = []
    for band in bands(timeline):
        groups: dict[int, list[int]] = {}
        for number in band.samples:
            groups.setdefault(int(_place(timeline, band, number) * columns), []).append(number)
        kept = {band.samples[-1]} if band.samples else set()
        for group in groups.values():
            kept |= {
                max(group, key=timeline.allocated.__getitem__),
                min(group, key=timeline.allocated.__getitem__),
            }
        points += [(_place(timeline, band, number), number) for number in sorted(kept)]
    return points


def phases_held(course: Course) -> list[Band]:
    """Return the phases that have samples."""
    return [band for band in bands(course.timeline) if band.samples]


def _place(timeline: Timeline, band: Band, number: int) -> float:
    """Return the place of a sample, from 0 to 1."""
    return band.left + (band.right - band.left) * timeline.places[number] / max(
        band.stretch.events, 1
    )
