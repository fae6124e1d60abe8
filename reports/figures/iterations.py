"""The picture of iterations: forward, backward and step, so that the step's share of training time
can be seen.
"""

from collections.abc import Sequence

from matplotlib.figure import Figure

from ..arithmetic.findings import Findings, pictured
from ..arithmetic.times import PHASES, Timing
from ..phrases import share_text
from ..style import block_colour
from ..units import time_unit
from .canvas import Frame
from .drawing import FOR_PAPER, Drawing, Style, render
from .rows import RowChart, linear_scale
from .symbols import Key
from .timing_rows import axis_text, spoken, timing_row, timing_table

TITLE = "The step's share of an iteration"


def draw_iterations(findings: Findings, style: Style = FOR_PAPER) -> Drawing | None:
    """The picture, or None where forward and backward were not timed."""
    whole = [timing for timing in findings.timings if timing.iteration]
    timings, notes = pictured(whole, findings.setting_of)
    if not timings:
        return None
    return render(
        lambda frame: _figure(findings, timings, frame),
        style,
        name="iteration",
        title=TITLE,
        sentence=(
            "Forward, backward and the optimizer's step of one training iteration, by their"
            " medians."
        ),
        alt="Stacked bars of an iteration. "
        + "; ".join(spoken(findings, timing, share_text(timing)) for timing in timings)
        + ".",
        table=timing_table(findings, whole),
        notes=notes,
    )


def _figure(findings: Findings, timings: Sequence[Timing], frame: Frame) -> Figure:
    lengths = [timing.iteration or 0.0 for timing in timings]
    unit, name = time_unit(max(lengths))
    chart = RowChart(
        frame,
        [timing_row(findings, timing, share_text(timing)) for timing in timings],
        title=TITLE,
        context=findings.context,
        grouped=len(findings.names) > 1,
        axis=axis_text(name, timings),
        scale=lambda axes, group: linear_scale(axes, max(lengths[group]) / unit),
        scale_groups=True,
        legend=[Key("block", phase, block_colour(phase)) for phase in PHASES],
    )
    for timing, place in zip(timings, chart.places, strict=True):
        place.stack([(phase, timing.phases[phase].median / unit) for phase in PHASES])
    return chart.canvas.figure
