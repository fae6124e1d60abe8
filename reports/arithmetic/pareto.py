"""Pareto: time against memory, and the optimizers that no other one beats in both."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from .entries import Entry, Setting


@dataclass(frozen=True, kw_only=True)
class Tradeoff:
    """One entry as a point: the seconds of its step, with their 95 % interval, and exact bytes.

    `clock` is the source of the seconds: "cpu" or "cuda" for samples, a GPU's name for an estimate;
    `origin` is that of the seconds. The bytes are the peak of a training step if `is_peak`, else
    the state, if some entry of the setting has no peak.
    """

    entry: Entry
    clock: str
    origin: str
    seconds: float
    lower: float | None = None
    upper: float | None = None
    bytes: int = 0
    is_peak: bool = False
    on_front: bool = False

    @property
    def shown_origin(self) -> str:
        """The origin of the seconds, or that of the bytes if these were not measured."""
        return self.origin if self.entry.origin == "measured" else self.entry.origin


def front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Return for each point whether no other is as good in both coordinates and better in one.

    Less is better. Equal points have the same answer.
    """
    lowest: dict[float, float] = {}
    for first, second in points:
        lowest[first] = min(second, lowest.get(first, second))
    best, ahead = math.inf, dict[float, float]()
    for first in sorted(lowest):
        ahead[first] = best
        best = min(best, lowest[first])
    return [second == lowest[first] and second < ahead[first] for first, second in points]


def tradeoffs(entries: Sequence[Entry]) -> list[Tradeoff]:
    """Return a point for each entry with bytes and seconds, in groups of one setting and clock.

    A GPU's bytes are not set against a CPU's times if there are times of a GPU.
    """
    groups: dict[tuple[Setting, str], list[Tradeoff]] = {}
    # A step that does not fit takes no time.
    for entry in (entry for entry in entries if not entry.ran_out):
        for point in _timed(entry):
            groups.setdefault((entry.setting, point.clock), []).append(point)
    on_gpu = {setting for setting, clock in groups if clock != "cpu"}
    return [
        point
        for (setting, clock), group in groups.items()
        if clock != "cpu" or setting not in on_gpu
        for point in _with_bytes(group)
    ]


def _timed(entry: Entry) -> list[Tradeoff]:
    """Return the points of the entry's estimate and of its samples, still without bytes."""
    points = []
    if (estimate := entry.estimate) is not None:
        points.append(
            Tradeoff(entry=entry, clock=estimate.gpu, origin="estimated", seconds=estimate.seconds)
        )
    if entry.step is not None and entry.times_from is not None:
        record, interval = entry.times_from, entry.step.interval
        points.append(
            Tradeoff(
                entry=entry,
                clock=record.scenario.device,
                origin=record.origin,
                seconds=entry.step.median,
                lower=interval.lower if interval else None,
                upper=interval.upper if interval else None,
            )
        )
    return points


def _with_bytes(group: Sequence[Tradeoff]) -> list[Tradeoff]:
    is_peak = all(point.entry.peak_bytes is not None for point in group)
    sizes = [point.entry.peak_bytes if is_peak else point.entry.state_bytes for point in group]
    pairs = [(point, size) for point, size in zip(group, sizes, strict=True) if size is not None]
    best = front([(point.seconds, size) for point, size in pairs])
    return [
        replace(point, bytes=size, is_peak=is_peak, on_front=on_front)
        for (point, size), on_front in zip(pairs, best, strict=True)
    ]
