"""The SGD-SaI paper's figure redrawn: what its authors published beside what this run found, on the
same axes and in numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from optprof.profiler.records.record import Record

from ..arithmetic.reproduction import (
    Reproduced,
    published,
    reproduced_times,
    reproduction,
    residuals,
)
from ..style import INK, LINE, MUTED, Mark, marks
from ..tables.overview import reproduction_table
from ..units import NOTHING, gib
from .canvas import Canvas, Frame, text_width
from .drawing import FOR_PAPER, Drawing, Style, render
from .symbols import Key, mark_style

NAME = "sgd-sai-4"
TITLE = "State and step of four optimizers, published and ours"
CONTEXT = "fp32 · A100 80 GB · “No More Adam”, arXiv 2412.11768"
LEFT, GUTTER, RIGHT, HEIGHT = 0.42, 0.12, 0.1, 1.35


@dataclass(frozen=True, kw_only=True)
class _Dot:
    """A mark of either side: parameters and the value in the panel's unit."""

    optimizer: str
    parameters: float
    value: float
    origin: str


@dataclass(frozen=True, kw_only=True)
class _Row:
    """Two panels that share their axes: what was published, and ours."""

    unit: str
    theirs: Sequence[_Dot]
    ours: Sequence[_Dot]


def draw_published(records: Sequence[Record], style: Style = FOR_PAPER) -> Drawing | None:
    """The picture, or None where the run has no state that was published too."""
    rows = reproduction(records)
    if not rows:
        return None
    panels = [_states(rows), *_times(records)]
    return render(
        lambda frame: _figure(rows, panels, frame),
        style,
        name=NAME,
        title=TITLE,
        sentence=(
            "The memory and speed figure of the SGD-SaI paper on its left, the same optimizers and"
            " models from this run on its right."
        ),
        alt=f"Optimizer state against model size, published and ours. {residuals(rows)}",
        table=reproduction_table(rows),
        notes=(residuals(rows),),
    )


def _states(rows: Sequence[Reproduced]) -> _Row:
    sizes = {row.published.model: float(row.record.parameter_count or 0) for row in rows}
    theirs = [
        _Dot(
            optimizer=row.optimizer,
            parameters=sizes.get(row.model, row.parameters),
            value=row.state_gib,
            origin="estimated" if row.extrapolated else "measured",
        )
        for row in published()
    ]
    ours = [
        _Dot(
            optimizer=row.published.optimizer,
            parameters=float(row.record.parameter_count or 0),
            value=gib(row.allocated_bytes),
            origin=row.record.origin,
        )
        for row in rows
    ]
    return _Row(unit="state, GiB", theirs=theirs, ours=ours)


def _times(records: Sequence[Record]) -> list[_Row]:
    """The panels of step times, none where the run estimates none for the figure's GPU."""
    found = {
        (row.model, row.optimizer): (row, record)
        for row, record in reversed(reproduced_times(records))
    }
    ours = [
        _Dot(
            optimizer=row.optimizer,
            parameters=float(record.parameter_count or 0),
            value=1e3 * record.estimate.seconds,
            origin="estimated",
        )
        for row, record in found.values()
        if record.estimate
    ]
    if not ours:
        return []
    theirs = [
        _Dot(
            optimizer=row.optimizer,
            parameters=row.parameters,
            value=1e3 * row.step_seconds,
            origin="estimated" if row.extrapolated else "measured",
        )
        for row in published()
    ]
    return [_Row(unit="step, ms", theirs=theirs, ours=ours)]


def _figure(rows: Sequence[Reproduced], panels: Sequence[_Row], frame: Frame) -> Figure:
    chosen = marks(row.optimizer for row in published())
    named = {row.optimizer: chosen[row.optimizer] for row in published()}
    pitch = HEIGHT + 2.2 * frame.line
    numbers = _numbers(rows)
    body = 1.2 * frame.line + len(panels) * pitch + (len(numbers) + 2.2) * 1.15 * frame.line
    legend = [Key(mark.shape, name, mark.colour) for name, mark in named.items()]
    foot = (Key("o", "measured"), Key("o", "simulated, estimated or extrapolated", filled=False))
    canvas = Canvas(frame, body=body, title=TITLE, context=CONTEXT, legend=legend, foot=foot)
    middle = (LEFT + frame.width - RIGHT) / 2
    for place, side in ((LEFT, "published"), (middle + GUTTER / 2, "ours")):
        canvas.text(place, 0.7 * frame.line, side, weight="bold")
    for number, row in enumerate(panels):
        top = 1.2 * frame.line + number * pitch
        canvas.text(
            0.12,
            top + HEIGHT / 2,
            row.unit,
            colour=MUTED,
            size=frame.small,
            align="center",
            turn=90,
        )
        left = canvas.axes(LEFT, middle - GUTTER / 2, top, top + HEIGHT)
        right = canvas.axes(middle + GUTTER / 2, frame.width - RIGHT, top, top + HEIGHT)
        for axes, dots in ((left, row.theirs), (right, row.ours)):
            _scale(axes, [*row.theirs, *row.ours])
            _draw(axes, dots, named, frame)
        right.set_yticklabels([])
    _write_numbers(canvas, numbers, named, 1.2 * frame.line + len(panels) * pitch)
    return canvas.figure


