"""History: one figure over many runs, in the order of the times that their records have."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from optprof.profiler.records.confidence import median_interval
from optprof.profiler.records.privacy import disclosed, masked
from optprof.profiler.records.record import Record
from optprof.profiler.records.store import RunStore, scenario_key, without_collections
from optprof.scenarios.spec import Scenario

from ..arithmetic.labels import optimizer_key
from ..arithmetic.times import noise
from ..explain import METRICS, find
from .compare import THRESHOLD, Bounds, MetricChange, Verdict, bounds_of, figure_of, pair_of
from .sides import lean, may_hold_run, runs_under, time_of


@dataclass(frozen=True, kw_only=True)
class DatedRun:
    """A run, and the time and the commit that its last record has; None is unknown."""

    name: str
    time: str | None
    commit: str | None


@dataclass(frozen=True, kw_only=True)
class Point:
    """A scenario in one run, by the run's number from 0, and its change since an earlier run.

    A point is compared with the last result before it, of times the last one that is not noise.
    `value` is in bytes or median seconds, None for a scenario without a result. `interval` is that
    of the median, `noise` says why it is noise. A scenario that lost its result has regressed.
    """

    run: int
    record: Record
    value: float | None
    interval: tuple[float, float] | None = None
    noise: str = ""
    change: MetricChange | None = None
    verdict: Verdict | None = None


@dataclass(frozen=True, kw_only=True)
class Series:
    """One scenario over the runs that have it, and the change from its first to its last result."""

    points: tuple[Point, ...]
    overall: MetricChange | None

    @property
    def record(self) -> Record:
        """The newest record."""
        return self.points[-1].record

    @property
    def scenario(self) -> Scenario:
        """The scenario of all points."""
        return self.record.scenario

    @property
    def results(self) -> list[Point]:
        """The points with a result."""
        return [point for point in self.points if point.value is not None]

    @property
    def regressed(self) -> list[Point]:
        """The points that are worse than the one before, by the rule of a gate."""
        return [point for point in self.points if point.verdict == "regressed"]


@dataclass(frozen=True, kw_only=True)
class History:
    """One figure of every scenario over many runs, and the runs that cannot be read."""

    metric: str
    threshold: Fraction
    runs: tuple[DatedRun, ...]
    series: tuple[Series, ...]
    damage: tuple[str, ...] = ()

    @property
    def distinct(self) -> list[Series]:
        """The series to show: those of one optimizer that have equal bytes in every run count once.

        An optimizer's state is the same on every device and for every workload.
        """
        if METRICS[self.metric].kind != "bytes":
            return [*self.series]
        alike: dict[object, Series] = {}
        for series in self.series:
            values = tuple((point.run, point.value) for point in series.points)
            scenario = series.scenario
            alike.setdefault((scenario.model, optimizer_key(scenario), values), series)
        return list(alike.values())


@without_collections()
def read_history(
    folders: Sequence[Path],
    metric: str,
    *,
    threshold: Fraction = THRESHOLD,
    across_machines: bool = False,
    anonymous: bool = False,
) -> History:
    """Read a figure from all runs in these folders, each a run or a folder of runs.

    ValueError for an unknown figure, or one that no run has; OSError for a folder without runs.
    """
    find(metric)
    # A run may be named twice, by itself and by its folder.
    named = {path.resolve(): path for folder in folders for path in _runs_in(folder)}
    paths = list(named.values())
    read: dict[Path, list[Record]] = {}
    damage: list[str] = []
    for path in paths:
        store = RunStore(path)
        try:
            records = store.read_standing(partial(lean, with_time=True))
            name = "run" if anonymous else masked(path.name)
            damage += (f"{name}/{each}" for each in store.damage)
        except (OSError, ValueError) as error:
            text = str(error).replace(f"{path.parent}{os.sep}", "")
            damage.append(masked(text, anonymous=anonymous))
            continue
        if records:
            read[path] = records
    ordered = sorted(read, key=lambda path: (max(map(time_of, read[path])), path.name))
    runs = [_dated(path.name, read[path]) for path in ordered]
    series = _series(
        [read[path] for path in ordered], metric, bounds_of(threshold), across_machines
    )
    if not series:
        raise ValueError(_nothing(metric, read.values(), damage))
    if anonymous:
        runs = [replace(run, name=str(number), commit=None) for number, run in enumerate(runs, 1)]
        series = [_anonymous(each) for each in series]
    return History(
        metric=metric,
        threshold=threshold,
        runs=tuple(runs),
        series=tuple(series),
        damage=tuple(damage),
    )


def _runs_in(folder: Path) -> list[Path]:
    return [folder] if may_hold_run(folder) else runs_under(folder)


def _dated(name: str, records: Sequence[Record]) -> DatedRun:
    """The time and the commit of the newest record of a run."""
    environment = max(records, key=time_of).environment
    return DatedRun(name=masked(name), time=environment.time, commit=environment.git_commit)


def _nothing(metric: str, runs: Iterable[Sequence[Record]], damage: Sequence[str]) -> str:
    """The reason why there is no history: the figures that the runs have, or their damage."""
    records = [record for records in runs for record in records]
    if not records:
        return f"no record can be read: {damage[0]}" if damage else "the runs have no records"
    others = [
        name for name in METRICS if any(figure_of(each, name) is not None for each in records)
    ]
    return f"no run has {METRICS[metric].title} ({metric}); they have {', '.join(others)}"


def _series(
    runs: Sequence[Sequence[Record]], metric: str, bounds: Bounds, across_machines: bool
) -> list[Series]:
    """The series of each scenario that has the figure, in the order of its first run."""
    scenarios: dict[bytes, list[tuple[int, Record]]] = {}
    for number, records in enumerate(runs):
        for record in records:
            scenarios.setdefault(scenario_key(record.scenario), []).append((number, record))

    def compared(before: Record, after: Record) -> MetricChange | None:
        return next(iter(pair_of(before, after, bounds, across_machines, (metric,)).changes), None)

    series = []
    for members in scenarios.values():
        points: list[Point] = []
        for number, record in members:
            point = _point(number, record, metric)
            results = [each for each in points if each.value is not None]
            last = next((each for each in reversed(results) if not each.noise), None)
            last = last or (results[-1] if results else None)
            if last is not None:
                if point.value is not None:
                    change = compared(last.record, record)
                    point = replace(point, change=change, verdict=change and change.verdict)
                elif points[-1].value is not None and record.outcome != "ok":
                    point = replace(point, verdict="regressed")
            points.append(point)
        records = [point.record for point in points if point.value is not None]
        if records:
            overall = compared(records[0], records[-1]) if len(records) > 1 else None
            series.append(Series(points=tuple(points), overall=overall))
    return series


def _point(number: int, record: Record, metric: str) -> Point:
    figure: Any = figure_of(record, metric) if record.outcome == "ok" else None
    if figure is None or METRICS[metric].kind == "bytes" or metric == "estimate":
        return Point(run=number, record=record, value=figure)
    interval = median_interval(figure)
    return Point(
        run=number,
        record=record,
        value=median(figure),
        interval=interval and (interval.lower, interval.upper),
        noise=noise(record, metric),
    )


def _anonymous(series: Series) -> Series:
    points = (
        replace(point, record=disclosed(point.record, anonymous=True)) for point in series.points
    )
    return replace(series, points=tuple(points))
