"""Charts: what a page draws of a run: bars as HTML, graphs as plotly's traces in JSON, of the same
rows that the pictures show.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from ..arithmetic.findings import Findings
from .bars import iteration_chart, peak_chart, savings_chart
from .chart import Bar, BarGroup, Chart, Graph
from .sizes import size_chart
from .step_sizes import step_size_chart
from .strips import step_chart
from .timelines import timeline_chart
from .tradeoffs import tradeoff_chart

if TYPE_CHECKING:
    from ..figures.drawing import Drawing

__all__ = ["Bar", "BarGroup", "Chart", "Graph", "charts"]

_BODIES: Mapping[str, Callable[[Findings, Chart], Chart]] = {
    "savings": savings_chart,
    "state-by-size": size_chart,
    "peak": peak_chart,
    "timeline": timeline_chart,
    "step-time": step_chart,
    "iteration": iteration_chart,
}


def charts(findings: Findings, drawings: "Sequence[Drawing]") -> list[Chart]:
    """A chart for each picture that a page can draw, with the picture's words, then those that are
    no pictures.
    """
    wordy = [Chart.of(drawing) for drawing in drawings]
    pictured = [_BODIES[chart.kind](findings, chart) for chart in wordy if chart.kind in _BODIES]
    return [*pictured, *filter(None, (step_size_chart(findings), tradeoff_chart(findings)))]
