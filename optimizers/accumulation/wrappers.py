"""The five wrappers of gradient quality control: when each steps, and with what.

After torch-gqc (https://pypi.org/project/torch-gqc/), written from its rules; `accumulation` is what they share.
"""

import weakref
from collections.abc import Callable, Sequence
from math import isfinite
from statistics import fmean
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from ..checks import require_fraction, require_positive
from ..sharded import is_sharded
from . import ranks, rules
from .accumulation import Accumulation, DistributedMode
from .norms import FreshNorms
from .statistics import Aggregate

Estimator = Literal["norms", "mccandlish"]


class GradientNormThreshold(Accumulation):
    """GNTS: step once the norm of the mean gradient is at most `threshold`.

    The noise in a mean of independent gradients shrinks as they get more, so a lower threshold asks for larger batches. `max_draws` bounds
    the wait for a norm that does not come.
    """

    target_name = "gradient_norm_threshold"

    def __init__(
        self,
        optimizer: Optimizer,
        threshold: float = 1.0,
        *,
        max_draws: int = 64,
        distributed_mode: DistributedMode = "replicated",
        buffered: bool = False,
    ) -> None:
        require_positive({"threshold": threshold})
        super().__init__(optimizer, threshold, max_draws=max_draws, distributed_mode=distributed_mode, buffered=buffered)

    def _is_due(self) -> bool:
        return rules.norm_is_low(self.mean_norm(), self.target.value)


class GradientNormRescaler(Accumulation):
    """GNR: step with every micro-batch, its gradient brought to the norm `norm`; a gradient of zeros stays one."""

    target_name = "target_gradient_norm"

    def __init__(self, optimizer: Optimizer, norm: float = 1.0, *, distributed_mode: DistributedMode = "replicated") -> None:
        require_positive({"norm": norm})
        super().__init__(optimizer, norm, max_draws=1, distributed_mode=distributed_mode)

    def _is_due(self) -> bool:
        return True

    def _factor(self) -> float:
        return rules.factor_to_norm(self.mean_norm(), self.target.value)


class ScheduledBatch(Accumulation):
    """SBC: step once `batch_size` samples were drawn, in micro-batches of `micro_batch_size` on each rank."""

    target_name = "logical_batch_size"

    def __init__(
        self,
        optimizer: Optimizer,
        batch_size: float,
        micro_batch_size: float = 1,
        *,
        max_draws: int = 64,
        distributed_mode: DistributedMode = "replicated",
        buffered: bool = False,
    ) -> None:
        require_positive({"batch_size": batch_size, "micro_batch_size": micro_batch_size})
        self.micro_batch_size = micro_batch_size
        super().__init__(optimizer, batch_size, max_draws=max_draws, distributed_mode=distributed_mode, buffered=buffered)
        if not rules.batch_is_full(max_draws, self._drawn_at_once(), batch_size):
            raise ValueError(f"batch_size {batch_size} is more than {max_draws} draws of {self._drawn_at_once()}; raise max_draws")

    def _drawn_at_once(self) -> float:
        return self.micro_batch_size * ranks.count()

    def _is_due(self) -> bool:
        return rules.batch_is_full(self.num_draws, self._drawn_at_once(), self.target.value)

    def statistics(self, aggregate: Aggregate = "mean") -> dict[str, float]:
        """Also the size of a micro-batch on one rank."""
        return {**super().statistics(aggregate), "physical_batch_size": self.micro_batch_size}


