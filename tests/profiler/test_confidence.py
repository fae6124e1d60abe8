"""The interval of a median, against counts by hand and against draws whose median is known."""

import random

import pytest

from optprof.profiler.records.confidence import median_interval


@pytest.mark.parametrize(
    ("count", "rank", "coverage"),
    [
        # All six on one side: 2 of 64 ways.
        (6, 1, 1 - 2 / 64),
        # None or one of eight on one side: 2 * (1 + 8) of 256 ways would be 7 %, so the extremes.
        (8, 1, 1 - 2 / 256),
        # None or one of nine: 2 * (1 + 9) of 512.
        (9, 2, 1 - 20 / 512),
        # Up to one of ten: 2 * (1 + 10) of 1024; up to two would be 2 * 56, 11 %.
        (10, 2, 1 - 22 / 1024),
        # Up to five of twenty: 2 * (1 + 20 + 190 + 1140 + 4845 + 15504) of 2**20.
        (20, 6, 1 - 43_400 / 2**20),
    ],
)
def test_the_interval_is_the_one_worked_out_by_hand(count: int, rank: int, coverage: float):
    samples = list(range(1, count + 1))
    random.Random(0).shuffle(samples)
    interval = median_interval(samples)
    assert interval is not None
    assert (interval.lower, interval.upper) == (rank, count + 1 - rank)
    assert interval.coverage == pytest.approx(coverage, abs=1e-12)


def test_five_samples_have_no_interval_of_95_per_cent():
    assert median_interval([1.0] * 5) is None
    assert median_interval([]) is None
    assert median_interval([1.0] * 5, level=0.9) is not None


def test_the_true_median_lies_inside_as_often_as_the_interval_says():
    draw, inside = random.Random(1), 0
    for _ in range(4_000):
        interval = median_interval([draw.expovariate(1.0) for _ in range(15)])
        assert interval is not None
        inside += interval.lower <= 0.6931472 <= interval.upper
    # Of 15, four or more on both sides: 1 - 2 * 576 / 2**15.
    assert inside / 4_000 == pytest.approx(0.9648, abs=0.01)
