"""The wrappers that decide by norms, counts and losses: GNTS, GNR, SBC and MHT.

With GNS in `noise_scale` they are gradient quality control as in torch-gqc,
https://pypi.org/project/torch-gqc/, written from its rules. `accumulation` is what all share.
"""

from collections.abc import Mapping, Sequence
from math import ceil, isfinite
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from ..arguments import require_fraction, require_positive
from . import rules, saved
from .accumulation import Accumulation, DistributedMode
from .around import Aggregate
from .norms import rank_count
from .saved import Reader


class GradientNormThreshold(Accumulation):
    """GNTS: step once the norm of the mean gradient is at most `threshold`.

    The noise in a mean of independent gradients falls with their number, so a lower threshold means
    larger batches. `max_draws` limits the wait.
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
        super().__init__(
            optimizer,
            threshold,
            max_draws=max_draws,
            distributed_mode=distributed_mode,
            buffered=buffered,
        )

    def _is_due(self) -> bool:
        return rules.norm_is_low(self.mean_norm(), self.target.value)


class GradientNormRescaler(Accumulation):
    """GNR: step with every micro-batch, its gradient rescaled to `norm`; zeros stay zeros."""

    target_name = "target_gradient_norm"

    def __init__(
        self,
        optimizer: Optimizer,
        norm: float = 1.0,
        *,
        distributed_mode: DistributedMode = "replicated",
    ) -> None:
        require_positive({"norm": norm})
        super().__init__(optimizer, norm, max_draws=1, distributed_mode=distributed_mode)

    def _is_due(self) -> bool:
        return True

    def _factor(self) -> float:
        return rules.factor_to_norm(self.mean_norm(), self.target.value)


class ScheduledBatch(Accumulation):
    """SBC: step once `batch_size` samples were drawn, `micro_batch_size` at once on each rank."""

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
        super().__init__(
            optimizer,
            batch_size,
            max_draws=max_draws,
            distributed_mode=distributed_mode,
            buffered=buffered,
        )
        if not rules.batch_is_full(max_draws, self._samples_a_draw(), batch_size):
            raise ValueError(
                f"batch_size {batch_size} is more than {max_draws} draws of"
                f" {self._samples_a_draw()}; raise max_draws"
            )

    def _samples_a_draw(self) -> float:
        return self.micro_batch_size * rank_count()

    def _is_due(self) -> bool:
        return rules.batch_is_full(self.num_draws, self._samples_a_draw(), self.target.value)

    def most_draws(self) -> int:
        """Return the draws of a full batch, at most `max_draws`."""
        return min(self.max_draws, ceil(self.target.value / self._samples_a_draw()))

    def statistics(self, aggregate: Aggregate = "mean") -> dict[str, float]:
        """Return also the size of a micro-batch on one rank."""
        return {**super().statistics(aggregate), "physical_batch_size": self.micro_batch_size}


class MetricHypothesisTest(Accumulation):
    """MHT: step once the mean loss is known within `error` of itself, at a level of `confidence`.

    The losses since the last step and their running mean over all micro-batches are the sample of a
    t-interval, as in torch-gqc. So the very first micro-batch, which is its own running mean, steps
    at once. `rate` is the weight of the newest loss in that mean. The loss, or another metric, is a
    number or a 0-dim tensor: `step(loss=loss)`, or what the closure of `step(closure)` returns.
    Trainer passes neither, so it is not supported.
    """

    target_name = "percent_error_threshold"
    _needs_loss = True
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

    def _observe(self, loss: Any) -> Tensor:
        try:
            number = torch.as_tensor(loss, dtype=torch.float64).detach()
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"the loss must be a number, got {loss!r}") from error
        if number.numel() != 1:
            raise ValueError(
                f"the loss must be one number, got a tensor of shape {tuple(number.shape)}"
            )
        return number.reshape(())

    def _record(self, observed: Sequence[float], norm: float, scale: float) -> None:
        del norm, scale
        if not all(map(isfinite, observed)):
            raise ValueError(f"the loss must be finite, got {observed}")
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
        """Return also the confidence and the running mean of the loss."""
        mean = {} if self.running_mean is None else {"running_mean": self.running_mean}
        return {**super().vital_statistics(aggregate), "confidence_level": self.confidence, **mean}
