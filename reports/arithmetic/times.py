"""Times: medians, spreads and noise of raw samples, of the step and of whole iterations."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles

from optprof.profiler.records.confidence import Interval, median_interval
from optprof.profiler.records.record import Record

from ..units import percent_text

PHASES = ("forward", "backward", "step")
# A median is noise if its interval reaches further than this: a comparison reports changes of 5 %.
NOISY = 0.05
# Warnings of the harness and of NVML about times; a record's other warnings are about its bytes.
_DISTURBED = re.compile(
    r"other processes took|times still changed by|the GPU was slowed down by"
    r"|\d+ other process(?:es)? had memory on the GPU|the GPU's clock went from"
)
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
    def reach(self) -> float | None:
        """The interval's longer side, from the median, as a share of the median.

        None for fewer than six samples, and for a clock that reads 0.
        """
        interval, middle = self.interval, self.median
        if interval is None or middle <= 0:
            return None
        return max(interval.upper - middle, middle - interval.lower) / middle

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

    def noise(self, phase: str = "step") -> str:
        """Why the median of a phase is noise; empty for a sound one."""
        return noise(self.record, phase)


def noise(record: Record, phase: str = "step") -> str:
    """Return why the median of a phase is noise, in a few words; empty for a sound one.

    A median is noise if its 95 % interval reaches more than NOISY from it, if fewer than six
    samples leave it without an interval, or if the record warns of a disturbance: other processes,
    times that never settled, a GPU that was slowed down or shared. The ratio of two noisy medians
    has an interval of its own (`Ratio`), which may still show a large difference.
    """
    samples = (record.times or {}).get(phase)
    if not samples:
        return ""
    spread = Spread.of(samples)
    if spread.interval is None:
        reasons = [f"only {len(samples)} sample{'s' if len(samples) > 1 else ''}"]
    else:
        reach = spread.reach or 0.0
        reasons = [f"\u00b1{percent_text(reach, 1)}"] if reach > NOISY else []
    return ", ".join([*reasons, *disturbances(record)])


def disturbances(record: Record) -> list[str]:
    """Return what disturbed the record's times: no interval of its samples knows of it."""
    warnings = record.watched.warnings if record.watched else ()
    return [warning for warning in warnings if _DISTURBED.match(warning)]


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
