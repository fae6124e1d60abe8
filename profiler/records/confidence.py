"""Confidence: the interval that holds the true median 95 times in 100, for any distribution.

The true median lies between the k-th smallest and the k-th largest of n samples unless fewer than k
samples fall on one side of it. That number is binomial with probability one half (David and
Nagaraja, Order Statistics, 7.1).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

LEVEL = 0.95


@dataclass(frozen=True, kw_only=True)
class Interval:
    """Two samples, and the probability that the true median lies between them."""

    lower: float
    upper: float
    coverage: float


def median_interval(samples: Sequence[float], level: float = LEVEL) -> Interval | None:
    """Return the narrowest interval of at least `level`; None for too few samples.

    An interval of 95 % needs six.
    """
    rank, coverage = _rank(len(samples), level)
    if not rank:
        return None
    ordered = sorted(samples)
    return Interval(lower=ordered[rank - 1], upper=ordered[-rank], coverage=coverage)


@cache
def _rank(count: int, level: float) -> tuple[int, float]:
    """Return the largest k whose interval reaches the level, 0 for none, and its coverage."""
    rank, coverage, outside, ways = 0, 0.0, 0, 1
    for k in range(1, count // 2 + 1):
        outside += ways
        # The ways to choose k of the samples; computed anew for each k they would take seconds.
        ways = ways * (count - k + 1) // k
        covered = 1 - 2 * outside / 2**count
        if covered < level:
            break
        rank, coverage = k, covered
    return rank, coverage
