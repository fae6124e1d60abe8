"""How sure a median is: the interval that holds the true one 95 times in 100, whatever the
distribution.

Between the k-th smallest and the k-th largest of n samples lies the true median unless fewer than k
samples fall on one side of it, and how many do is binomial with one half (David and Nagaraja, Order
Statistics, 7.1).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

LEVEL = 0.95


@dataclass(frozen=True, kw_only=True)
class Interval:
    """Two samples, and how likely the true median lies between them."""

    lower: float
    upper: float
    coverage: float


def median_interval(samples: Sequence[float], level: float = LEVEL) -> Interval | None:
    """The narrowest such interval of at least `level`; None where there are too few samples for
    one: six make the first of 95 %.
    """
    rank, coverage = _rank(len(samples), level)
    if not rank:
        return None
    ordered = sorted(samples)
    return Interval(lower=ordered[rank - 1], upper=ordered[-rank], coverage=coverage)


@cache
def _rank(count: int, level: float) -> tuple[int, float]:
    """The largest k whose interval reaches the level, 0 for none, and what it covers."""
    rank, coverage, outside, ways = 0, 0.0, 0, 1
    for k in range(1, count // 2 + 1):
        outside += ways
        # Of so many samples, the ways to choose k; counted afresh for each k they would take
        # seconds.
        ways = ways * (count - k + 1) // k
        covered = 1 - 2 * outside / 2**count
        if covered < level:
            break
        rank, coverage = k, covered
    return rank, coverage
