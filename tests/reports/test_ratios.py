"""The ratio of two lists of times, checked by sums on paper, printed tables and scipy."""

import itertools
import math
import random
import tracemalloc
from statistics import median

import pytest
from scipy.stats import mannwhitneyu

from optprof.reports.arithmetic.ratios import Ratio, mann_whitney_ways, ratios_outside


def test_the_orders_of_two_and_two_are_counted_on_paper():
    # aabb 0, abab 1, abba and baab 2, baba 3, bbaa 4.
    assert mann_whitney_ways(2, 2) == [1, 1, 2, 1, 1]


@pytest.mark.parametrize(
    ("first", "second", "critical"), [(4, 4, 0), (5, 5, 2), (9, 9, 17), (8, 10, 17), (20, 20, 127)]
)
def test_the_ranks_are_the_critical_values_of_the_printed_tables(
    first: int, second: int, critical: int
):
    # Two-sided 5 %, as tables of the Mann-Whitney U print them.
    assert ratios_outside(first, second) == critical


def test_three_and_three_are_too_few():
    assert ratios_outside(3, 3) is None
    assert Ratio.of((1.0, 1.0, 1.0), (2.0, 2.0, 2.0)) == Ratio(value=2.0)


def test_beyond_the_counted_ranks_the_next_ones_follow_without_a_jump():
    ranks = [ratios_outside(30, 30) or 0, ratios_outside(30, 31) or 0, ratios_outside(31, 31) or 0]
    # Tables print 317 for 30 and 30; each further sample adds about eleven.
    assert ranks[0] == 317
    assert all(9 <= later - sooner <= 13 for sooner, later in itertools.pairwise(ranks))


@pytest.mark.parametrize("few", range(1, 12))
@pytest.mark.parametrize("many", [20, 60, 61, 5_000])
def test_an_interval_never_exceeds_its_ratios_or_passes_its_middle(few: int, many: int):
    outside = ratios_outside(few, many)
    assert outside == ratios_outside(many, few)
    assert outside is None or 0 <= outside < few * many / 2


def test_one_sample_against_sixty_is_counted():
    # One sample has 61 equally likely places among sixty. Without the outermost at either end 59 of
    # 61 remain, 96.7 %; without two at either end, 93.4 %.
    assert ratios_outside(1, 60) == 0
    assert ratios_outside(1, 19) is None


def test_long_lists_have_the_ratios_that_sorting_all_of_them_gives():
    chance = random.Random(8)
    before, after = (
        [round(chance.lognormvariate(0, 0.3), 2) for _ in range(count)] for count in (140, 111)
    )
    ratios = sorted(late / early for late in after for early in before)
    outside = ratios_outside(140, 111)
    assert outside is not None
    assert Ratio.of(before, after) == Ratio(
        value=median(ratios), low=ratios[outside], high=ratios[-1 - outside]
    )
    assert Ratio.of([1.0] * 100, [3.0] * 100) == Ratio(value=3.0, low=3.0, high=3.0)


def test_two_long_lists_are_compared_in_little_memory():
    chance = random.Random(9)
    before, after = (
        [factor * math.exp(chance.gauss(0, 0.1)) for _ in range(2_000)] for factor in (1.0, 1.1)
    )
    tracemalloc.start()
    ratio = Ratio.of(before, after)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert ratio.low is not None
    assert ratio.high is not None
    assert 1.08 < ratio.low < ratio.value < ratio.high < 1.12
    # All four million ratios would be 128 MB.
    assert most < 2_000_000


def test_four_and_four_reach_from_the_least_ratio_to_the_largest():
    ratio = Ratio.of((1.0, 2.0, 4.0, 8.0), (2.0, 4.0, 8.0, 16.0))
    # The sixteen ratios: one 1/4, two 1/2, three 1, four 2, three 4, two 8, one 16.
    assert (ratio.value, ratio.low, ratio.high) == (2.0, 0.25, 16.0)


def test_five_and_five_leave_two_ratios_out_at_either_end():
    before, after = (1.0, 1.0, 1.0, 1.0, 2.0), (3.0, 3.0, 3.0, 3.0, 6.0)
    # 25 ratios: four of 3/2, seventeen of 3 (16 and 6/2), four of 6.
    assert Ratio.of(before, after) == Ratio(value=3.0, low=1.5, high=6.0)


def test_the_interval_has_exactly_the_factors_that_scipy_s_test_accepts():
    before = (1.00, 1.07, 1.13, 0.94, 1.21, 1.02, 0.98, 1.31)
    after = (1.19, 1.28, 1.09, 1.41, 1.16, 1.23, 1.52)
    ratio = Ratio.of(before, after)
    assert ratio.low is not None
    assert ratio.high is not None

    def rejected(factor: float) -> bool:
        return (
            mannwhitneyu(after, [factor * sample for sample in before], method="exact").pvalue
            <= 0.05
        )

    assert rejected(0.999 * ratio.low)
    assert not rejected(1.001 * ratio.low)
    assert not rejected(0.999 * ratio.high)
    assert rejected(1.001 * ratio.high)


@pytest.mark.parametrize(("before", "after"), [((), (1.0,)), ((1.0,), ()), ((0.0,), (1.0,))])
def test_without_samples_or_with_a_time_of_0_a_ratio_is_an_error(
    before: tuple[float, ...], after: tuple[float, ...]
):
    with pytest.raises(ValueError, match="a ratio needs"):
        Ratio.of(before, after)


def test_the_interval_has_the_true_factor_95_times_in_100():
    chance = random.Random(6)

    def times(factor: float) -> list[float]:
        return [factor * math.exp(chance.gauss(0, 0.1)) for _ in range(9)]

    ratios = [Ratio.of(times(1), times(1.1)) for _ in range(1000)]
    covered = sum((ratio.low or 0) <= 1.1 <= (ratio.high or 0) for ratio in ratios)
    # The counted orders give 96.0 %; three standard deviations of 1,000 draws are 19.
    assert 941 <= covered <= 979
