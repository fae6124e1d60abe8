"""Accumulations: courses of training on text side by side, those that differ by their seed alone as
one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from math import sqrt
from statistics import fmean, median, stdev

from optprof.profiler.records.record import Course, Record

# Student's t of two-sided 95 % intervals of the mean of 2, 3, ... 10 values; of more the last is a
# little wide.
_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


@dataclass(frozen=True, kw_only=True)
class Range:
    """The mean over seeds, and the lowest and the highest of them."""

    mean: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Range":
        """The range of one value or more."""
        return cls(mean=fmean(values), lowest=min(values), highest=max(values))

    @classmethod
    def of_finite(cls, values: Sequence[float | None]) -> "Range | None":
        """The range of one value or more; None where one is not finite: the mean of the others
        would say less than it seems to.
        """
        known = [value for value in values if value is not None]
        return cls.of(known) if len(known) == len(values) else None


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The mean over seeds of what one way has more than another at the same seed, and its 95 % t
    interval.
    """

    mean: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Accumulated:
    """One way to accumulate, over its seeds; each record has a course and times."""

    records: tuple[Record, ...]

    @property
    def spec(self) -> str:
        """The accumulation, as it was asked for."""
        return self.records[0].scenario.accumulate or ""

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds, in the order of the run."""
        return tuple(record.scenario.seed for record in self.records)

    @property
    def tokens(self) -> int:
        """The tokens that a course has read."""
        return _tokens(self.records[0]) * len(_course(self.records[0]).losses)

    @property
    def steps(self) -> Range:
        """The optimizer's steps in a course."""
        return Range.of([len(_course(record).draws) for record in self.records])

    def draws(self, parts: int) -> tuple[float | None, ...]:
        """The mean micro-batches of the steps that ended in each of so many parts of the course;
        None where none did.
        """
        return tuple(
            _mean(
                [
                    draws
                    for record in self.records
                    for draws in _draws_in(_course(record), part, parts)
                ]
            )
            for part in range(parts)
        )

    @property
    def final_loss(self) -> Range | None:
        """The loss on held-out text at the end; None where one is not finite."""
        return Range.of_finite([_course(record).held_out[-1].loss for record in self.records])

    @property
    def best_loss(self) -> Range | None:
        """The lowest loss on held-out text; None where a seed never had a finite one."""
        found = (
            [reading.loss for reading in _course(record).held_out if reading.loss is not None]
            for record in self.records
        )
        return Range.of_finite([min(losses, default=None) for losses in found])

    @property
    def losses(self) -> dict[int, Range]:
        """The loss on held-out text, over the seeds, by the tokens read until then; without
        readings that are not finite at every seed.
        """
        readings = zip(*(_course(record).held_out for record in self.records), strict=False)
        found = {
            taken[0].micro_batches * _tokens(self.records[0]): Range.of_finite(
                [each.loss for each in taken]
            )
            for taken in readings
        }
        return {tokens: loss for tokens, loss in found.items() if loss is not None}

    @property
    def is_finite(self) -> bool:
        """Whether every loss of its courses is."""
        courses = [_course(record) for record in self.records]
        return not any(
            loss is None
            for course in courses
            for loss in (*course.losses, *(each.loss for each in course.held_out))
        )

    def against(self, other: "Accumulated") -> Difference | None:
        """The final loss less the other's at the same seed; None where fewer than two seeds have
        both.
        """
        finals = [
            {record.scenario.seed: _course(record).held_out[-1].loss for record in way.records}
            for way in (self, other)
        ]
        pairs = [(mine, finals[1].get(seed)) for seed, mine in finals[0].items()]
        found = [mine - theirs for mine, theirs in pairs if mine is not None and theirs is not None]
        if len(found) < 2:
            return None
        reach = _STUDENT[min(len(found), len(_STUDENT) + 1) - 2] * stdev(found) / sqrt(len(found))
        return Difference(mean=fmean(found), low=fmean(found) - reach, high=fmean(found) + reach)

    def tokens_to(self, loss: float) -> int | None:
        """The tokens until the held-out loss, averaged over the seeds, is first at most this; None
        where it never is.
        """
        return next(
            (tokens for tokens, reached in self.losses.items() if reached.mean <= loss), None
        )

    @property
    def micro_batches_per_second(self) -> float:
        """Micro-batches a second over all courses, their warm-up, text and losses on held-out text
        apart.
        """
        samples = self._seconds("iteration")
        seconds = sum(samples)
        # A clock may be too coarse for what it timed.
        return len(samples) / seconds if seconds > 0 else 0.0

    @property
    def steps_per_second(self) -> float:
        """Optimizer steps a second, at the steps that a micro-batch led to over whole courses."""
        micro_batches = sum(len(_course(record).losses) for record in self.records)
        return (
            self.micro_batches_per_second
            * sum(len(_course(record).draws) for record in self.records)
            / micro_batches
        )

    @property
    def tokens_per_second(self) -> float:
        """Tokens a second."""
        return self.micro_batches_per_second * _tokens(self.records[0])

    @property
    def draw_seconds(self) -> float | None:
        """The median time of a decision not to step; None where every one was to step."""
        samples = self._seconds("draw")
        return median(samples) if samples else None

    @property
    def added_bytes(self) -> int:
        """The most that the accumulation's own tensors have held."""
        return max(_course(record).added_bytes for record in self.records)

    @property
    def dropped(self) -> int:
        """The micro-batches lost for not being finite, in all courses."""
        return sum(_course(record).dropped for record in self.records)

    def _seconds(self, phase: str) -> list[float]:
        return [sample for record in self.records for sample in (record.times or {}).get(phase, ())]


def accumulations(records: Sequence[Record]) -> list[list[Accumulated]]:
    """The ways to accumulate in groups of equal model, optimizer and tokens, in the order of the
    run.
    """
    groups: dict[str, dict[str, list[Record]]] = {}
    for record in records:
        if record.course and record.times and record.watched and record.watched.tokens:
            scenario = replace(record.scenario, seed=0)
            ways = groups.setdefault(repr(replace(scenario, accumulate=None)), {})
            ways.setdefault(repr(scenario), []).append(record)
    return [
        [Accumulated(records=tuple(found)) for found in ways.values()] for ways in groups.values()
    ]


def common_loss(group: Sequence[Accumulated]) -> float | None:
    """The lowest loss that every way of a group has reached on average over its seeds: what tokens
    are counted to.

    None where one has no loss that is finite.
    """
    lowest = [min((reached.mean for reached in way.losses.values()), default=None) for way in group]
    return None if None in lowest else max(loss for loss in lowest if loss is not None)


def _course(record: Record) -> Course:
    assert record.course is not None
    return record.course


def _tokens(record: Record) -> int:
    assert record.watched is not None
    return record.watched.tokens or 0


def _draws_in(course: Course, part: int, parts: int) -> list[int]:
    """The draws of the steps that ended in this one of the parts of the course's micro-batches."""
    # Records of before do not say where steps ended: there, as if nothing had been dropped.
    ends = course.ended or accumulate(course.draws)
    return [
        draws
        for draws, ended in zip(course.draws, ends, strict=True)
        if parts * (ended - 1) // len(course.losses) == part
    ]


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None
