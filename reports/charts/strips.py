"""Strips: the samples of each step's time along one scale, with quartiles, the median and its
confidence interval.
"""

import math
from dataclasses import dataclass, replace

from ..arithmetic.findings import Findings, pictured
from ..arithmetic.labels import optimizer_key
from ..arithmetic.times import Timing, at_even_ranks
from ..phrases import step_text
from ..units import Sized
from .bars import grouped
from .chart import Bar, Chart, round_seconds_text

# Beyond this ratio a linear scale would press the fast ones together.
LOG_FROM = 10


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Seconds along a row: linear from 0, or logarithmic where times are far apart."""

    low: float
    high: float

    @classmethod
    def of(cls, smallest: float, largest: float) -> "Scale":
        """A scale with room for times from the smallest to the largest."""
        far = largest > LOG_FROM * smallest > 0
        return cls(low=smallest / 1.15 if far else 0.0, high=largest * (1.15 if far else 1.05))

    def place(self, seconds: float) -> float:
        """Where a time stands, in per cent of the row."""
        if self.low:
            return 100 * math.log(seconds / self.low) / math.log(self.high / self.low)
        return 100 * seconds / self.high

    @property
    def ticks(self) -> tuple[tuple[float, str], ...]:
        """The places of round times, and what they are called."""
        times = self._powers() if self.low else self._multiples()
        return tuple((self.place(seconds), round_seconds_text(seconds)) for seconds in times)

    def _powers(self) -> list[float]:
        decades = math.log10(self.high / self.low)
        steps = (1, 2, 5) if decades < 2.5 else (1,)
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        found = [step * 10.0**power for power in range(first, last + 1) for step in steps]
        return [seconds for seconds in found if self.low <= seconds <= self.high]

    def _multiples(self) -> list[float]:
        rough = self.high / 4
        unit = 10.0 ** math.floor(math.log10(rough))
        step = unit * next(digit for digit in (1, 2, 5, 10) if digit * unit >= rough)
        return [number * step for number in range(int(self.high / step) + 1)]


def step_chart(findings: Findings, chart: Chart) -> Chart:
    """A row for each timing, all in one scale."""
    rows, _ = pictured(findings.timings, findings.setting_of)
    scale = Scale.of(min(row.step.smallest for row in rows), max(row.step.largest for row in rows))
    groups = grouped(
        findings,
        [(findings.setting_of(row), _strip(findings, row, scale)) for row in rows],
        scale.ticks,
    )
    return replace(chart, groups=groups, explains_samples=True)


def _strip(findings: Findings, row: Timing, scale: Scale) -> Bar:
    step, value = row.step, step_text(row)
    return Bar(
        label=findings.timing_label(row),
        mark=findings.labels[optimizer_key(row.record.scenario)],
        origin=row.record.origin,
        value=Sized(binary=value, decimal=value),
        samples=tuple(map(scale.place, at_even_ranks(step.samples))),
        band=(scale.place(step.lower), scale.place(step.upper)),
        whisker=(scale.place(step.interval.lower), scale.place(step.interval.upper))
        if step.interval
        else None,
        median=scale.place(step.median),
    )
