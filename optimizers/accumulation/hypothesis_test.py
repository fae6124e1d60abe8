"""MHT: steps that wait until a metric's mean is known well enough."""

from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from ..checks import require_fraction, require_positive
from . import rules, saved
from .accumulation import Accumulation, DistributedMode
from .saved import Reader
from .statistics import Aggregate


class MetricHypothesisTest(Accumulation):
    """MHT: step once the mean of a metric, as a rule the loss, is known within `error` of itself at
    a level of `confidence`.

    The metrics drawn since the last step and their running mean over all micro-batches are the
    sample of a t-interval, as in torch-gqc, so that the first micro-batch of all, which is its own
    running mean, steps at once. `rate` is the weight of the newest in that mean. `step(metric)`
    takes the metric as a number or a 0-dim tensor, `step(closure)` the loss that the closure
    returns. Trainer gives neither, and is not supported.
    """

    target_name = "percent_error_threshold"
    _saved: Mapping[str, Reader] = {
        **Accumulation._saved,
        "running_mean": saved.optional(saved.number),
    }

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
        super().__init__(
            optimizer,
            error,
            max_draws=max_draws,
            distributed_mode=distributed_mode,
            buffered=buffered,
        )
        self.confidence, self.rate = confidence, rate
        self.running_mean: float | None = None
        self._metric: float | Tensor | None = None

    def step(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        metric: float | Tensor | Callable[[], Any] | None = None,
        closure: Callable[[], Any] | None = None,
    ) -> bool:
        """As `Accumulation.step`, with the micro-batch's metric; ValueError where there is none."""
        if callable(metric):
            metric, closure = None, metric
        if metric is None and closure is None:
            raise ValueError(
                "MetricHypothesisTest needs the micro-batch's metric: step(loss), or a closure that"
                " returns it"
            )
        self._metric = metric.detach() if isinstance(metric, Tensor) else metric
        return super().step(closure)

    def _observe(self) -> Tensor:
        metric, self._metric = self.loss if self._metric is None else self._metric, None
        try:
            number = torch.as_tensor(metric, dtype=torch.float64).detach()
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"the metric must be a number, got {metric!r}") from error
        if number.numel() != 1:
            raise ValueError(
                f"the metric must be one number, got a tensor of shape {tuple(number.shape)}"
            )
        return number.reshape(())

    def _record(self, observed: Sequence[float], norm: float, scale: float) -> None:
        del norm, scale
        if not all(map(isfinite, observed)):
            raise ValueError(f"the metric must be finite, got {observed}")
        self.history += observed
        newest = fmean(observed)
        self.running_mean = (
            newest
            if self.running_mean is None
            else (1 - self.rate) * self.running_mean + self.rate * newest
        )

    def _is_due(self) -> bool:
        assert self.running_mean is not None
        return rules.mean_is_known(
            [self.running_mean, *self.history], self.confidence, self.target.value
        )

    def vital_statistics(self, aggregate: Aggregate = "mean") -> dict[str, float]:
        """Also the confidence asked for, and the metric's running mean."""
        known = {} if self.running_mean is None else {"running_mean": self.running_mean}
        return {**super().vital_statistics(aggregate), "confidence_level": self.confidence, **known}
