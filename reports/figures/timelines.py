"""The picture of a training step: what is held from event to event, stacked by category, under what
the allocator reserves.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby, pairwise

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ..arithmetic.courses import Band, Course, bands, phases_held, thinned
from ..arithmetic.findings import Findings
from ..arithmetic.labels import shortened
from ..arithmetic.peaks import in_stack_order
from ..phrases import course_text, fragmentation_text
from ..style import INK, LINE, MUTED, TRACK, block_colour
from ..tables.table import Cell, Table, bytes_cell, text_table
from ..units import Sized, gib
from ..words import category_name, phase_name
from .canvas import Canvas, Frame, text_width
from .curve import simplified, stairs
from .drawing import FOR_PAPER, Drawing, Style, render
from .peak_bars import VISIBLE
from .symbols import ORIGINS, Key, mark_style, shape_style

TITLE = "Memory along the training step"
# A page with more pictures, or a picture with more rows, is no longer looked at.
MOST_PICTURES, MOST_ROWS = 4, 8
LEFT, RIGHT = 0.36, 0.03
# Inches of a row's curve, and of the air below it.
HEIGHT, GAP = 1.15, 0.14
COLUMNS_PER_INCH = 26
SHORT = {"forward": "fwd", "backward": "bwd"}
# Inches that a curve may be off, a quarter of a screen's pixel.
TOLERANCE = 0.0025


def draw_timelines(findings: Findings, style: Style = FOR_PAPER) -> list[Drawing]:
    """A picture for each setting whose steps have timelines."""
    settings = list(dict.fromkeys(course.setting for course in findings.courses))
    drawings = []
    for number, setting in enumerate(settings[:MOST_PICTURES]):
        found = [course for course in findings.courses if course.setting == setting]
        title = f"{TITLE}: {findings.name_of(setting)}" if len(settings) > 1 else TITLE
        drawings.append(
            _draw(findings, style, found, title, f"timeline-{number + 1}" if number else "timeline")
        )
    return drawings


def _draw(
    findings: Findings, style: Style, found: Sequence[Course], title: str, name: str
) -> Drawing:
    shown = found[:MOST_ROWS]
    left_out = f"The picture shows {len(shown)} of {len(found)} optimizers; the table has all."
    highest = max(found, key=lambda course: course.timeline.peak_allocated)
    return render(
        lambda frame: _figure(findings, shown, frame, title),
        style,
        name=name,
        title=title,
        sentence=(
            "What is in use after each allocation and free, by what holds it, and what the"
            " allocator has reserved for it. Phases are drawn as wide as reads well: events have no"
            " duration here."
        ),
        alt="Stacked areas of memory along a training step. "
        + "; ".join(f"{course.label}: {course_text(course)}" for course in shown)
        + ".",
        table=_table(found),
        notes=(
            Sized.of(lambda units: fragmentation_text(highest, units)),
            *((left_out,) if len(shown) < len(found) else ()),
        ),
    )


def _figure(findings: Findings, shown: Sequence[Course], frame: Frame, title: str) -> Figure:
    wrapped = any(_heading_width(course, frame) > frame.width for course in shown)
    heading = (2.1 if wrapped else 1.2) * frame.line
    # A run that ended early has other phases than the others: then each row has names of its own.
    shapes = {
        tuple((stretch.step, stretch.phase) for stretch in course.timeline.phases)
        for course in shown
    }
    names = 2.2 * frame.line
    pitch = heading + HEIGHT + GAP + (names if len(shapes) > 1 else 0)
    body = len(shown) * pitch + (names if len(shapes) == 1 else 0)
    context = (
        findings.context
        if list(findings.names) == [shown[0].setting]
        else findings.name_of(shown[0].setting)
    )
    canvas = Canvas(
        frame, body=body, title=title, context=context, legend=_legend(shown), foot=ORIGINS
    )
    highest = max(gib(max(course.timeline.reserved)) for course in shown)
    for number, course in enumerate(shown):
        top = number * pitch
        _write_heading(canvas, findings, course, top, wrapped=wrapped)
        axes = canvas.axes(LEFT, frame.width - RIGHT, top + heading, top + heading + HEIGHT)
        _scale(axes, highest)
        _shade(axes, bands(course.timeline))
        _fill(axes, course, frame)
        if len(shapes) > 1 or course is shown[-1]:
            _name_phases(canvas, bands(course.timeline), top + heading + HEIGHT)
    canvas.text(0.02, body - GAP, "GiB", colour=MUTED, size=frame.small)
    return canvas.figure


def _legend(shown: Sequence[Course]) -> list[Key]:
    visible = {
        name
        for course in shown
        for name, held in course.timeline.categories.items()
        if max(held) >= VISIBLE * max(course.timeline.allocated)
    }
    names = in_stack_order(visible)
    blocks = [Key("block", category_name(name), block_colour(name)) for name in names]
    return [*blocks, Key("line", "reserved", INK), Key("v", "peak", INK)]


def _write_heading(
    canvas: Canvas, findings: Findings, course: Course, top: float, *, wrapped: bool
) -> None:
    frame, label = canvas.frame, course.label
    baseline = top + 0.8 * frame.line
    canvas.mark(
        0.07,
        baseline - 0.045,
        mark_style(findings.marks[label], course.record.origin, 0.75 * frame.size),
    )
    canvas.text(0.19, baseline, shortened(label), weight="bold")
    if wrapped:
        canvas.text(0.19, baseline + 0.93 * frame.line, course_text(course), size=frame.small)
    else:
        canvas.text(frame.width - RIGHT, baseline, course_text(course), align="right")


def _heading_width(course: Course, frame: Frame) -> float:
    return (
        0.6
        + text_width(shortened(course.label), frame.size, "bold")
        + text_width(course_text(course), frame.size)
    )


def _scale(axes: Axes, highest: float) -> None:
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.06 * highest)
    axes.set_xticks([])
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axes.set_axisbelow(True)
    axes.grid(axis="y", color=LINE.light, linewidth=0.6)


def _shade(axes: Axes, found: Sequence[Band]) -> None:
    """Every second phase a little darker, and a line where a step begins."""
    for band in found[1::2]:
        axes.axvspan(band.left, band.right, color=TRACK.light, linewidth=0, zorder=0)
    for before, band in pairwise(found):
        if before.stretch.step != band.stretch.step:
            axes.axvline(band.left, color=MUTED.light, linewidth=0.7, zorder=4)


def _fill(axes: Axes, course: Course, frame: Frame) -> None:
    timeline = course.timeline
    width = frame.width - LEFT - RIGHT
    points = thinned(timeline, round(COLUMNS_PER_INCH * width))
    places = [place for place, _ in points]
    unit = width / HEIGHT * axes.get_ylim()[1]

    def curve(held: Sequence[int]) -> list[tuple[float, float]]:
        corners = stairs(places, [gib(count) for count in held], 1 / (COLUMNS_PER_INCH * width))
        return simplified(corners, unit, TOLERANCE / width)

    tops, areas = [0] * len(points), []
    for name in in_stack_order(timeline.categories):
        tops = [
            top + timeline.categories[name][number]
            for top, (_, number) in zip(tops, points, strict=True)
        ]
        areas.append((name, tops))
    # The highest first: each area hides what the one above it has below.
    for name, tops in reversed(areas):
        axes.fill(
            *zip(*curve(tops), (1, 0), (0, 0), strict=True),
            color=block_colour(name).light,
            linewidth=0,
            zorder=2,
        )
    reserved = curve([timeline.reserved[number] for _, number in points])
    axes.plot(
        *zip(*reserved, strict=True),
        color=INK.light,
        linewidth=0.9,
        zorder=3,
        solid_joinstyle="miter",
    )
    peak = next(place for place, number in points if number == timeline.peak)
    style = shape_style("v", INK, filled=True, size=0.6 * frame.size)
    axes.plot(
        peak,
        gib(timeline.peak_allocated) + 0.035 * axes.get_ylim()[1],
        zorder=5,
        clip_on=False,
        **style,
    )


def _name_phases(canvas: Canvas, found: Sequence[Band], top: float) -> None:
    """The phases that have room for their name or a short one, and below them the training
    steps.
    """
    frame = canvas.frame
    width = frame.width - LEFT - RIGHT
    for band in found:
        name, room = phase_name(band.stretch.phase), width * (band.right - band.left) - 0.03
        names = [
            text for text in (name, SHORT.get(name, name)) if text_width(text, frame.small) < room
        ]
        if names:
            _centre(canvas, names[0], band.left, band.right, top + 0.85 * frame.line)
    for step, of_step in groupby(found, key=lambda band: band.stretch.step):
        members = list(of_step)
        _centre(
            canvas,
            f"training step {step}",
            members[0].left,
            members[-1].right,
            top + 1.8 * frame.line,
        )


def _centre(canvas: Canvas, text: str, left: float, right: float, baseline: float) -> None:
    frame = canvas.frame
    middle = LEFT + (frame.width - LEFT - RIGHT) * (left + right) / 2
    canvas.text(middle, baseline, text, colour=MUTED, size=frame.small, align="center")


def _table(found: Sequence[Course]) -> Table:
    head = (
        "optimizer",
        "training step",
        "phase",
        "events",
        "most allocated",
        "most reserved",
        "most reserved and not allocated",
    )
    return text_table(head, (row for course in found for row in _rows(course)))


def _rows(course: Course) -> Iterator[tuple[str | Cell, ...]]:
    for held in phases_held(course):
        stretch = held.stretch
        sizes = map(bytes_cell, (held.allocated, held.reserved, held.fragmentation))
        yield (
            course.label,
            str(stretch.step),
            phase_name(stretch.phase),
            f"{stretch.events:,}",
            *sizes,
        )
