"""The names and the ways of torch-gqc's description on PyPI, where a scheduler of the wrapper
drives its target.

    optimizer = OptimizerWrapperGNTS(torch.optim.AdamW(model.parameters()))
    norm_scheduler = NormWarmupScheduler(CosineAnnealingLR(optimizer, T_max=10_000, eta_min=0.2),
warmup_steps=500)

New code is better served by the classes of `wrappers`, whose `lr` is a learning rate and whose
`target` is scheduled.
"""

from typing import Any

from torch.optim.optimizer import Optimizer

from .accumulation import Accumulation, DistributedMode
from .hypothesis_test import MetricHypothesisTest
from .noise_scale import GradientNoiseScale
from .schedules import NormWarmupScheduler
from .statistics import Aggregate
from .wrappers import GradientNormRescaler, GradientNormThreshold, ScheduledBatch

__all__ = [
    "NormWarmupScheduler",
    "OptimizerWrapperGNR",
    "OptimizerWrapperGNS",
    "OptimizerWrapperGNTS",
    "OptimizerWrapperMHT",
    "OptimizerWrapperSBC",
]


class _AsDescribed(Accumulation):
    """What passes for an optimizer with one group of all parameters, whose `lr` is the target."""

    def _groups(self) -> list[dict[str, Any]]:
        self.target.param_groups[0]["params"] = self._params()
        return self.target.param_groups

    def statistics(self, aggregate: Aggregate = "mean") -> dict[str, float]:
        """Also `batches` and `steps`; `batches` and `num_draws` count the micro-batch under way,
        for a call before `step`, as described.
        """
        found = super().statistics(aggregate)
        return {
            **found,
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
