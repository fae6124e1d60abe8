"""Accumulations: training runs on text side by side, joined if they differ by their seed only."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from math import sqrt
from statistics import fmean, median, stdev

from optprof.profiler.records.record import Course, Record
from optprof.scenarios.spec import Scenario

# Student's t of two-sided 95 % intervals of the mean of 2, 3, ... 10 values. For more values, the
# last makes the interval a little wide.
_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


@dataclass(frozen=True, kw_only=True)
class Range:
    """A mean over seeds, with the lowest and highest value or with its 95 % t interval."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Range":
        """Return the mean of one value or more, with the lowest and the highest."""
        return cls(mean=fmean(values), low=min(values), high=max(values))

    @classmethod
    def of_finite(cls, values: Sequence[float | None]) -> "Range | None":
        """Return the range of one value or more; None if one is not finite."""
        finite = [value for value in values if value is not None]
        return cls.of(finite) if len(finite) == len(values) else None


@dataclass(frozen=True, kw_only=True)
class Accumulated:
    """One accumulation over its seeds; each record has a course and times."""

    records: tuple[Record, ...]

    @property
    def spec(self) -> str:
        """The accumulation and its options, as the scenario has them."""
        return self.records[0].scenario.accumulate or ""

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds, in the order of the run."""
        return tuple(record.scenario.seed for record in self.records)

    @property
    def tokens(self) -> int:
        """The tokens that a training run reads."""
        return _tokens(self.records[0]) * len(_course(self.records[0]).losses)

    @property
    def steps(self) -> Range:
        """The optimizer's steps in a training run."""
        return Range.of([len(_course(record).draws) for record in self.records])

    def draws(self, parts: int) -> tuple[float | None, ...]:
        """Return the mean micro-batches of a step in each of equal parts of the training run.

        None for a part in which no step ended.
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
    def micro_batches_a_step(self) -> int | None:
        """The micro-batches of every step if all have as many by plan, None for a rule."""
        if self.spec.partition(":")[0] != "sbc":
            return None
        draws = {draw for record in self.records for draw in _course(record).draws}
        return draws.pop() if len(draws) == 1 else None

    @property
    def final_loss(self) -> Range | None:
        """The loss on held-out text at the end, None if one is not finite."""
        return Range.of_finite([_course(record).held_out[-1].loss for record in self.records])

    @property
    def best_loss(self) -> Range | None:
        """The lowest loss on held-out text, None if a seed never had a finite one."""
        finite = (
            [reading.loss for reading in _course(record).held_out if reading.loss is not None]
            for record in self.records
        )
        return Range.of_finite([min(losses, default=None) for losses in finite])

    @property
    def losses(self) -> dict[int, Range]:
        """The loss on held-out text by the tokens read, if it is finite at every seed."""
        readings = zip(*(_course(record).held_out for record in self.records), strict=False)
        losses = {
            reading[0].micro_batches * _tokens(self.records[0]): Range.of_finite(
                [of_seed.loss for of_seed in reading]
            )
            for reading in readings
        }
        return {tokens: loss for tokens, loss in losses.items() if loss is not None}

    @property
    def is_finite(self) -> bool:
        """Return whether every loss of its training runs is finite."""
        courses = [_course(record) for record in self.records]
        return not any(
            loss is None
            for course in courses
            for loss in (*course.losses, *(each.loss for each in course.held_out))
        )

    def against(self, other: "Accumulated") -> Range | None:
        """Return the final loss less the other's at the same seed, None for a single seed."""
        finals = [
            {record.scenario.seed: _course(record).held_out[-1].loss for record in way.records}
            for way in (self, other)
        ]
        pairs = [(mine, finals[1].get(seed)) for seed, mine in finals[0].items()]
        losses = [
            mine - theirs for mine, theirs in pairs if mine is not None and theirs is not None
        ]
        if len(losses) < 2:
            return None
        student = _STUDENT[min(len(losses), len(_STUDENT) + 1) - 2]
        mean, reach = fmean(losses), student * stdev(losses) / sqrt(len(losses))
        return Range(mean=mean, low=mean - reach, high=mean + reach)

    def micro_batches_to(self, loss: float) -> int | None:
        """Return the micro-batches until the mean held-out loss is first at most this."""
        tokens = self.tokens_to(loss)
        return None if tokens is None else tokens // max(_tokens(self.records[0]), 1)

    def seconds_to(self, loss: float) -> float | None:
        """Return the seconds of those micro-batches at the mean pace of the training runs."""
        number = self.micro_batches_to(loss)
        pace = self.micro_batches_per_second
        return number / pace if number is not None and pace else None

    def tokens_to(self, loss: float) -> int | None:
        """Return the tokens until the mean held-out loss is first at most this, None if never."""
        return next(
            (tokens for tokens, reached in self.losses.items() if reached.mean <= loss), None
        )

    @property
    def micro_batches_per_second(self) -> float:
        """Micro-batches a second, without the warm-up, loading of text and held-out losses."""
        samples = self._seconds("iteration")
        seconds = sum(samples)
        # A coarse clock may read 0.
        return len(samples) / seconds if seconds > 0 else 0.0

    @property
    def steps_per_second(self) -> float:
        """Optimizer steps a second, at the share of micro-batches that ended in a step."""
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
        """The median time of a decision not to step, None if every micro-batch led to a step."""
        samples = self._seconds("draw")
        return median(samples) if samples else None

    @property
    def added_bytes(self) -> int:
        """The most bytes of the accumulation's own tensors."""
        return max(_course(record).added_bytes for record in self.records)

    @property
    def dropped(self) -> int:
        """The micro-batches that were dropped because they were not finite."""
        return sum(_course(record).dropped for record in self.records)

    def _seconds(self, phase: str) -> list[float]:
        return [sample for record in self.records for sample in (record.times or {}).get(phase, ())]


