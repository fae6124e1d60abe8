"""Courses: what each optimizer's training steps hold from event to event, laid out along a step and
thinned to a picture's columns.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from optprof.profiler.records.record import Record
from optprof.profiler.records.store import file_name
from optprof.profiler.records.timeline import Stretch, Timeline

from .entries import Entry, Setting, question
from .labels import OptimizerKey, optimizer_key

# Events have no duration: a phase is as wide as reads well, the same for every optimizer.
WIDTHS = {"forward": 3.0, "backward": 3.0, "step": 3.0, "clip": 1.0, "zero_grad": 0.6}


@dataclass(frozen=True, kw_only=True)
class Course:
    """A record under its label, and its timeline; that of a device that ran out of memory ends
    where it did.
    """

    label: str
    record: Record
    timeline: Timeline

    @property
    def setting(self) -> Setting:
        """The setting that it is a course of."""
        return Setting.of(self.record.scenario, self.record.memory)


@dataclass(frozen=True, kw_only=True)
class Band:
    """A phase's place along a picture, from `left` to `right` of 0 to 1, and the numbers of its
    samples.
    """

    stretch: Stretch
    left: float
    right: float
    samples: range


@dataclass(frozen=True, kw_only=True)
class PhaseHeld:
    """The most that a phase of a step held, in exact bytes; `fragmentation` is what was reserved
    and not allocated.
    """

    course: Course
    stretch: Stretch
    allocated: int
    reserved: int
    fragmentation: int


def courses(
    entries: Sequence[Entry],
    records: Sequence[Record],
    labels: Mapping[OptimizerKey, str],
    timelines: Mapping[str, Timeline],
) -> list[Course]:
    """A course for each entry, and for each record that ran out of memory, that has a timeline
    under the name of a scenario's files.

    An entry whose bytes were measured has the timeline of the simulation that asked the same.
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
    found = [
        (entry.label, simulated[question(entry.bytes_from)])
        for entry in entries
        if entry.bytes_from and question(entry.bytes_from) in simulated
    ]
    found += [
        (labels[optimizer_key(record.scenario)], (record, timeline))
        for record, timeline in traced
        if record.outcome == "out-of-memory"
    ]
    return [
        Course(label=label, record=record, timeline=timeline) for label, (record, timeline) in found
    ]


def bands(timeline: Timeline) -> list[Band]:
    """The phases side by side."""
    widths = [WIDTHS.get(stretch.phase, 1.0) for stretch in timeline.phases]
    edges = [edge / sum(widths) for edge in accumulate(widths, initial=0.0)]
    ends = list(accumulate((stretch.samples for stretch in timeline.phases), initial=0))
    return [
        Band(stretch=stretch, left=left, right=right, samples=range(first, last))
        for stretch, (left, right), (first, last) in zip(
            timeline.phases, pairwise(edges), pairwise(ends), strict=True
        )
    ]


def thinned(timeline: Timeline, columns: int) -> list[tuple[float, int]]:
    """Samples and their places of 0 to 1: the highest and the lowest of each of so many columns,
    and the last of each phase.
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


def phases_held(course: Course) -> list[PhaseHeld]:
    """The most that each phase held."""
    timeline = course.timeline
    fragmentation = timeline.fragmentation
    return [
        PhaseHeld(
            course=course,
            stretch=band.stretch,
            allocated=max(timeline.allocated[number] for number in band.samples),
            reserved=max(timeline.reserved[number] for number in band.samples),
            fragmentation=max(fragmentation[number] for number in band.samples),
        )
        for band in bands(timeline)
        if band.samples
    ]


def _place(timeline: Timeline, band: Band, number: int) -> float:
    """Where a sample stands, from 0 to 1."""
    return band.left + (band.right - band.left) * timeline.places[number] / max(
        band.stretch.events, 1
    )
