"""The pictures of a comparison: each figure that changed, with a bar or the samples of each run."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import log

from optprof.profiler.records.record import Record
from optprof.profiler.records.store import scenario_key

from ..arithmetic.labels import optimizer_key
from ..arithmetic.times import Spread, at_even_ranks, thinning_notes
from ..explain import METRICS
from ..pictures.picture import ORIGINS, Bar, Bars, Part, Picture
from ..pictures.scales import Scale, multiples, second_ticks
from ..pictures.times import SAMPLE_KEYS
from ..style import MARKS, SPARE, Mark
from ..tables.table import Table
from ..units import GIB, KIB, MIB, Sized, Units, bytes_text, seconds_text
from .compare import NOISY, Compared, MetricChange, Pair, figure_of
from .tables import Names, explained, figure_text

# The other figures follow from these.
PICTURED = ("state", "peak", "reserved", "step", "iteration", "estimate")
# A longer picture is no longer looked through.
MOST_SCENARIOS = 12


@dataclass(frozen=True, kw_only=True)
class _Row:
    """A figure of one scenario: the record of the first run, and the changes of the others."""

    name: str
    before: Record
    changes: tuple[tuple[str, Pair, MetricChange], ...]

    @property
    def change(self) -> float:
        """The largest change of the figure in any run, for an order."""
        return max(_distance(change) for _, _, change in self.changes)


def run_marks(compared: Sequence[Compared]) -> dict[str, Mark]:
    """A mark for each run; the first is grey."""
    names = [compared[0].names[0], *(each.names[1] for each in compared)]
    spare = [*MARKS.values(), *SPARE]
    return {name: spare[number % len(spare)] for number, name in enumerate(names)}


def changes_pictures(compared: Sequence[Compared], names: Names, figures: Table) -> list[Picture]:
    """Return a picture for each figure that changed, or is not judged, in any scenario.

    `figures` is the table of all figures, whose rows of the drawn scenarios are the numbers.
    """
    pictures = []
    for metric in PICTURED:
        rows = _different([row for row in _rows(compared, names, metric) if row.change], metric)
        if rows:
            pictures.append(_picture(compared, names, metric, rows, figures))
    return pictures


def _rows(compared: Sequence[Compared], names: Names, metric: str) -> list[_Row]:
    """The scenarios that have the figure, in the order of their first comparison."""
    rows: dict[bytes, list[tuple[str, Pair, MetricChange]]] = {}
    for each in compared:
        for pair in each.pairs:
            for change in pair.changes:
                if change.metric == metric:
                    key = scenario_key(pair.scenario)
                    rows.setdefault(key, []).append((each.names[1], pair, change))
    return [
        _Row(name=names[group[0][1].after], before=group[0][1].before, changes=tuple(group))
        for group in rows.values()
    ]


def _different(rows: Sequence[_Row], metric: str) -> list[_Row]:
    """The rows of bytes that differ: an optimizer's state is the same on every device."""
    if METRICS[metric].kind != "bytes":
        return list(rows)
    alike: dict[object, _Row] = {}
    for row in rows:
        scenario = row.before.scenario
        values = tuple((name, change.before, change.after) for name, _, change in row.changes)
        alike.setdefault((scenario.model, optimizer_key(scenario), values), row)
    return list(alike.values())


def _distance(change: MetricChange) -> float:
    """0 for a figure that did not change, more the farther its ratio is from 1."""
    if change.verdict in ("same", "not compared"):
        return 0.0
    return abs(log(change.ratio.value)) if change.ratio and change.ratio.value > 0 else 1e3


def _picture(
    compared: Sequence[Compared],
    names: Names,
    metric: str,
    rows: Sequence[_Row],
    figures: Table,
) -> Picture:
    first, others = compared[0].names[0], [each.names[1] for each in compared]
    # Equal changes stay in the order of the run.
    drawn = sorted(rows, key=lambda row: -row.change)[:MOST_SCENARIOS]
    draw = _blocks if METRICS[metric].kind == "bytes" or metric == "estimate" else _strips
    marks, notes = run_marks(compared), []
    if len(drawn) < len(rows):
        notes.append(
            f"The {MOST_SCENARIOS} largest changes of {len(rows):,}; the table below has the rest."
        )
    samples = _samples(drawn, metric)
    against = others[0] if len(others) == 1 else "each other run"
    return Picture(
        name=f"changed-{metric}",
        title=f"Changed: {METRICS[metric].title}",
        context=names.common,
        sentence=(
            f"{METRICS[metric].title.capitalize()} of each scenario whose figure changed or is"
            f" noisy, {first} and {against}; the largest change comes first."
        ),
        table=_numbers(drawn, metric, figures),
        panels=tuple(draw(metric, first, row, list(marks)) for row in drawn),
        marks=marks,
        notes=(*notes, *thinning_notes(samples)),
        keys=(*SAMPLE_KEYS, *ORIGINS) if samples else ORIGINS,
    )


