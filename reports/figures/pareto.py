"""The picture of time against memory: every optimizer as a point, and the front of those that no
other one beats in both.
"""

from collections.abc import Sequence
from itertools import pairwise

from matplotlib.figure import Figure

from ..arithmetic.findings import Findings
from ..arithmetic.pareto import Tradeoff
from ..tables.table import Table, bytes_cell, text_table
from ..units import bytes_text, gib, range_text, seconds_text, time_unit
from ..words import DEVICES
from .canvas import Canvas, Frame
from .drawing import FOR_PAPER, Drawing, Style, render
from .scatter import Dot, dot_keys, draw_scatter, scatter_body
from .symbols import ORIGINS, Key

TITLE = "Time against memory"
# A page with more pictures is no longer looked at.
MOST_PICTURES = 4
# More points only cover each other, and their names fill the page.
MOST_POINTS = 64


def draw_pareto(findings: Findings, style: Style = FOR_PAPER) -> list[Drawing]:
    """A picture for each setting and clock with two optimizers or more."""
    groups: dict[tuple[str, str], list[Tradeoff]] = {}
    for point in findings.tradeoffs:
        groups.setdefault((findings.names[point.entry.setting], point.clock), []).append(point)
    shown = [(name, clock, group) for (name, clock), group in groups.items() if len(group) > 1][
        :MOST_PICTURES
    ]
    return [
        _draw(
            findings,
            style,
            group,
            name if len(shown) > 1 else "",
            clock,
            f"pareto-{number}" if number > 1 else "pareto",
        )
        for number, (name, clock, group) in enumerate(shown, 1)
    ]


def _draw(
    findings: Findings, style: Style, group: Sequence[Tradeoff], setting: str, clock: str, name: str
) -> Drawing:
    title = f"{TITLE}: {setting}" if setting else TITLE
    best = [point.entry.label for point in group if point.on_front]
    shown = group[:MOST_POINTS]
    left_out = f"The picture shows {len(shown)} of {len(group)} points; the table has all."
    return render(
        lambda frame: _figure(findings, shown, frame, title, clock),
        style,
        name=name,
        title=title,
        sentence=(
            f"The optimizer's step {_where(clock)} against {_memory(group)}: left and below is"
            " better, and no other beats in both what lies on the broken line."
        ),
        alt=f"Time against memory. On the front: {', '.join(best)}. "
        + "; ".join(map(_spoken, shown))
        + ".",
        table=_table(group),
        notes=(left_out,) if len(shown) < len(group) else (),
    )


def _figure(
    findings: Findings, group: Sequence[Tradeoff], frame: Frame, title: str, clock: str
) -> Figure:
    unit, name = time_unit(max(point.upper or point.seconds for point in group))
    dots = [
        Dot(
            label=point.entry.label,
            mark=findings.marks[point.entry.label],
            origin=point.shown_origin,
            x=point.seconds / unit,
            y=gib(point.bytes),
            low=point.lower and point.lower / unit,
            high=point.upper and point.upper / unit,
        )
        for point in group
    ]
    context = (
        findings.context if len(findings.names) == 1 else findings.name_of(group[0].entry.setting)
    )
    intervals = [Key("line", "95 % interval of the median")] if any(dot.low for dot in dots) else []
    canvas = Canvas(
        frame,
        body=scatter_body(frame),
        title=title,
        context=context,
        legend=dot_keys(dots),
        foot=[*ORIGINS, *intervals],
    )
    draw_scatter(
        canvas,
        dots,
        _stairs(dots, group),
        across=f"{name}, the step {_where(clock)}",
        up=f"GiB, {_memory(group)}",
    )
    return canvas.figure


def _stairs(dots: Sequence[Dot], group: Sequence[Tradeoff]) -> list[tuple[float, float]]:
    """The corners of the front: from each of its points right to the next one's time, then down to
    it.
    """
    best = sorted(
        {(dot.x, dot.y) for dot, point in zip(dots, group, strict=True) if point.on_front}
    )
    return [
        *(corner for (x, y), (after, _) in pairwise(best) for corner in ((x, y), (after, y))),
        *best[-1:],
    ]


def _where(clock: str) -> str:
    return f"on {DEVICES[clock]}" if clock in DEVICES else f"estimated for {clock}"


def _memory(group: Sequence[Tradeoff]) -> str:
    return "the peak of training" if group[0].is_peak else "the optimizer's state"


def _spoken(point: Tradeoff) -> str:
    return f"{point.entry.label}: {seconds_text(point.seconds)}, {bytes_text(point.bytes)}"


def _table(group: Sequence[Tradeoff]) -> Table:
    rows = [
        (
            point.entry.label,
            seconds_text(point.seconds),
            (
                ""
                if point.lower is None or point.upper is None
                else range_text(point.lower, point.upper)
            ),
            bytes_cell(point.bytes),
            "yes" if point.on_front else "no",
            point.origin,
            point.entry.origin,
        )
        for point in group
    ]
    head = (
        "optimizer",
        "step, median",
        "95 % interval",
        _memory(group),
        "on the front",
        "origin of the time",
        "origin of the bytes",
    )
    return text_table(head, rows)
