"""The names and the use of torch-gqc's description on PyPI: a scheduler of the wrapper drives it.

    optimizer = OptimizerWrapperGNTS(torch.optim.AdamW(model.parameters()))
    norm_scheduler = NormWarmupScheduler(
        CosineAnnealingLR(optimizer, T_max=10_000, eta_min=0.2), warmup_steps=500
    )

New code should use the package's own classes, whose `lr` is a learning rate and whose `target` is
scheduled.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.optim.optimizer import Optimizer

from .accumulation import Accumulation, DistributedMode
from .around import Aggregate
from .noise_scale import GradientNoiseScale
from .target import NormWarmupScheduler
from .wrappers import (
    GradientNormRescaler,
    GradientNormThreshold,
    MetricHypothesisTest,
    ScheduledBatch,
)

__all__ = [
    "NormWarmupScheduler",
    "OptimizerWrapperGNR",
    "OptimizerWrapperGNS",
    "OptimizerWrapperGNTS",
    "OptimizerWrapperMHT",
    "OptimizerWrapperSBC",
]


class _AsDescribed(Accumulation):
    """A wrapper with one parameter group of all parameters, whose `lr` is the target."""

    def _groups(self) -> list[dict[str, Any]]:
        self.target.param_groups[0]["params"] = self._params()
        return self.target.param_groups

    def statistics(self, aggregate: Aggregate = "mean") -> dict[str, float]:
        """Return also `batches` and `steps`, for a call before `step`.

        `batches` and `num_draws` count the micro-batch that `step` is going to draw.
        """
        return {
            **super().statistics(aggregate),
            "batches": self.num_batches + 1,
            "steps": self.num_steps,
            "num_draws": self.num_draws + 1,
        }


class OptimizerWrapperGNTS(_AsDescribed, GradientNormThreshold):
    """GradientNormThreshold, its threshold 1 until a scheduler sets it."""

    def __init__(
        self,
        optimizer: Optimizer,
        max_batch_draws: int = 64,
        distributed_mode: DistributedMode | None = None,
    ) -> None:
        super().__init__(
            optimizer, max_draws=max_batch_draws, distributed_mode=distributed_mode or "replicated"
        )


class OptimizerWrapperGNR(_AsDescribed, GradientNormRescaler):
    """GradientNormRescaler, its norm 1 until a scheduler sets it."""

    def __init__(
        self, optimizer: Optimizer, distributed_mode: DistributedMode | None = None
    ) -> None:
        super().__init__(optimizer, distributed_mode=distributed_mode or "replicated")


class OptimizerWrapperGNS(_AsDescribed, GradientNoiseScale):
    """GradientNoiseScale of norms, its tolerance 1 until a scheduler sets it."""

    def __init__(
        self,
        optimizer: Optimizer,
        max_batch_draws: int = 64,
        distributed_mode: DistributedMode | None = None,
    ) -> None:
        super().__init__(
            optimizer, max_draws=max_batch_draws, distributed_mode=distributed_mode or "replicated"
        )


class OptimizerWrapperSBC(_AsDescribed, ScheduledBatch):
    """ScheduledBatch, its batch of 1 sample until a scheduler sets it."""

    def __init__(
        self,
        optimizer: Optimizer,
        physical_batch_size: int,
        max_batch_draws: int = 64,
        distributed_mode: DistributedMode | None = None,
    ) -> None:
        mode = distributed_mode or "replicated"
        super().__init__(
            optimizer, 1, physical_batch_size, max_draws=max_batch_draws, distributed_mode=mode
        )


class OptimizerWrapperMHT(_AsDescribed, MetricHypothesisTest):
    """MetricHypothesisTest, its error 0.03 until a scheduler sets it."""

    def __init__(
        self,
        optimizer: Optimizer,
        max_batch_draws: int = 64,
        distributed_mode: DistributedMode | None = None,
        update_beta: float = 0.01,
    ) -> None:
        super().__init__(
            optimizer,
            rate=update_beta,
            max_draws=max_batch_draws,
            distributed_mode=distributed_mode or "replicated",
        )

    def step(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        metric: float | Tensor | Callable[[], Any] | None = None,
        closure: Callable[[], Any] | None = None,
        *,
        loss: Any = None,
    ) -> bool:
        """Draw as MetricHypothesisTest does, with torch-gqc's argument: the metric or a closure."""
        if callable(metric):
            metric, closure = None, metric
        return super().step(closure, loss=loss if metric is None else metric)
