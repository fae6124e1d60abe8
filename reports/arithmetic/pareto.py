"""Pareto: time against memory, and the optimizers that no other one beats in both."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .entries import Entry, Setting


@dataclass(frozen=True, kw_only=True)
class Tradeoff:
    """One entry as a point: seconds of its step, with the 95 % interval where there is one, and
    exact bytes.

    `clock` is what the seconds come from: "cpu" or "cuda" for samples, a GPU's name for an
    estimate; `origin` is that of the seconds. `is_peak` tells whether the bytes are the peak of a
    training step, or the state where not every entry of the setting has a peak.
    """

    entry: Entry
    clock: str
    origin: str
    seconds: float
    lower: float | None
    upper: float | None
    bytes: int
    is_peak: bool
    on_front: bool

    @property
    def shown_origin(self) -> str:
        """The origin that the point's mark tells: that of the seconds, unless the bytes were not
        measured.
        """
        return self.origin if self.entry.origin == "measured" else self.entry.origin


@dataclass(frozen=True, kw_only=True)
class _Clocked:
    """The seconds of an entry by one clock."""

    entry: Entry
    clock: str
    origin: str
    seconds: float
    lower: float | None = None
    upper: float | None = None


def front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Which points no other point beats: none is as good in both coordinates and better in one.
    Less is better; twins share their fate.
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
    """A point for each entry with bytes and seconds; only those of one setting and one clock are
    held against each other.
    """
    groups: dict[tuple[Setting, str], list[_Clocked]] = {}
    for entry in entries:
        for clocked in _clocked(entry):
            groups.setdefault((entry.setting, clocked.clock), []).append(clocked)
    return [point for group in groups.values() for point in _points(group)]


def _points(group: Sequence[_Clocked]) -> list[Tradeoff]:
    is_peak = all(clocked.entry.peak_bytes is not None for clocked in group)
    sizes = [
        clocked.entry.peak_bytes if is_peak else clocked.entry.state_bytes for clocked in group
    ]
    known = [
        (clocked, size) for clocked, size in zip(group, sizes, strict=True) if size is not None
    ]
    best = front([(clocked.seconds, size) for clocked, size in known])
    return [
        Tradeoff(
            entry=clocked.entry,
            clock=clocked.clock,
            origin=clocked.origin,
            seconds=clocked.seconds,
            lower=clocked.lower,
            upper=clocked.upper,
            bytes=size,
            is_peak=is_peak,
            on_front=on_front,
        )
        for (clocked, size), on_front in zip(known, best, strict=True)
    ]


def _clocked(entry: Entry) -> list[_Clocked]:
    found = []
    if entry.step is not None and entry.times_from is not None:
        interval, record = entry.step.interval, entry.times_from
        lower, upper = (interval.lower, interval.upper) if interval else (None, None)
        clock = record.scenario.device
        found.append(
            _Clocked(
                entry=entry,
                clock=clock,
                origin=record.origin,
                seconds=entry.step.median,
                lower=lower,
                upper=upper,
            )
        )
    if entry.estimate is not None:
        found.append(
            _Clocked(
                entry=entry,
                clock=entry.estimate.gpu,
                origin="estimated",
                seconds=entry.estimate.seconds,
            )
        )
    return found
