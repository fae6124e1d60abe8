"""The wrappers' rules: pure functions of the draws since the last step.

The draws are d micro-batches, whose gradients g_1 .. g_d have the mean G.
"""

from collections.abc import Sequence
from math import atan, cos, inf, pi, sin, sqrt
from statistics import fmean, stdev, variance


def norm_is_low(norm: float, threshold: float) -> bool:
    """Return |G| <= threshold.

    The noise of independent gradients averages out, so the norm of their mean falls with d.
    """
    return norm <= threshold


def factor_to_norm(norm: float, target: float) -> float:
    """Return the factor from a gradient's norm to the target, 0 for a gradient of zeros."""
    return target / norm if norm > 0 else 0.0


def batch_is_full(draws: int, micro_batch_size: float, batch_size: float) -> bool:
    """Return whether d micro-batches have at least `batch_size` samples."""
    return draws * micro_batch_size >= batch_size


def noise_is_low(noise: float, draws: int, tolerance: float) -> bool:
    """Return whether the noise scale, in micro-batches, is at most tolerance times the draws."""
    return noise <= draws * tolerance


def spread_of_norms(norms: Sequence[float]) -> float:
    """Return torch-gqc's noise scale: the unbiased var(|g_i|) over mean(|g_i|^2).

    It is infinite for fewer than two norms.
    """
    if len(norms) < 2:
        return inf
    return variance(norms) / (fmean(norm**2 for norm in norms) + 1e-8)


def noise_and_signal(norms: Sequence[float], mean_norm: float) -> tuple[float, float]:
    """Return unbiased estimates of tr(Sigma) of a micro-batch's gradient and |true gradient|^2.

    The second may be below 0. They come from n >= 2 small batches of norms |g_i| and their large
    batch of norm |G|: equations A.2 of McCandlish et al., https://arxiv.org/abs/1812.06162, counted
    in micro-batches, so B_small = 1 and B_big = n.
    """
    count, small, big = len(norms), fmean(norm**2 for norm in norms), mean_norm**2
    return (small - big) / (1 - 1 / count), (count * big - small) / (count - 1)


def noise_scale(noise: float, signal: float) -> float:
    """Return McCandlish's B_simple, tr(Sigma) / |true gradient|^2, in micro-batches.

    It is infinite without a signal.
    """
    return max(noise, 0.0) / signal if signal > 0 else inf


def mean_is_known(values: Sequence[float], confidence: float, error: float) -> bool:
    """Return whether Student's confidence interval of the mean is within `error` times the mean.

    False for fewer than two values. The interval at level c extends t_c standard errors, so it is
    inside a distance if the coverage of that distance is at least c.
    """
    if len(values) < 2:
        return False
    standard_error = stdev(values) / sqrt(len(values)) + 1e-12
    return coverage(error * abs(fmean(values)) / standard_error, len(values) - 1) >= confidence


def coverage(distance: float, freedom: int) -> float:
    """Return P(|T| <= distance) for Student's t with a whole number of degrees of freedom.

    By the finite series of Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and
    26.7.4.
    """
    angle = atan(distance / sqrt(freedom))
    odd = freedom % 2
    term, total = (cos(angle) if odd else 1.0), 0.0
    for place in range(2 + odd, freedom + 1, 2):
        total += term
        term *= cos(angle) ** 2 * (place - 1) / place
    return (2 / pi) * (angle + sin(angle) * total) if odd else sin(angle) * total
