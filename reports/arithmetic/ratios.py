"""Ratios of two lists of times, with an interval that asks nothing of how the times are
distributed.

The estimate is Hodges and Lehmann's (1963): the median of all ratios of a later sample to an
earlier one. Its interval is read off the same sorted ratios at the ranks that the Mann-Whitney
statistic gives (Moses). It holds where the two lists differ by a factor and their samples are
independent of each other. Of two long trainings all ratios would be 100 million, so the few ranks
are found without the others.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

CONFIDENCE = 0.95
# Up to so many samples together, or on one side, the Mann-Whitney distribution is counted out;
# beyond that it is as good as normal.
COUNTED, COUNTED_SIDE = 60, 8
# So many ratios are soon sorted, and so many more by numpy.
FEW, ALL_AT_ONCE = 1_000, 100_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Ratio:
    """How many times as long: the estimate, and the ends of its 95 % interval, None where there are
    too few samples for one.
    """

    value: float
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, before: Sequence[float], after: Sequence[float]) -> "Ratio":
        """The ratio of `after` to `before`, seconds of which each list has one or more; ValueError
        for none, or for one that is not > 0.
        """
        if not before or not after:
            raise ValueError(
                f"a ratio needs a sample on both sides, got {len(before)} and {len(after)}"
            )
        if (least := min(min(before), min(after))) <= 0:
            raise ValueError(f"a ratio needs times > 0, got {least}")
        count, outside = len(before) * len(after), ratios_outside(len(before), len(after))
        ranks = [
            (count - 1) // 2,
            count // 2,
            *([] if outside is None else [outside, count - 1 - outside]),
        ]
        found = _ratios_of_ranks(before, after, ranks)
        return cls(
            value=(found[0] + found[1]) / 2,
            low=found[2] if found[2:] else None,
            high=found[3] if found[2:] else None,
        )


def _ratios_of_ranks(
    before: Sequence[float], after: Sequence[float], ranks: Sequence[int]
) -> list[float]:
    """The ratios of these ranks, from 0, among all ratios of `after` to `before`."""
    if len(before) * len(after) > ALL_AT_ONCE:
        ratios = _Ratios(before=sorted(before), after=sorted(after))
        return [ratios[rank] for rank in ranks]
    # Only what compares times loads numpy, which takes a moment.
    import numpy as np

    # Sorted samples make ratios in order, of which four ranks take two thirds of the time.
    found = np.divide.outer(
        np.sort(np.asarray(after, dtype=np.float64)), np.sort(np.asarray(before, dtype=np.float64))
    ).ravel()
    found.partition(ranks)
    return [float(found[rank]) for rank in ranks]


@dataclass(frozen=True, kw_only=True)
class _Ratios:
    """All ratios of `after` to `before`, which are sorted, as one sorted list that is never
    made.
    """

    before: Sequence[float]
    after: Sequence[float]

    def __len__(self) -> int:
        return len(self.before) * len(self.after)

    def __getitem__(self, rank: int) -> float:
        """The ratio of that rank, from 0: it lies from `low` to `high`, two ratios that come nearer
        until few are between them.
        """
        low, high = self.after[0] / self.before[-1], self.after[-1] / self.before[0]
        # For each of `after`, how many of `before`, from the first, make a ratio from `low` on, and
        # how many one above `high`.
        from_low, above_high = [len(self.before)] * len(self.after), [0] * len(self.after)
        while sum(from_low) - sum(above_high) > FEW and low < high:
            # Of two neighbouring numbers the middle is one of them.
            middle = (low + high) / 2 if (low + high) / 2 < high else low
            above = self._above(middle)
            if len(self) - sum(above) > rank:
                high, above_high = self._last_within(above), above
            else:
                low, from_low = self._first_beyond(above), above
        if low == high:
            return high
        places = zip(self.after, above_high, from_low, strict=True)
        between = sorted(
            late / early for late, first, last in places for early in self.before[first:last]
        )
        return between[rank - (len(self) - sum(from_low))]

    def _above(self, value: float) -> list[int]:
        """For each of `after`, how many of `before`, from the first, make a ratio above the
        value.
        """
        found, place = [], 0
        for late in self.after:
            while place < len(self.before) and late / self.before[place] > value:
                place += 1
            found.append(place)
        return found

    def _last_within(self, above: Sequence[int]) -> float:
        """The largest ratio that is not above the value."""
        return max(
            late / self.before[place]
            for late, place in zip(self.after, above, strict=True)
            if place < len(self.before)
        )

    def _first_beyond(self, above: Sequence[int]) -> float:
        """The smallest ratio that is."""
        return min(
            late / self.before[place - 1]
            for late, place in zip(self.after, above, strict=True)
            if place
        )


@lru_cache
def ratios_outside(first: int, second: int) -> int | None:
    """How many of the sorted ratios lie outside the interval at either end; None where all of them
    cover less than 95 %.
    """
    most = (1 - CONFIDENCE) / 2
    if first + second > COUNTED and min(first, second) > COUNTED_SIDE:
        deviation = math.sqrt(first * second * (first + second + 1) / 12)
        # Half a rank for the step from a count to a continuous distribution.
        return math.floor(first * second / 2 + NormalDist().inv_cdf(most) * deviation - 0.5)
    ways, total, covered = (
        mann_whitney_ways(min(first, second), max(first, second)),
        math.comb(first + second, first),
        0,
    )
    for outside, count in enumerate(ways):
        covered += count
        if covered > most * total:
            return outside - 1 if outside else None
    raise AssertionError("half of the ways lie below the middle")


def mann_whitney_ways(first: int, second: int) -> list[int]:
    """In how many orders of both lists the statistic U takes each value from 0 to first * second: a
    Gaussian binomial coefficient.
    """
    ways = [1] + [0] * (first * second)
    for step in range(1, first + 1):
        for value in range(len(ways) - 1, second + step - 1, -1):
            ways[value] -= ways[value - second - step]
        for value in range(step, len(ways)):
            ways[value] += ways[value - step]
    return ways
