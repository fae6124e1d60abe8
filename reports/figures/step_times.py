"""The picture of step times: every sample, the quartiles and the median of each optimizer's
step.
"""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from ..arithmetic.findings import Findings, pictured
from ..arithmetic.times import Spread, Timing, at_even_ranks, thinning_notes
from ..phrases import step_text
from ..style import INK, TRACK
from ..units import time_unit
from .canvas import Frame
from .drawing import FOR_PAPER, Drawing, Style, render
from .rows import BAR, Place, Row, RowChart, linear_scale
from .symbols import Key, mark_style
from .timing_rows import axis_text, spoken, timing_row, timing_table

TITLE = "Time of the optimizer's step"
# Beyond this ratio a linear axis would press the fast ones together.
LOG_FROM = 10


def draw_steps(findings: Findings, style: Style = FOR_PAPER) -> Drawing | None:
    """The picture, or None where no step was timed."""
    timings, notes = pictured(findings.timings, findings.setting_of)
    if not timings:
        return None
    return render(
        lambda frame: _figure(findings, timings, frame),
        style,
        name="step-time",
        title=TITLE,
        sentence=(
            "How long one optimizer step takes: every sample as a mark, the quartiles as a band,"
            " the median as a line."
        ),
        alt="Samples of step time. "
        + "; ".join(spoken(findings, timing, step_text(timing)) for timing in timings)
        + ".",
        table=timing_table(findings, findings.timings),
        notes=(*notes, *thinning_notes([timing.step.samples for timing in timings])),
    )


def _figure(findings: Findings, timings: Sequence[Timing], frame: Frame) -> Figure:
    steps = [timing.step for timing in timings]
    smallest, largest = min(step.smallest for step in steps), max(step.largest for step in steps)
    unit, name = time_unit(largest)
    rows = [timing_row(findings, timing, step_text(timing)) for timing in timings]
    chart = RowChart(
        frame,
        rows,
        title=TITLE,
        context=findings.context,
        grouped=len(findings.names) > 1,
        axis=axis_text(name, timings),
        scale=lambda axes, _: _scale(axes, smallest / unit, largest / unit),
        legend=(Key("tick", "median", INK), Key("outline", "quartiles"), Key("o", "one sample")),
    )
    for row, step, place in zip(rows, steps, chart.places, strict=True):
        _draw(place, row, step, unit)
    return chart.canvas.figure


def _draw(place: Place, row: Row, step: Spread, unit: float) -> None:
    frame, axes, y = place.frame, place.axes, place.y
    axes.plot(axes.get_xlim(), (y, y), color=TRACK.light, linewidth=1.2, zorder=0)
    axes.barh(
        y,
        (step.upper - step.lower) / unit,
        BAR,
        step.lower / unit,
        color=row.mark.colour.light,
        alpha=0.3,
    )
    style = mark_style(row.mark, row.origin, 0.5 * frame.size)
    samples = at_even_ranks(step.samples)
    axes.plot([sample / unit for sample in samples], [y] * len(samples), clip_on=False, **style)
    median = step.median / unit
    axes.plot(
        (median, median),
        (y - 0.6 * BAR, y + 0.6 * BAR),
        color=INK.light,
        linewidth=0.17 * frame.size,
    )


def _scale(axes: Axes, smallest: float, largest: float) -> None:
    """A linear axis from zero, or a logarithmic one where the times are far apart."""
    if largest <= LOG_FROM * smallest:
        linear_scale(axes, largest)
        return
    axes.set_xscale("log")
    axes.set_xlim(smallest / 1.3, largest * 1.15)
    # Ticks at 2 and 5 would crowd four decades.
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if largest < 300 * smallest else (1,)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.xaxis.set_minor_locator(NullLocator())
