"""Time curves: seconds of the optimizer's step against parameters, one series per optimizer, clock
and model family.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from optprof.profiler.records.record import Record

from .labels import dtype_name, labels, model_traits, optimizer_key
from .times import Spread


@dataclass(frozen=True, kw_only=True)
class TimePoint:
    """The median step of one model, with the 95 % interval where there are samples enough for
    one.
    """

    model: str
    parameters: int
    seconds: float
    lower: float | None
    upper: float | None
    origin: str


@dataclass(frozen=True, kw_only=True)
class TimeSeries:
    """Points that a line may join: one optimizer, dtype and implementation, one clock, and one
    model family or a model that stands alone.

    `clock` is "cpu" or "cuda" for samples and a GPU's name for estimates.
    """

    label: str
    dtype: str
    implementation: str
    clock: str
    family: str | None
    points: tuple[TimePoint, ...]


def time_curves(records: Sequence[Record]) -> list[TimeSeries]:
    """The series of a run, each sorted by parameters; of several records of a model the first
    counts.
    """
    names = labels(records)
    groups: dict[tuple[str, str, str, str, str | None, str], dict[str, TimePoint]] = {}
    for record in records:
        scenario = record.scenario
        for clock, point in _points(record):
            alone = " ".join(("" if record.model_family else point.model, *model_traits(scenario)))
            dtype = dtype_name(scenario, record.memory)
            key = (
                names[optimizer_key(scenario)],
                dtype,
                scenario.implementation,
                clock,
                record.model_family,
                alone,
            )
            groups.setdefault(key, {}).setdefault(point.model, point)
    return [
        _series(key, sorted(points.values(), key=lambda point: point.parameters))
        for key, points in groups.items()
    ]


def _points(record: Record) -> list[tuple[str, TimePoint]]:
    """The point of the record's samples and that of its estimate, each with its clock."""
    found, model, parameters = [], record.scenario.model, record.parameter_count
    samples = (record.times or {}).get("step")
    if not parameters:
        return []
    if record.outcome == "ok" and samples:
        spread = Spread.of(samples)
        lower, upper = (
            (spread.interval.lower, spread.interval.upper) if spread.interval else (None, None)
        )
        point = TimePoint(
            model=model,
            parameters=parameters,
            seconds=spread.median,
            lower=lower,
            upper=upper,
            origin=record.origin,
        )
        found.append((record.scenario.device, point))
    if record.estimate:
        seconds = record.estimate.seconds
        point = TimePoint(
            model=model,
            parameters=parameters,
            seconds=seconds,
            lower=None,
            upper=None,
            origin="estimated",
        )
        found.append((record.estimate.gpu, point))
    return found


def _series(
    key: tuple[str, str, str, str, str | None, str], points: Sequence[TimePoint]
) -> TimeSeries:
    label, dtype, implementation, clock, family, _ = key
    return TimeSeries(
        label=label,
        dtype=dtype,
        implementation=implementation,
        clock=clock,
        family=family,
        points=tuple(points),
    )