class GradientNoiseScale(Accumulation):
    """GNS: step once the noise scale of the gradients, in micro-batches, is at most `tolerance` times those that were drawn.

    `estimator` "norms" is torch-gqc's: the variance of the micro-batches' norms over their mean square. "mccandlish" estimates
    tr(Sigma) / |G|^2, the simple noise scale of https://arxiv.org/abs/1812.06162, from the norms of the micro-batches and of their mean.
    One window tells little of either part, so both are averaged over steps, as that paper does, the past with weight `decay`; statistics
    have the ratio as `noise_scale`.
    The norms of micro-batches are taken by hooks as their gradients arrive, under DDP on every rank; with `buffered=True` without hooks,
    which sharded parameters need. `close()` removes the hooks; they also go with the wrapper.
    """

    target_name = "noise_tolerance"
    _saved = (*Accumulation._saved, "_noise", "_signal")

    def __init__(
        self,
        optimizer: Optimizer,
        tolerance: float = 1.0,
        estimator: Estimator = "norms",
        *,
        decay: float = 0.9,
        max_draws: int = 64,
        distributed_mode: DistributedMode = "replicated",
        buffered: bool = False,
    ) -> None:
        require_positive({"tolerance": tolerance})
        require_fraction({"decay": decay})
        if estimator not in get_args(Estimator):
            raise ValueError(f"estimator must be one of {', '.join(get_args(Estimator))}, got {estimator!r}")
        super().__init__(optimizer, tolerance, max_draws=max_draws, distributed_mode=distributed_mode, buffered=buffered)
        self.estimator, self.decay = estimator, decay
        self._observes_gradient = not buffered
        # Averages over steps of tr(Sigma) and |G|^2, None before the first.
        self._noise: float | None = None
        self._signal: float | None = None
        self._watch()

    def _watch(self) -> None:
        if self.buffered:
            return
        if self.distributed_mode == "sharded" or any(map(is_sharded, self._params())):
            raise ValueError("GradientNoiseScale sees no micro-batch's own gradient of sharded parameters; pass buffered=True")
        self._fresh_norms = FreshNorms()
        self._fresh_norms.watch(self._params())
        weakref.finalize(self, self._fresh_norms.close)

    def close(self) -> None:
        """Remove the hooks from the parameters; the wrapper is of no further use."""
        if not self.buffered:
            self._fresh_norms.close()

    def see_gradients(self) -> None:
        """Take the norms of what lies in .grad as a micro-batch's own, as the hooks do, where no backward pass has called them."""
        for param in self._params():
            if param.grad is not None and not self.buffered:
                self._fresh_norms.see(param.grad)

    def _observe(self) -> Tensor | None:
        if self.buffered:
            return None
        norm = self._fresh_norms.take()
        # Some may have been frozen until now.
        self._fresh_norms.watch(self._params())
        if norm is None:
            raise RuntimeError("no gradient of this micro-batch came from backward(); pass buffered=True where they are set by hand")
        return norm

    def _record(self, observed: Sequence[float], norm: float, scale: float) -> None:
        self.history += [number / scale for number in observed or (norm,)]

    def _is_due(self) -> bool:
        if self.estimator == "norms":
            return rules.noise_is_low(rules.spread_of_norms(self.history), self.num_draws, self.target.value)
        if len(self.history) < 2:
            return False
        return rules.noise_is_low(rules.noise_scale(*self._averages()), len(self.history), self.target.value)

    def _averages(self) -> tuple[float, float]:
        """tr(Sigma) and |G|^2, those of this window averaged with those of the steps before."""
        noise, signal = rules.noise_and_signal(self.history, self.mean_norm())
        if self._noise is None or self._signal is None:
            return noise, signal
        return self.decay * self._noise + (1 - self.decay) * noise, self.decay * self._signal + (1 - self.decay) * signal

    def _step_with_mean(self, params: Sequence[Tensor]) -> None:
        if len(self.history) > 1:
            self._noise, self._signal = self._averages()
        super()._step_with_mean(params)

    def vital_statistics(self, aggregate: Aggregate = "mean") -> dict[str, float]:
        """Also McCandlish's noise scale in micro-batches, as of the last step, whichever estimator decides."""
        found = super().vital_statistics(aggregate)
        if self._noise is not None and self._signal is not None and self._signal > 0:
            found["noise_scale"] = rules.noise_scale(self._noise, self._signal)
        return found

    def __getstate__(self) -> dict[str, Any]:
        """Every attribute but the hooks."""
        return {name: value for name, value in super().__getstate__().items() if name != "_fresh_norms"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take up a pickle or a copy, with hooks on its own parameters."""
        super().__setstate__(state)
        self._watch()


class MetricHypothesisTest(Accumulation):
    """MHT: step once the mean of a metric, as a rule the loss, is known within `error` of itself at a level of `confidence`.

    The metrics drawn since the last step and their running mean over all micro-batches are the sample of a t-interval, as in torch-gqc, so
    that the first micro-batch of all, which is its own running mean, steps at once. `rate` is the weight of the newest in that mean.
    `step(metric)` takes the metric as a number or a 0-dim tensor; without one, the closure's loss is the metric.
    """

    target_name = "percent_error_threshold"
    _saved = (*Accumulation._saved, "running_mean")

    def __init__(
        self,
        optimizer: Optimizer,
        error: float = 0.03,
        confidence: float = 0.98,
        *,
        rate: float = 0.01,
        max_draws: int = 64,
        distributed_mode: DistributedMode = "replicated",
        buffered: bool = False,
    ) -> None:
        require_positive({"error": error, "rate": rate})
        require_fraction({"confidence": confidence, "rate": rate})
        super().__init__(optimizer, error, max_draws=max_draws, distributed_mode=distributed_mode, buffered=buffered)
        self.confidence, self.rate = confidence, rate
        self.running_mean: float | None = None
        self._metric: float | Tensor | None = None

    def step(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, metric: float | Tensor | None = None, closure: Callable[[], Any] | None = None
    ) -> bool:
        """As `Accumulation.step`, with the micro-batch's metric; ValueError where there is none."""
        if metric is None and closure is None:
            raise ValueError("MetricHypothesisTest needs the micro-batch's metric: step(loss), or a closure that returns it")
        self._metric = metric.detach() if isinstance(metric, Tensor) else metric
        return super().step(closure)

    def _observe(self) -> Tensor:
        metric = self.loss if self._metric is None else self._metric
        try:
            number = torch.as_tensor(metric, dtype=torch.float64).detach()
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"the metric must be a number, got {metric!r}") from error
        if number.numel() != 1:
            raise ValueError(f"the metric must be one number, got a tensor of shape {tuple(number.shape)}")
        return number.reshape(())

    def _record(self, observed: Sequence[float], norm: float, scale: float) -> None:
        del norm, scale
        if not all(map(isfinite, observed)):
            raise ValueError(f"the metric must be finite, got {observed}")
        self.history += observed
        newest = fmean(observed)
        self.running_mean = newest if self.running_mean is None else (1 - self.rate) * self.running_mean + self.rate * newest

    def _is_due(self) -> bool:
        assert self.running_mean is not None
        return rules.mean_is_known([self.running_mean, *self.history], self.confidence, self.target.value)

    def vital_statistics(self, aggregate: Aggregate = "mean") -> dict[str, float]:
        """Also the confidence asked for, and the metric's running mean."""
        known = {} if self.running_mean is None else {"running_mean": self.running_mean}
        return {**super().vital_statistics(aggregate), "confidence_level": self.confidence, **known}