def _scale(axes: Axes, dots: Sequence[_Dot]) -> None:
    """The same logarithmic axes for both sides."""
    for axis, values, limits in (
        (axes.xaxis, [dot.parameters for dot in dots], axes.set_xlim),
        (axes.yaxis, [dot.value for dot in dots], axes.set_ylim),
    ):
        axis._set_axes_scale("log")  # pyright: ignore[reportAttributeAccessIssue]
        limits(min(values) / 1.8, max(values) * 1.8)
        axis.set_major_locator(LogLocator(numticks=20))
        axis.set_minor_locator(NullLocator())
        axis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(
        FuncFormatter(
            lambda value, _: f"{value / 1e9:g} B" if value >= 1e9 else f"{value / 1e6:g} M"
        )
    )
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axes.set_axisbelow(True)
    axes.grid(color=LINE.light, linewidth=0.6)


def _draw(axes: Axes, dots: Sequence[_Dot], named: dict[str, Mark], frame: Frame) -> None:
    """A line for each optimizer, and of optimizers that coincide the later marks smaller, so that
    all show.
    """
    for lane, name in enumerate(named):
        ordered = sorted(
            (dot for dot in dots if dot.optimizer == name), key=lambda dot: dot.parameters
        )
        colour = named[name].colour.light
        axes.plot(
            [dot.parameters for dot in ordered],
            [dot.value for dot in ordered],
            color=colour,
            linewidth=1.1,
            zorder=2,
        )
        for dot in ordered:
            style = mark_style(named[name], dot.origin, (0.95 - 0.13 * lane) * frame.size)
            axes.plot(dot.parameters, dot.value, zorder=3 + lane, **style)


def _numbers(rows: Sequence[Reproduced]) -> dict[str, dict[str, str]]:
    """Theirs and ours in GiB, by optimizer and model."""
    found: dict[str, dict[str, str]] = {}
    for row in published():
        ours = next(
            (reproduced.allocated_bytes for reproduced in rows if reproduced.published is row), None
        )
        theirs = f"{row.state_gib:.2f}" + ("*" if row.extrapolated else "")
        text = f"{theirs} | {NOTHING if ours is None else f'{gib(ours):.2f}'}"
        found.setdefault(row.optimizer, {})[row.model] = text
    return found


def _write_numbers(
    canvas: Canvas, numbers: dict[str, dict[str, str]], named: dict[str, Mark], top: float
) -> None:
    """A line an optimizer, a column a model: published | ours."""
    frame, pitch = canvas.frame, 1.15 * canvas.frame.line
    models = list(next(iter(numbers.values())))
    first = 0.2 + max(text_width(name, frame.small) for name in numbers)
    ends = [
        first + (frame.width - 0.02 - first) * (number + 1) / len(models)
        for number in range(len(models))
    ]
    canvas.text(0.02, top + 0.8 * pitch, "GiB", colour=MUTED, size=frame.small)
    for end, model in zip(ends, models, strict=True):
        canvas.text(end, top + 0.8 * pitch, model, colour=MUTED, size=frame.small, align="right")
    for number, (name, cells) in enumerate(numbers.items(), 1):
        y = top + (number + 0.8) * pitch
        canvas.mark(0.07, y - 0.035, mark_style(named[name], "measured", 0.7 * frame.size))
        canvas.text(0.16, y, name, size=frame.small)
        for end, model in zip(ends, models, strict=True):
            canvas.text(end, y, cells[model], colour=INK, size=0.92 * frame.small, align="right")
    y = top + (len(numbers) + 1.7) * pitch
    canvas.text(
        0.02, y, "published | ours; * extrapolated by its authors", colour=MUTED, size=frame.small
    )
