"""Ratios of two lists of times, with an interval for any distribution of the times.

The estimate is that of Hodges and Lehmann (1963): the median of all ratios of a later sample to an
earlier one. Its interval lies between the sorted ratios at the ranks that the Mann-Whitney
statistic gives (Moses). It holds if the two lists differ by a factor and their samples are
independent. Two long trainings have 100 million ratios, so the few ranks are found without the
others.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

CONFIDENCE = 0.95
# The Mann-Whitney distribution is counted up to so many samples in all, or on one side. Beyond, the
# normal distribution is as good.
COUNTED, COUNTED_SIDE = 60, 8
# Up to so many ratios, numpy sorts them all.
ALL_AT_ONCE = 100_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Ratio:
    """An estimated ratio, and the ends of its 95 % interval, None for too few samples."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def includes_one(self) -> bool:
        """Return whether the interval includes 1: the two lists may not differ at all."""
        return self.low is not None and self.high is not None and self.low <= 1 <= self.high

    @classmethod
    def of(cls, before: Sequence[float], after: Sequence[float]) -> "Ratio":
        """Return the ratio of `after` to `before`, two lists of seconds.

        ValueError for an empty list, or for seconds that are not > 0.
        """
        if not before or not after:
            raise ValueError(
                f"a ratio needs a sample on both sides, got {len(before)} and {len(after)}"
            )
        if (least := min(min(before), min(after))) <= 0:
            raise ValueError(f"a ratio needs times > 0, got {least}")
        count, outside = len(before) * len(after), ratios_outside(len(before), len(after))
        ranks = [(count - 1) // 2, count // 2]
        if outside is None:
            first, second = _ratios_of_ranks(before, after, ranks)
            return cls(value=(first + second) / 2)
        ranks += [outside, count - 1 - outside]
        first, second, low, high = _ratios_of_ranks(before, after, ranks)
        return cls(value=(first + second) / 2, low=low, high=high)


def _ratios_of_ranks(
    before: Sequence[float], after: Sequence[float], ranks: Sequence[int]
) -> list[float]:
    """Return the ratios of these ranks, from 0, among all ratios of `after` to `before`."""
    if len(before) * len(after) > ALL_AT_ONCE:
        ordered = sorted(before), sorted(after)
        return [_ratio_of_rank(*ordered, rank) for rank in ranks]
    # numpy loads slowly, and only a comparison of times needs it.
    import numpy as np

    # Partitioning is faster if the samples are sorted.
    ratios = np.divide.outer(
        np.sort(np.asarray(after, dtype=np.float64)), np.sort(np.asarray(before, dtype=np.float64))
    ).ravel()
    ratios.partition(ranks)
    return [float(ratios[rank]) for rank in ranks]


def _ratio_of_rank(before: Sequence[float], after: Sequence[float], rank: int) -> float:
    """Return the ratio of a rank among all ratios of two sorted lists, by bisection of its value.

    `low` and `high` are always ratios themselves.
    """
    low, high = after[0] / before[-1], after[-1] / before[0]
    while low < high:
        # The middle of two neighbouring floats may round up to `high`.
        middle = (low + high) / 2 if (low + high) / 2 < high else low
        # For each of `after`, how many of `before`, from the first, have a ratio above the middle.
        above, place = [], 0
        for late in after:
            while place < len(before) and late / before[place] > middle:
                place += 1
            above.append(place)
        places = zip(after, above, strict=True)
        if len(before) * len(after) - sum(above) > rank:
            high = max(late / before[place] for late, place in places if place < len(before))
        else:
            low = min(late / before[place - 1] for late, place in places if place)
    return low


@lru_cache
def ratios_outside(first: int, second: int) -> int | None:
    """Return the number of sorted ratios outside the interval at either end.

    None if even all ratios cover less than 95 %.
    """
    most = (1 - CONFIDENCE) / 2
    if first + second > COUNTED and min(first, second) > COUNTED_SIDE:
        deviation = math.sqrt(first * second * (first + second + 1) / 12)
        # Half a rank corrects for the continuous distribution.
        return math.floor(first * second / 2 + NormalDist().inv_cdf(most) * deviation - 0.5)
    total, covered = math.comb(first + second, first), 0
    for outside, count in enumerate(mann_whitney_ways(min(first, second), max(first, second))):
        covered += count
        if covered > most * total:
            return outside - 1 if outside else None
    raise AssertionError("half of the ways lie below the middle")


def mann_whitney_ways(first: int, second: int) -> list[int]:
    """Count the orders of both lists for each value of the statistic U, from 0 to first * second.

    They are the coefficients of a Gaussian binomial.
    """
    ways = [1] + [0] * (first * second)
    for step in range(1, first + 1):
        for value in range(len(ways) - 1, second + step - 1, -1):
            ways[value] -= ways[value - second - step]
        for value in range(step, len(ways)):
            ways[value] += ways[value - step]
    return ways
