"""When to step: what each wrapper decides, and nothing else.

Every rule is a function of what was drawn since the last step: d micro-batches, whose gradients g_1
.. g_d have the mean G.
"""

from collections.abc import Sequence
from math import atan, cos, inf, pi, sin, sqrt
from statistics import fmean, stdev, variance


def norm_is_low(norm: float, threshold: float) -> bool:
    """|G| <= threshold: the noise of d independent gradients averages out, so the norm of their
    mean falls as d grows.
    """
    return norm <= threshold


def factor_to_norm(norm: float, wanted: float) -> float:
    """What brings a gradient of this norm to the wanted one; 0 for a gradient of zeros."""
    return wanted / norm if norm > 0 else 0.0


def batch_is_full(draws: int, micro_batch_size: float, batch_size: float) -> bool:
    """d micro-batches hold at least `batch_size` samples."""
    return draws * micro_batch_size >= batch_size


def noise_is_low(noise: float, draws: int, tolerance: float) -> bool:
    """The noise scale, in micro-batches, is at most tolerance times those that were drawn."""
    return noise <= draws * tolerance


def spread_of_norms(norms: Sequence[float]) -> float:
    """var(|g_i|) / mean(|g_i|^2), the variance unbiased: torch-gqc's noise scale; infinite for
    fewer than two.
    """
    if len(norms) < 2:
        return inf
    return variance(norms) / (fmean(norm**2 for norm in norms) + 1e-8)


def noise_and_signal(norms: Sequence[float], mean_norm: float) -> tuple[float, float]:
    """Unbiased estimates of tr(Sigma) of one micro-batch's gradient, and of |true gradient|^2,
    which may come out below 0.

    From n >= 2 small batches of norms |g_i| and the large batch of them all, of norm |G|: equations
    A.2 of McCandlish et al., https://arxiv.org/abs/1812.06162, with batches counted in
    micro-batches, B_small = 1 and B_big = n.
    """
    count, small, big = len(norms), fmean(norm**2 for norm in norms), mean_norm**2
    return (small - big) / (1 - 1 / count), (count * big - small) / (count - 1)


def noise_scale(noise: float, signal: float) -> float:
    """tr(Sigma) / |true gradient|^2 in micro-batches, McCandlish's B_simple; infinite where no
    signal is seen.
    """
    return max(noise, 0.0) / signal if signal > 0 else inf


def mean_is_known(values: Sequence[float], confidence: float, error: float) -> bool:
    """Student's confidence interval of the mean of two values or more lies within `error` times the
    mean around it.

    The interval of coverage c reaches t_c standard errors out, so it lies inside where the coverage
    of that distance is at least c.
    """
    if len(values) < 2:
        return False
    standard_error = stdev(values) / sqrt(len(values)) + 1e-12
    return coverage(error * abs(fmean(values)) / standard_error, len(values) - 1) >= confidence


def coverage(distance: float, freedom: int) -> float:
    """P(|T| <= distance) for Student's t with a whole number of degrees of freedom.

    The finite series of Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and
    26.7.4.
    """
    angle = atan(distance / sqrt(freedom))
    odd = freedom % 2
    term, total = (cos(angle) if odd else 1.0), 0.0
    for place in range(2 + odd, freedom + 1, 2):
        total += term
        term *= cos(angle) ** 2 * (place - 1) / place
    return (2 / pi) * (angle + sin(angle) * total) if odd else sin(angle) * total
