"""The pictures of a training step: allocated bytes by category, under the reserved bytes."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TypedDict

from optprof.profiler.records.timeline import Stretch, Timeline

from ..arithmetic.courses import Course, bands, phases_held, thinned
from ..arithmetic.findings import Findings
from ..arithmetic.peaks import in_stack_order
from ..phrases import course_text, fragmentation_text
from ..style import block_colour
from ..tables.table import Cell, Table, bytes_cell, text_table
from ..units import Sized
from ..words import category_name, phase_name
from .bars import VISIBLE
from .peaks import category_keys
from .picture import ORIGINS, Areas, Key, Layer, Picture

TITLE = "Memory along the training step"
# The most pictures on a page and rows in a picture that a reader looks at.
MOST_PICTURES, MOST_ROWS = 4, 8
# More columns cannot be distinguished.
COLUMNS = 150


class Names(TypedDict):
    """The name, the title and the context of a picture of one setting."""

    name: str
    title: str
    context: str


def describe(findings: Findings) -> list[Picture]:
    """Return a picture for each setting whose steps have timelines."""
    return [
        picture_of(findings, courses, names)
        for courses, names in by_setting(findings, findings.courses, "timeline", TITLE)
    ]


def by_setting(
    findings: Findings, courses: Sequence[Course], name: str, title: str
) -> list[tuple[list[Course], Names]]:
    """Return the courses of each setting that has a picture, with its name, title and context."""
    settings = list(dict.fromkeys(course.setting for course in courses))
    groups = []
    for number, setting in enumerate(settings[:MOST_PICTURES], 1):
        setting_name = findings.name_of(setting)
        names = Names(
            name=f"{name}-{number}" if number > 1 else name,
            title=f"{title}: {setting_name}" if len(settings) > 1 else title,
            context=findings.context if list(findings.names) == [setting] else setting_name,
        )
        groups.append(([course for course in courses if course.setting == setting], names))
    return groups


def few_note(shown: Sequence[Course], courses: Sequence[Course]) -> tuple[str, ...]:
    """Return a sentence on the optimizers that a picture has no room for, if there are any."""
    if len(shown) == len(courses):
        return ()
    return (f"The picture shows {len(shown)} of {len(courses)} optimizers; the table has all.",)


def picture_of(findings: Findings, courses: Sequence[Course], names: Names) -> Picture:
    """Return the picture of these courses, on one scale."""
    shown = courses[:MOST_ROWS]
    most = max(max(course.timeline.reserved) for course in shown)
    highest = max(courses, key=lambda course: course.timeline.peak_allocated)
    return Picture(
        **names,
        sentence=(
            "What is in use after each allocation and free, by what holds it, and what the"
            " allocator has reserved for it. Phases are drawn as wide as reads well: events have no"
            " duration here."
        ),
        table=_table(courses),
        panels=tuple(_areas(course, most) for course in shown),
        marks=findings.marks,
        notes=(
            Sized.of(lambda units: fragmentation_text(highest, units)),
            *few_note(shown, courses),
        ),
        keys=(*_keys(shown), *ORIGINS),
    )


def _keys(courses: Sequence[Course]) -> list[Key]:
    visible = {
        name
        for course in courses
        for name, counts in course.timeline.categories.items()
        if max(counts) >= VISIBLE * max(course.timeline.allocated)
    }
    lines = [Key("stroke", "reserved", "@ink"), Key("peak", "the peak", "@ink")]
    return category_keys(in_stack_order(visible)) + lines


def _areas(course: Course, most: int) -> Areas:
    timeline = course.timeline
    points = thinned(timeline, COLUMNS)
    corners = stairs(points)
    numbers = [number for _, number in corners]
    peak = next(place for place, number in points if number == timeline.peak)
    stretches = [band.stretch for band in bands(timeline) for _ in band.samples]
    return Areas(
        label=course.label,
        origin=course.record.origin,
        value=Sized.of(lambda units: course_text(course, units)),
        alt=f"{course.label}: {course_text(course)}",
        bands=bands(timeline),
        places=[round(place, 4) for place, _ in corners],
        layers=[
            Layer(
                name=category_name(name),
                colour=block_colour(name).light,
                values=[timeline.categories[name][number] for number in numbers],
            )
            for name in in_stack_order(timeline.categories)
        ],
        reserved=[timeline.reserved[number] for number in numbers],
        events=[timeline.places[number] for number in numbers],
        words=[_event(timeline, stretches[number], number) for number in numbers],
        peak=(round(peak, 4), timeline.peak_allocated),
        most=most,
    )


def _event(timeline: Timeline, stretch: Stretch, number: int) -> str:
    """Return the phase of a sample, and the block that its event allocates or frees."""
    phase = f"{phase_name(stretch.phase)}, training step {stretch.step}"
    source = timeline.source_at(number)
    if source is None:
        return phase
    verb = "frees" if timeline.events[number] < 0 else "allocates"
    module = " · ".join(filter(None, (source.module, source.module_class)))
    request = " · ".join(filter(None, (source.op, source.line)))
    block = f"{verb} {category_name(source.category)}"
    return "\n".join(filter(None, (phase, block, module, request)))


def stairs(points: Sequence[tuple[float, int]]) -> list[tuple[float, int]]:
    """Return places and samples of a curve that keeps each value until the next.

    Over less than a column it is a straight line.
    """
    corners = list(points[:1])
    for (last, number), (place, after) in pairwise(points):
        corners += [(place, number)] if place - last > 1 / COLUMNS else []
        corners.append((place, after))
    return [*corners, (1.0, points[-1][1])]


def _table(courses: Sequence[Course]) -> Table:
    head = (
        *("optimizer", "training step", "phase", "events", "most allocated", "most reserved"),
        "most reserved and not allocated",
    )
    return text_table(head, (row for course in courses for row in _rows(course)))


def _rows(course: Course) -> Iterator[tuple[str | Cell, ...]]:
    for phase in phases_held(course):
        yield (
            course.label,
            str(phase.stretch.step),
            phase_name(phase.stretch.phase),
            f"{phase.stretch.events:,}",
            *map(bytes_cell, (phase.allocated, phase.reserved, phase.fragmentation)),
        )
