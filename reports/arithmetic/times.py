"""Times: medians and spreads of raw samples, and the share of an iteration that the optimizer's
step takes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles

from optprof.profiler.records.confidence import Interval, median_interval
from optprof.profiler.records.record import Record

PHASES = ("forward", "backward", "step")


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Raw samples in seconds, with their median and quartiles (inclusive method; a single sample is
    its own quartiles).
    """

    samples: tuple[float, ...]
    median: float
    lower: float
    upper: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> "Spread":
        """The spread of at least one sample; ValueError for none."""
        if not samples:
            raise ValueError("a spread needs at least one sample, got none")
        lower, _, upper = (
            quantiles(samples, n=4, method="inclusive") if len(samples) > 1 else (samples[0],) * 3
        )
        return cls(samples=tuple(samples), median=median(samples), lower=lower, upper=upper)

    @property
    def interval(self) -> Interval | None:
        """The 95 % confidence interval of the median; None for fewer than six samples."""
        return median_interval(self.samples)

    @property
    def smallest(self) -> float:
        """The fastest sample, in seconds."""
        return min(self.samples)

    @property
    def largest(self) -> float:
        """The slowest sample, in seconds."""
        return max(self.samples)


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How long one optimizer's step took on one device, and the passes around it where they were
    timed.
    """

    record: Record
    phases: Mapping[str, Spread]

    @property
    def step(self) -> Spread:
        """The optimizer's step."""
        return self.phases["step"]

    @property
    def iteration(self) -> float | None:
        """Seconds of a whole iteration, or the medians of its passes and step together; None where
        one of those was not timed.
        """
        if any(phase not in self.phases for phase in PHASES):
            return None
        if "iteration" in self.phases:
            return self.phases["iteration"].median
        return sum(self.phases[phase].median for phase in PHASES)


def tokens_per_second(record: Record) -> float | None:
    """Tokens that training reads in a second, by the median iteration; None where that is not
    known.
    """
    return _rate(record, record.watched.tokens if record.watched else None)


def samples_per_second(record: Record) -> float | None:
    """Sequences or images in a second, by the median iteration; None where that is not known."""
    return _rate(record, record.watched.samples if record.watched else None)


def _rate(record: Record, count: int | None) -> float | None:
    # Few of a course's iterations step, and what its rates are is told with it.
    seconds = (record.times or {}).get("iteration") if record.course is None else None
    middle = median(seconds) if seconds else 0.0
    # Nothing is known of what took no time by a coarse clock.
    return count / middle if count and middle > 0 else None


def timings(records: Sequence[Record]) -> list[Timing]:
    """The timings of every record whose step was timed, in the order of the run; a course of
    training has other times.
    """
    found = []
    for record in records:
        phases = {
            phase: Spread.of(samples) for phase, samples in (record.times or {}).items() if samples
        }
        if record.outcome == "ok" and record.course is None and "step" in phases:
            found.append(Timing(record=record, phases=phases))
    return found
