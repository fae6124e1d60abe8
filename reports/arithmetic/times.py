"""Times: medians and spreads of raw samples, of the optimizer's step and of whole iterations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles

from optprof.profiler.records.confidence import Interval, median_interval
from optprof.profiler.records.record import Record

PHASES = ("forward", "backward", "step")
# More marks along a row would only cover each other.
MOST_SHOWN = 200
THINNED = (
    f"Of more than {MOST_SHOWN} samples {MOST_SHOWN} are drawn, at even ranks from the fastest to"
    " the slowest."
)


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Raw samples in seconds, with their median and their quartiles by the inclusive method."""

    samples: tuple[float, ...]
    median: float
    lower: float
    upper: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> "Spread":
        """Return the spread of the samples; ValueError for none. One is its own quartiles."""
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
    """The times of one optimizer's step on one device, and of the passes around it if timed."""

    record: Record
    phases: Mapping[str, Spread]

    @property
    def step(self) -> Spread:
        """The optimizer's step."""
        return self.phases["step"]

    @property
    def iteration(self) -> float | None:
        """Median seconds of an iteration, or the sum of its passes and step; None without them."""
        if any(phase not in self.phases for phase in PHASES):
            return None
        if "iteration" in self.phases:
            return self.phases["iteration"].median
        return sum(self.phases[phase].median for phase in PHASES)


def tokens_per_second(record: Record) -> float | None:
    """Return the tokens read in a second of the median iteration, None if unknown."""
    return _rate(record, record.watched.tokens if record.watched else None)


def samples_per_second(record: Record) -> float | None:
    """Return the sequences or images in a second of the median iteration, None if unknown."""
    return _rate(record, record.watched.samples if record.watched else None)


def _rate(record: Record, count: int | None) -> float | None:
    # Few iterations of an accumulation step. Its own tables show its rates.
    seconds = (record.times or {}).get("iteration") if record.course is None else None
    middle = median(seconds) if seconds else 0.0
    # A coarse clock may read 0.
    return count / middle if count and middle > 0 else None


def timings(records: Sequence[Record]) -> list[Timing]:
    """Return the timings of every record whose step was timed; an accumulation has other times."""
    rows = []
    for record in records:
        phases = {
            phase: Spread.of(samples) for phase, samples in (record.times or {}).items() if samples
        }
        if record.outcome == "ok" and record.course is None and "step" in phases:
            rows.append(Timing(record=record, phases=phases))
    return rows


def at_even_ranks(samples: Sequence[float], most: int = MOST_SHOWN) -> tuple[float, ...]:
    """Return the samples, thinned to `most` at even ranks from the fastest to the slowest."""
    if len(samples) <= most:
        return tuple(samples)
    ordered = sorted(samples)
    return tuple(ordered[round(number * (len(ordered) - 1) / (most - 1))] for number in range(most))


def thinning_notes(rows: Sequence[Sequence[float]]) -> tuple[str, ...]:
    """Return the note on thinned rows if there are any."""
    return (THINNED,) if any(len(samples) > MOST_SHOWN for samples in rows) else ()
