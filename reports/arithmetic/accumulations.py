"""Accumulations: courses of training on text side by side, those that differ by their seed alone as one."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median

from profiler.record import Course, Record


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
        """The mean micro-batches of the steps that ended in each of so many parts of the course; None where none did."""
        return tuple(
            _mean([draws for record in self.records for draws in _draws_in(_course(record), part, parts)]) for part in range(parts)
        )

    @property
    def final_loss(self) -> Range:
        """The loss on held-out text at the end."""
        return Range.of([_course(record).held_out[-1].loss for record in self.records])

    @property
    def best_loss(self) -> Range:
        """The lowest loss on held-out text."""
        return Range.of([min(reading.loss for reading in _course(record).held_out) for record in self.records])

    @property
    def losses(self) -> dict[int, Range]:
        """The loss on held-out text, over the seeds, by the tokens read until then."""
        readings = zip(*(_course(record).held_out for record in self.records), strict=True)
        return {taken[0].micro_batches * _tokens(self.records[0]): Range.of([reading.loss for reading in taken]) for taken in readings}

    def tokens_to(self, loss: float) -> int | None:
        """The tokens until the held-out loss, averaged over the seeds, is first at most this; None where it never is."""
        return next((tokens for tokens, reached in self.losses.items() if reached.mean <= loss), None)

    @property
    def micro_batches_per_second(self) -> float:
        """Micro-batches a second over all courses, text and losses on held-out text apart."""
        samples = self._seconds("iteration")
        return len(samples) / sum(samples)

    @property
    def steps_per_second(self) -> float:
        """Optimizer steps a second."""
        return sum(len(_course(record).draws) for record in self.records) / sum(self._seconds("iteration"))

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
    """The ways to accumulate in groups of equal model, optimizer and tokens, in the order of the run."""
    groups: dict[str, dict[str, list[Record]]] = {}
    for record in records:
        if record.course and record.times and record.watched and record.watched.tokens:
            scenario = replace(record.scenario, seed=0)
            ways = groups.setdefault(repr(replace(scenario, accumulate=None)), {})
            ways.setdefault(repr(scenario), []).append(record)
    return [[Accumulated(records=tuple(found)) for found in ways.values()] for ways in groups.values()]


def common_loss(group: Sequence[Accumulated]) -> float:
    """The lowest loss that every way of a group has reached on average over its seeds: what tokens are counted to."""
    return max(min(reached.mean for reached in way.losses.values()) for way in group)


def _course(record: Record) -> Course:
    assert record.course is not None
    return record.course


def _tokens(record: Record) -> int:
    assert record.watched is not None
    return record.watched.tokens or 0


def _draws_in(course: Course, part: int, parts: int) -> list[int]:
    """The draws of the steps that ended in this one of the parts of the course's micro-batches."""
    found, ended = [], 0
    for draws in course.draws:
        ended += draws
        if parts * (ended - 1) // len(course.losses) == part:
            found.append(draws)
    return found


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None