def accumulations(records: Sequence[Record]) -> list[list[Accumulated]]:
    """Return the accumulations, grouped by model, optimizer and tokens, in the order of the run."""
    groups: dict[Scenario, dict[Scenario, list[Record]]] = {}
    for record in records:
        if record.course and record.times and record.watched and record.watched.tokens:
            scenario = replace(record.scenario, seed=0)
            ways = groups.setdefault(replace(scenario, accumulate=None), {})
            ways.setdefault(scenario, []).append(record)
    return [
        [Accumulated(records=tuple(seeds)) for seeds in ways.values()] for ways in groups.values()
    ]


def baseline(group: Sequence[Accumulated]) -> Accumulated:
    """Return the way that others are compared with.

    It steps after each micro-batch, else after the fewest that are fixed, else it is the first.
    """
    fixed = [way for way in group if way.micro_batches_a_step]
    return min(fixed, key=lambda way: way.micro_batches_a_step or 0, default=group[0])


def lowest(group: Sequence[Accumulated]) -> Accumulated | None:
    """Return the way with the lowest mean loss at the end, None without a finite one."""
    finite = [(way.final_loss.mean, way) for way in group if way.final_loss]
    return min(finite, key=lambda each: each[0])[1] if finite else None


def soonest(group: Sequence[Accumulated], loss: float | None) -> Accumulated | None:
    """Return the way that reached the loss with the fewest micro-batches; the faster of equals."""
    counts = [] if loss is None else [(way.micro_batches_to(loss), way) for way in group]
    reached = [(count, way.seconds_to(loss or 0) or 0.0, way) for count, way in counts if count]
    return min(reached, key=lambda each: each[:2])[2] if reached else None


def is_about_accumulation(records: Sequence[Record]) -> bool:
    """Return whether a run has training runs under accumulation, and nothing without one."""
    return any(record.course for record in records) and all(
        record.scenario.accumulate for record in records
    )


def common_loss(group: Sequence[Accumulated]) -> float | None:
    """Return the lowest mean loss that every accumulation of a group has reached.

    None if one of them has no finite loss.
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
    """Return the draws of the steps that ended in one of equal parts of a training run."""
    # Older records do not say where steps ended. For them, nothing counts as dropped.
    ends = course.ended or accumulate(course.draws)
    return [
        draws
        for draws, ended in zip(course.draws, ends, strict=True)
        if parts * (ended - 1) // len(course.losses) == part
    ]


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None
