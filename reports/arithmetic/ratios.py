"""Ratios of two lists of times, with an interval that asks nothing of how the times are distributed.

The estimate is Hodges and Lehmann's (1963): the median of all ratios of a later sample to an earlier one. Its interval is read off the same
sorted ratios at the ranks that the Mann-Whitney statistic gives (Moses). It holds where the two lists differ by a factor and their samples
are independent of each other.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist, median

CONFIDENCE = 0.95
# Up to so many samples together the Mann-Whitney distribution is counted out, beyond that it is as good as normal.
COUNTED = 60


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """How many times as long: the estimate, and the ends of its 95 % interval, None where there are too few samples for one."""

    value: float
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, before: Sequence[float], after: Sequence[float]) -> "Ratio":
        """The ratio of `after` to `before`, seconds of which each list has one or more; ValueError for none, or for one that is not > 0."""
        if not before or not after:
            raise ValueError(f"a ratio needs a sample on both sides, got {len(before)} and {len(after)}")
        if min(*before, *after) <= 0:
            raise ValueError(f"a ratio needs times > 0, got {min(*before, *after)}")
        ratios = sorted(late / early for late in after for early in before)
        outside = ratios_outside(len(before), len(after))
        if outside is None:
            return cls(value=median(ratios))
        return cls(value=median(ratios), low=ratios[outside], high=ratios[-1 - outside])


@lru_cache
def ratios_outside(first: int, second: int) -> int | None:
    """How many of the sorted ratios lie outside the interval at either end; None where all of them cover less than 95 %."""
    most = (1 - CONFIDENCE) / 2
    if first + second > COUNTED:
        deviation = math.sqrt(first * second * (first + second + 1) / 12)
        # Half a rank for the step from a count to a continuous distribution.
        return math.floor(first * second / 2 + NormalDist().inv_cdf(most) * deviation - 0.5)
    ways, total, covered = mann_whitney_ways(first, second), math.comb(first + second, first), 0
    for outside, count in enumerate(ways):
        covered += count
        if covered > most * total:
            return outside - 1 if outside else None
    raise AssertionError("half of the ways lie below the middle")


def mann_whitney_ways(first: int, second: int) -> list[int]:
    """In how many orders of both lists the statistic U takes each value from 0 to first * second: a Gaussian binomial coefficient."""
    ways = [1] + [0] * (first * second)
    for step in range(1, first + 1):
        for value in range(len(ways) - 1, second + step - 1, -1):
            ways[value] -= ways[value - second - step]
        for value in range(step, len(ways)):
            ways[value] += ways[value - step]
    return ways
