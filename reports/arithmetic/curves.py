"""Curves: bytes of state against parameters, one series per optimizer and model family."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from optprof.profiler.records.record import Record

from .labels import dtype_name, labels, model_traits, optimizer_key

# Two series closer than this at every model they share would be drawn one over the other.
COINCIDENT = 0.03


@dataclass(frozen=True, kw_only=True)
class Point:
    """The state that one optimizer keeps for one model."""

    model: str
    parameters: int
    state_bytes: int
    origin: str


@dataclass(frozen=True, kw_only=True)
class Series:
    """Points of one optimizer that a line may join: one model family, or a model that stands alone.

    `lane` counts the earlier series that this one coincides with, so that a picture can keep both
    legible.
    """

    label: str
    dtype: str
    family: str | None
    points: tuple[Point, ...]
    lane: int = 0


def curves(records: Sequence[Record]) -> list[Series]:
    """The series of a run, each sorted by parameters; a state of no bytes is a point too."""
    names = labels(records)
    groups: dict[tuple[str, str, str | None, str], dict[str, Point]] = {}
    for record in records:
        point = _point(record)
        if point is None:
            continue
        # A model without a family is a group of its own, and so is each part of it that is trained.
        group = (
            names[optimizer_key(record.scenario)],
            dtype_name(record.scenario, record.memory),
            record.model_family,
            " ".join(("" if record.model_family else point.model, *model_traits(record.scenario))),
        )
        points = groups.setdefault(group, {})
        # What was measured is drawn before what was simulated.
        if point.model not in points or point.origin == "measured":
            points[point.model] = point
    return _in_lanes([_series(group, points.values()) for group, points in groups.items()])


def _point(record: Record) -> Point | None:
    if record.outcome != "ok" or record.memory is None or not record.parameter_count:
        return None
    state = record.memory.optimizer_state
    return Point(
        model=record.scenario.model,
        parameters=record.parameter_count,
        state_bytes=state,
        origin=record.origin,
    )


def _series(group: tuple[str, str, str | None, str], points: Iterable[Point]) -> Series:
    label, dtype, family, _ = group
    return Series(
        label=label,
        dtype=dtype,
        family=family,
        points=tuple(sorted(points, key=lambda point: point.parameters)),
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