def _numbers(rows: Sequence[_Row], metric: str, figures: Table) -> Table:
    """The rows of the table for the drawn scenarios of a figure."""
    names, title = {row.name for row in rows}, METRICS[metric].title
    return replace(
        figures,
        rows=tuple(row for row in figures.rows if row[0].text in names and row[1].text == title),
    )


def _samples(rows: Sequence[_Row], metric: str) -> list[Sequence[float]]:
    """The samples of a time, of each run of each row; of bytes and estimates none."""
    if METRICS[metric].kind == "bytes" or metric == "estimate":
        return []
    records = [
        record
        for row in rows
        for record in (row.before, *(pair.after for _, pair, _ in row.changes))
    ]
    return [figure_of(record, metric) for record in records]


def _blocks(metric: str, first: str, row: _Row, marks: Sequence[str]) -> Bars:
    """A block for each run of a scenario, as long as its bytes or its estimate."""
    runs = _runs(first, row)
    is_size = METRICS[metric].kind == "bytes"
    most = max(1 if is_size else 1e-12, *(value for _, _, value, _ in runs))
    # The last tick encloses every bar.
    unit = next((unit for unit in (GIB, MIB, KIB) if is_size and most >= unit), 1)
    scale = multiples(most / unit)[-1] * unit

    def text(value: float, words: str, units: Units) -> str:
        return " · ".join(filter(None, (figure_text(metric, value, units), words)))

    bars = (
        Bar(
            label=name,
            mark=name,
            origin=record.origin if is_size else "estimated",
            value=Sized.of(partial(text, value, words)),
            parts=(Part(left=0, width=100 * value / scale, colour=f"@mark-{marks.index(name)}"),),
        )
        for name, record, value, words in runs
    )
    ticks = _size_ticks(scale, unit) if is_size else second_ticks(scale)
    return Bars(name=row.name, bars=tuple(bars), ticks=ticks)


def _strips(metric: str, first: str, row: _Row, _: Sequence[str]) -> Bars:
    """The samples of each run of a scenario, on one scale."""
    runs = _runs(first, row)
    spreads = [Spread.of(figure_of(record, metric)) for _, record, _, _ in runs]
    scale = Scale.of(
        min(spread.smallest for spread in spreads), max(spread.largest for spread in spreads)
    )
    bars = []
    for (name, record, value, words), spread in zip(runs, spreads, strict=True):
        text, interval = " · ".join(filter(None, (seconds_text(value), words))), spread.interval
        ends = interval and (scale.place(interval.lower), scale.place(interval.upper))
        bars.append(
            Bar(
                label=name,
                mark=name,
                origin=record.origin,
                value=Sized(binary=text, decimal=text),
                samples=tuple(map(scale.place, at_even_ranks(spread.samples))),
                band=(scale.place(spread.lower), scale.place(spread.upper)),
                whisker=ends,
                median=scale.place(spread.median),
            )
        )
    return Bars(name=row.name, bars=tuple(bars), ticks=scale.ticks)


def _size_ticks(most: float, unit: int) -> tuple[tuple[float, Sized], ...]:
    """Places and texts of round sizes in this unit, on a row as long as `most` bytes."""
    sizes = [round(size * unit) for size in multiples(most / unit)]
    return tuple((100 * size / most, Sized.of(partial(_tick_text, size))) for size in sizes)


def _tick_text(size: int, units: Units) -> str:
    number, unit = bytes_text(size, units).split()
    return f"{float(number.replace(',', '')):,g} {unit}" if size else "0"


def _runs(first: str, row: _Row) -> list[tuple[str, Record, float, str]]:
    """The name, record and figure of each run of a row, and its ratio to the first in words."""
    runs = [(first, row.before, row.changes[0][2].before, "")]
    for name, pair, change in row.changes:
        words = "" if change.verdict in ("same", "not compared") else explained(change)
        if change.verdict == "not judged":
            words = f"not judged: {NOISY}"
        runs.append((name, pair.after, change.after, words))
    return runs
