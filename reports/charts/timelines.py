"""Timelines: what a training step holds from event to event as stacked areas, one graph an
optimizer, all in one scale.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from ..arithmetic.courses import Band, Course, bands, thinned
from ..arithmetic.findings import Findings
from ..arithmetic.peaks import in_stack_order
from ..phrases import course_text
from ..style import block_colour
from ..units import Sized
from ..words import category_name, phase_name
from .bars import VISIBLE
from .chart import BlockKey, Chart, Graph, Heading, text

# More graphs under one another are no longer compared; more columns are no longer told apart.
MOST_GRAPHS, COLUMNS = 8, 150
SHORT = {"forward": "fwd", "backward": "bwd", "zero grad": "zero"}


def timeline_chart(findings: Findings, chart: Chart) -> Chart:
    """The courses of one setting, under what each reserves."""
    settings = list(dict.fromkeys(course.setting for course in findings.courses))
    setting = settings[int(chart.name.removeprefix(chart.kind).lstrip("-") or 1) - 1]
    found = [course for course in findings.courses if course.setting == setting][:MOST_GRAPHS]
    highest = max(max(course.timeline.reserved) for course in found)
    visible = {
        name
        for course in found
        for name, held in course.timeline.categories.items()
        if max(held) >= VISIBLE * max(course.timeline.allocated)
    }
    keys = [
        BlockKey(colour=block_colour(name).light, text=category_name(name))
        for name in in_stack_order(visible)
    ]
    keys.append(BlockKey(colour="var(--ink)", text="line: reserved; triangle: the peak"))
    return replace(
        chart, graphs=tuple(_graph(course, highest) for course in found), block_keys=tuple(keys)
    )


def _graph(course: Course, highest: int) -> Graph:
    points = thinned(course.timeline, COLUMNS)
    places, numbers = _stairs(points)
    areas = [
        _area(course, name, places, numbers) for name in in_stack_order(course.timeline.categories)
    ]
    return Graph(
        alt=f"{course.label}: {course_text(course)}",
        traces=[*areas, _reserved(course, places, numbers), _peak(course, points)],
        layout={
            "xaxis": {
                "range": [0, 1],
                "showgrid": False,
                "unifiedhovertitle": {"text": "held at this event"},
            },
            "yaxis": {
                "range": {"bytes": [0, 1.08 * highest]},
                "title": {"text": {"binary": "GiB", "decimal": "GB"}},
                "nticks": 5,
                "tickformat": ",~r",
            },
            "hovermode": "x unified",
        },
        height=230,
        heading=Heading(
            text=course.label,
            origin=course.record.origin,
            value=Sized.of(lambda units: course_text(course, units)),
        ),
        bands=[_band(band) for band in bands(course.timeline)],
    )


def _stairs(points: Sequence[tuple[float, int]]) -> tuple[list[float], list[int]]:
    """Places and samples of a curve that keeps each value until the next; over less than a column a
    straight line does.
    """
    corners = list(points[:1])
    for (before, held), (place, number) in pairwise(points):
        corners += [(place, held)] if place - before > 1 / COLUMNS else []
        corners.append((place, number))
    return [round(place, 4) for place, _ in corners], [number for _, number in corners]


def _band(band: Band) -> dict[str, Any]:
    name = text(phase_name(band.stretch.phase))
    return {
        "left": band.left,
        "right": band.right,
        "name": name,
        "short": SHORT.get(name, name),
        "step": band.stretch.step,
    }


def _area(
    course: Course, name: str, places: Sequence[float], numbers: Sequence[int]
) -> dict[str, Any]:
    colour, held = block_colour(name).light, course.timeline.categories[name]
    return {
        "mode": "lines",
        "stackgroup": "held",
        "x": places,
        "y": {"bytes": [held[number] for number in numbers]},
        "line": {"width": 0},
        "fillcolor": colour,
        "hovertemplate": _template(text(category_name(name))),
    }


def _reserved(course: Course, places: Sequence[float], numbers: Sequence[int]) -> dict[str, Any]:
    return {
        "mode": "lines",
        "x": places,
        "y": {"bytes": [course.timeline.reserved[number] for number in numbers]},
        "line": {"width": 1.3, "color": "@ink"},
        "hovertemplate": _template("reserved"),
    }


def _peak(course: Course, points: Sequence[tuple[float, int]]) -> dict[str, Any]:
    timeline = course.timeline
    place = next(place for place, number in points if number == timeline.peak)
    return {
        "mode": "markers",
        "x": [round(place, 4)],
        "y": {"bytes": [timeline.peak_allocated]},
        "marker": {"symbol": "triangle-down", "size": 9, "color": "@ink"},
        "hovertemplate": _template("allocated at the peak"),
        "cliponaxis": False,
    }


def _template(name: str) -> dict[str, str]:
    """The words beside a value under the pointer; `name` is escaped."""
    return {
        unit: f"{name} %{{y:,.3f}} {giga}<extra></extra>"
        for unit, giga in (("binary", "GiB"), ("decimal", "GB"))
    }
