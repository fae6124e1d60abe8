"""The picture of a history: a line for each scenario over the runs, a panel for each model."""

from collections.abc import Sequence
from dataclasses import replace

from ..arithmetic.labels import shortened
from ..explain import METRICS
from ..pictures.picture import ORIGINS, Axis, Line, Picture, Plot, Point
from ..style import MARKS, SPARE, Colour, Mark
from ..tables.table import Table
from ..units import Sized
from ..words import shared
from .history import History, Series
from .history import Point as PastPoint
from .tables import Names, explained, figure_text

REGRESSED = "regressed"
RING = Mark(Colour("#c92a2a", "#ff8787"), "o", "●", "○")
# More lines cannot be told apart.
MOST_LINES = 12
# From this ratio on, a linear axis would press the smallest lines together.
FAR = 4


def history_pictures(history: History, names: Names) -> list[Picture]:
    """Return the picture if a scenario has results in two runs."""
    series = [each for each in history.distinct if len(each.results) > 1]
    if not series:
        return []
    first = sorted(series, key=lambda each: not each.regressed)[:MOST_LINES]
    drawn = [each for each in series if each in first]
    title = METRICS[history.metric].title
    model = shared(each.scenario.model for each in drawn)
    notes = []
    if len(drawn) < len(series):
        notes.append(
            f"{MOST_LINES} of {len(series):,} scenarios are drawn, those that regressed first; the"
            " table below has all."
        )
    models: dict[str, list[Series]] = {}
    for each in drawn:
        models.setdefault(each.scenario.model, []).append(each)
    has_regressed = any(each.regressed for each in drawn)
    picture = Picture(
        name=f"history-{history.metric}",
        title=f"History: {title}",
        context=" · ".join(filter(None, (model, f"{len(history.runs)} runs", names.common))),
        sentence=(
            f"{title.capitalize()} of each scenario in each run. A red ring marks a figure that is"
            " worse than before, by the rule of `optprof compare`."
        ),
        table=Table(head=(), rows=()),
        panels=tuple(
            _plot(history, model if len(models) > 1 else "", group, names)
            for model, group in models.items()
        ),
        marks=_marks(drawn, names) | ({REGRESSED: RING} if has_regressed else {}),
        notes=tuple(notes),
        keys=ORIGINS,
    )
    return [picture]


def _marks(series: Sequence[Series], names: Names) -> dict[str, Mark]:
    """The mark of each line: the optimizer's own for its first line, else one that is free."""
    spare = [*MARKS.values(), *SPARE]
    marks: dict[str, Mark] = {}
    for each in series:
        own = MARKS.get(each.scenario.optimizer)
        free = [mark for mark in (own, *spare) if mark and mark not in marks.values()]
        marks.setdefault(_label(each, names), free[0])
    return marks


def _label(series: Series, names: Names) -> str:
    """The name of a line in the panel of its model."""
    return names[series.record].removeprefix(f"{series.scenario.model} · ")


def _plot(history: History, model: str, series: Sequence[Series], names: Names) -> Plot:
    points = [point for each in series for point in each.results]
    values = [float(point.value or 0) for point in points]
    rings = [
        Line(label=REGRESSED, points=(_ring(history, names[each.record], point),), size=22)
        for each in series
        for point in each.regressed
        if point.value is not None
    ]
    title, kind = METRICS[history.metric].title, METRICS[history.metric].kind or "seconds"
    lines = [
        Line(
            label=_label(each, names),
            points=tuple(_shown(history, names[each.record], point) for point in each.results),
            size=11,
        )
        for each in series
    ]
    runs = sorted({point.run for point in points})
    return Plot(
        name=model,
        alt=f"{title} in {len(runs)} runs. "
        + "; ".join(_spoken(history, names[each.record], each) for each in series)
        + ".",
        x=Axis(
            title="run, the oldest first",
            kind="number",
            values=[run + 1 for run in runs],
            log=False,
        ),
        y=Axis(
            title="of memory" if kind == "bytes" else f"time of the {title}",
            kind=kind,
            values=values,
            log=max(values) > FAR * min(values) > 0,
        ),
        lines=[*rings, *lines],
        height=420,
        columns={run + 1: shortened(history.runs[run].name, 24) for run in runs},
    )


def _shown(history: History, name: str, point: PastPoint) -> Point:
    """A point, and the words under the pointer: the run, its figure, and its change."""
    assert point.value is not None
    dated, value = history.runs[point.run], point.value
    commit = dated.commit and f"optprof at {dated.commit}"
    known = ", ".join(filter(None, (dated.name, (dated.time or "")[:10], commit)))
    noisy = f", noisy: {point.noise}" if point.noise else ""
    change = point.change
    verdict = (
        f"\n{point.verdict}: {explained(change)}"
        if change and point.verdict in ("regressed", "improved")
        else ""
    )
    return Point(
        x=point.run + 1,
        y=value,
        origin=point.record.origin,
        words=Sized.of(
            lambda units: (
                f" · {name}\n{known}\n{figure_text(history.metric, value, units)}{noisy}{verdict}"
            )
        ),
        interval=point.interval,
    )


def _ring(history: History, name: str, point: PastPoint) -> Point:
    # A mark that is not filled, around that of the point.
    return replace(_shown(history, name, point), origin="simulated")


def _spoken(history: History, name: str, series: Series) -> str:
    first, last = (
        figure_text(history.metric, point.value or 0)
        for point in (series.results[0], series.results[-1])
    )
    return f"{name} from {first} to {last}"
