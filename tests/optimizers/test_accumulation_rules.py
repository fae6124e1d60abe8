"""The rules of accumulation against sequences by hand and scipy's t distribution."""

from math import inf, sqrt

import pytest
import torch

from optprof.optimizers.accumulation import rules


def test_a_norm_at_the_threshold_is_low_enough() -> None:
    assert [rules.norm_is_low(norm, 0.5) for norm in (0.6, 0.5, 0.4)] == [False, True, True]


def test_a_gradient_is_brought_to_its_norm_and_zeros_stay_zeros() -> None:
    assert rules.factor_to_norm(4.0, 0.5) == 0.125
    assert rules.factor_to_norm(0.0, 0.5) == 0.0


def test_a_batch_is_full_when_it_holds_its_samples() -> None:
    # 20 samples of 8: two draws hold 16, three 24.
    assert [rules.batch_is_full(draws, 8, 20) for draws in (1, 2, 3)] == [False, False, True]


def test_the_spread_of_norms_is_their_variance_over_their_mean_square() -> None:
    assert rules.spread_of_norms([2.0]) == inf
    # mean 3, variance ((1 + 1) / 1) = 2, mean square (4 + 16) / 2 = 10
    assert rules.spread_of_norms([2.0, 4.0]) == pytest.approx(0.2)
    assert [rules.noise_is_low(0.2, draws, 0.1) for draws in (1, 2)] == [False, True]


def test_noise_and_signal_of_orthogonal_noise_are_exact() -> None:
    # Gradients (3, 1) and (3, -1): |g_i|^2 = 10, mean (3, 0). tr(Sigma) unbiased is 2 of the second
    # coordinate, |G|^2 = 9 - 2 / 2.
    noise, signal = rules.noise_and_signal([sqrt(10), sqrt(10)], 3.0)
    assert (noise, signal) == (pytest.approx(2.0), pytest.approx(8.0))
    assert rules.noise_scale(noise, signal) == pytest.approx(0.25)
    assert rules.noise_scale(1.0, -1.0) == inf
    assert rules.noise_scale(-1.0, 1.0) == 0.0


def test_the_estimated_noise_scale_is_that_of_gradients_of_known_noise() -> None:
    # |G|^2 = 4 and tr(Sigma) = 50 * 0.3^2 = 4.5, by construction.
    generator = torch.Generator().manual_seed(0)
    truth = torch.zeros(50, dtype=torch.float64)
    truth[0] = 2.0
    estimates = []
    for _ in range(2000):
        grads = truth + 0.3 * torch.randn(8, 50, generator=generator, dtype=torch.float64)
        estimates.append(
            rules.noise_and_signal(grads.norm(dim=1).tolist(), grads.mean(0).norm().item())
        )
    noise, signal = torch.tensor(estimates).mean(0).tolist()
    assert noise == pytest.approx(4.5, rel=0.01)
    assert signal == pytest.approx(4.0, rel=0.01)


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 8, 15, 64, 127])
def test_the_coverage_is_students(freedom: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    for distance in (0.0, 0.1, 1.0, 2.5, 12.0):
        assert rules.coverage(distance, freedom) == pytest.approx(
            1 - 2 * stats.t.sf(distance, freedom), abs=1e-12
        )


def test_a_mean_is_known_when_its_interval_is_narrow() -> None:
    # 9 and 11: mean 10, standard error 1; with one degree of freedom half of all fall within one of
    # them.
    assert rules.mean_is_known([9.0, 11.0], 0.5, 0.1001)
    assert not rules.mean_is_known([9.0, 11.0], 0.5, 0.099)
    assert not rules.mean_is_known([9.0, 11.0], 0.501, 0.1001)
    assert rules.mean_is_known([-9.0, -11.0], 0.5, 0.1001)
    assert not rules.mean_is_known([9.0], 0.5, 0.1)
    assert rules.mean_is_known([3.0, 3.0], 0.99, 0.01)
    assert not rules.mean_is_known([-1.0, 1.0], 0.5, 0.1)
