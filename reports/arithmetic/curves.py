"""Curves: bytes of state and seconds of the step against parameters."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from optprof.profiler.records.record import Record

from .labels import dtype_name, labels, model_traits, optimizer_key
from .times import Spread, noise

# Two series that are closer than this at every model they share would cover each other.
COINCIDENT = 0.03


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """One model on a curve: the bytes of its state, or the seconds of its step.

    `lower` and `upper` are the 95 % interval of the seconds, None for too few samples; `noisy` is
    the record of samples whose median is noise.
    """

    model: str
    parameters: int
    origin: str
    state_bytes: int = 0
    seconds: float = 0.0
    lower: float | None = None
    upper: float | None = None
    noisy: Record | None = None


@dataclass(frozen=True, kw_only=True)
class Series:
    """Points of one optimizer that a line may join: one model family, or one model without family.

    `lane` counts the earlier series that coincide with this one, so that a picture can show both.
    A series of times has an implementation and a clock: "cpu" or "cuda" for samples, a GPU's name
    for estimates.
    """

    label: str
    dtype: str
    family: str | None
    points: tuple[ModelSize, ...]
    lane: int = 0
    implementation: str = ""
    clock: str = ""


# Label, dtype, family, the model and its trained part if it has no family, implementation, clock.
_Key = tuple[str, str, str | None, str, str, str]


def curves(records: Sequence[Record]) -> list[Series]:
    """Return the series of states, each sorted by parameters; a state of 0 bytes is a point too."""
    names = labels(records)
    groups: dict[_Key, dict[str, ModelSize]] = {}
    for record in records:
        if record.outcome != "ok" or record.memory is None or not record.parameter_count:
            continue
        point = _point(record, record.origin, state_bytes=record.memory.optimizer_state)
        points = groups.setdefault(_key(names, record), {})
        # A measured state is drawn in place of a simulated one.
        if point.model not in points or point.origin == "measured":
            points[point.model] = point
    return _in_lanes([_series(key, points.values()) for key, points in groups.items()])


def time_curves(records: Sequence[Record]) -> list[Series]:
    """Return the series of step times, each sorted by parameters.

    Of several records of one model, the first is used.
    """
    names = labels(records)
    groups: dict[_Key, dict[str, ModelSize]] = {}
    for record in records:
        for clock, point in _times(record):
            key = _key(names, record, record.scenario.implementation, clock)
            groups.setdefault(key, {}).setdefault(point.model, point)
    return [_series(key, points.values()) for key, points in groups.items()]


def _key(
    names: Mapping[tuple[str, str], str], record: Record, implementation: str = "", clock: str = ""
) -> _Key:
    scenario, family = record.scenario, record.model_family
    alone = " ".join(("" if family else scenario.model, *model_traits(scenario)))
    dtype = dtype_name(scenario, record.memory)
    return names[optimizer_key(scenario)], dtype, family, alone, implementation, clock


def _times(record: Record) -> list[tuple[str, ModelSize]]:
    """Return the points of the record's estimate and of its samples, each with its clock."""
    points = []
    samples = (record.times or {}).get("step")
    if not record.parameter_count:
        return []
    if estimate := record.estimate:
        points.append((estimate.gpu, _point(record, "estimated", seconds=estimate.seconds)))
    if record.outcome == "ok" and samples:
        spread = Spread.of(samples)
        point = _point(record, record.origin, seconds=spread.median)
        if interval := spread.interval:
            point = replace(point, lower=interval.lower, upper=interval.upper)
        point = replace(point, noisy=record if noise(record) else None)
        points.append((record.scenario.device, point))
    return points


def _point(record: Record, origin: str, *, state_bytes: int = 0, seconds: float = 0.0) -> ModelSize:
    return ModelSize(
        model=record.scenario.model,
        parameters=record.parameter_count or 0,
        origin=origin,
        state_bytes=state_bytes,
        seconds=seconds,
    )


def _series(key: _Key, points: Iterable[ModelSize]) -> Series:
    label, dtype, family, _, implementation, clock = key
    return Series(
        label=label,
        dtype=dtype,
        family=family,
        points=tuple(sorted(points, key=lambda point: point.parameters)),
        implementation=implementation,
        clock=clock,
    )


def _in_lanes(series: Sequence[Series]) -> list[Series]:
    placed: list[Series] = []
    for one in series:
        placed.append(replace(one, lane=sum(_coincide(one, other) for other in placed)))
    return placed


def _coincide(one: Series, other: Series) -> bool:
    theirs = {point.model: point.state_bytes for point in other.points}
    shared = [
        (point.state_bytes, theirs[point.model]) for point in one.points if point.model in theirs
    ]
    return bool(shared) and all(abs(a - b) <= COINCIDENT * max(a, b) for a, b in shared)
