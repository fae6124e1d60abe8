"""The pictures of a training step: allocated bytes by category, under the reserved bytes."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

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


def describe(findings: Findings) -> list[Picture]:
    """Return a picture for each setting whose steps have timelines."""
    settings = list(dict.fromkeys(course.setting for course in findings.courses))
    pictures = []
    for number, setting in enumerate(settings[:MOST_PICTURES], 1):
        courses = [course for course in findings.courses if course.setting == setting]
        setting_name = findings.name_of(setting)
        pictures.append(
            _picture(
                findings,
                courses,
                name=f"timeline-{number}" if number > 1 else "timeline",
                title=f"{TITLE}: {setting_name}" if len(settings) > 1 else TITLE,
                context=findings.context if list(findings.names) == [setting] else setting_name,
            )
        )
    return pictures


def _picture(
    findings: Findings, courses: Sequence[Course], *, name: str, title: str, context: str
) -> Picture:
    shown = courses[:MOST_ROWS]
    most = max(max(course.timeline.reserved) for course in shown)
    highest = max(courses, key=lambda course: course.timeline.peak_allocated)
    few = f"The picture shows {len(shown)} of {len(courses)} optimizers; the table has all."
    return Picture(
        name=name,
        title=title,
        context=context,
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
            *((few,) if len(shown) < len(courses) else ()),
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
        peak=(round(peak, 4), timeline.peak_allocated),
        most=most,
    )


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
