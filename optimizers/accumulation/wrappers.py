"""The wrappers that go by norms and by counts alone: GNTS, GNR and SBC.

With GNS and MHT beside them they are gradient quality control as in torch-gqc,
https://pypi.org/project/torch-gqc/, written from its rules. `accumulation` is what all share.
"""

from torch.optim.optimizer import Optimizer

from ..checks import require_positive
from . import ranks, rules
from .accumulation import Accumulation, DistributedMode
from .statistics import Aggregate


class GradientNormThreshold(Accumulation):
    """GNTS: step once the norm of the mean gradient is at most `threshold`.

    The noise in a mean of independent gradients shrinks as they get more, so a lower threshold asks
    for larger batches. `max_draws` bounds the wait for a norm that does not come.
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
    """GNR: step with every micro-batch, its gradient brought to the norm `norm`; a gradient of
    zeros stays one.
    """

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
    """SBC: step once `batch_size` samples were drawn, in micro-batches of `micro_batch_size` on
    each rank.
    """

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
        if not rules.batch_is_full(max_draws, self._drawn_at_once(), batch_size):
            raise ValueError(
                f"batch_size {batch_size} is more than {max_draws} draws of"
                f" {self._drawn_at_once()}; raise max_draws"
            )

    def _drawn_at_once(self) -> float:
        return self.micro_batch_size * ranks.count()

    def _is_due(self) -> bool:
        return rules.batch_is_full(self.num_draws, self._drawn_at_once(), self.target.value)

    def statistics(self, aggregate: Aggregate = "mean") -> dict[str, float]:
        """Also the size of a micro-batch on one rank."""
        return {**super().statistics(aggregate), "physical_batch_size": self.micro_batch_size}
