"""GNS: steps that wait until the batch is large compared with the gradient noise scale."""

import weakref
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from ..arguments import require_fraction, require_positive
from ..sharded import is_sharded
from . import rules, saved
from .accumulation import Accumulation, DistributedMode
from .around import Aggregate
from .norms import MicroBatchNorms
from .saved import Reader
from .sums import gradients

Estimator = Literal["norms", "mccandlish"]


class GradientNoiseScale(Accumulation):
    """GNS: step once the noise scale, in micro-batches, is at most `tolerance` times the draws.

    `estimator` "norms" is torch-gqc's: the variance of the micro-batches' norms over their mean
    square. "mccandlish" estimates tr(Sigma) / |G|^2, the simple noise scale of
    https://arxiv.org/abs/1812.06162, from the norms of the micro-batches and of their mean. One
    window's estimates of both parts are noisy, so both are averaged over steps, as in that paper,
    with weight `decay` for the past. Statistics have the ratio as `noise_scale`.

    Hooks take the norms of a micro-batch as its gradients arrive, in one backward pass for each
    `step`, under DDP on every rank. `close()` removes the hooks, and so does the wrapper's end.
    `buffered=True` needs no hooks, and is required for sharded parameters.
    """

    target_name = "noise_tolerance"
    _saved: Mapping[str, Reader] = {
        **Accumulation._saved,
        **dict.fromkeys(("_noise", "_signal"), saved.optional(saved.number)),
    }

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
            raise ValueError(
                f"estimator must be one of {', '.join(get_args(Estimator))}, got {estimator!r}"
            )
        super().__init__(
            optimizer,
            tolerance,
            max_draws=max_draws,
            distributed_mode=distributed_mode,
            buffered=buffered,
        )
        self.estimator, self.decay = estimator, decay
        self._observes_gradient = not buffered
        # Averages over steps of tr(Sigma) and |G|^2, None before the first step.
        self._noise: float | None = None
        self._signal: float | None = None
        self._set_hooks()

    def _set_hooks(self) -> None:
        self._own_norms = MicroBatchNorms()
        weakref.finalize(self, self._own_norms.close)
        self._watch()

    def _watch(self) -> None:
        """Hook the trained parameters that have no hook yet."""
        if self.buffered:
            return
        if self.distributed_mode == "sharded" or any(map(is_sharded, self._params())):
            raise ValueError(
                "GradientNoiseScale cannot observe a micro-batch's own gradient of sharded"
                " parameters; pass buffered=True"
            )
        self._own_norms.watch(self._params())

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the optimizer inside, and hooks to its parameters."""
        super().add_param_group(param_group)
        self._watch()

    def close(self) -> None:
        """Remove the hooks from the parameters; the wrapper cannot be used any more."""
        self._own_norms.close()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients as `Accumulation.zero_grad` does, and forget the norms of those."""
        super().zero_grad(set_to_none)
        if not self.num_draws:
            self._own_norms.take()

    def _begin_window(self, params: Sequence[Tensor]) -> None:
        super()._begin_window(params)
        self._own_norms.take()

    def _observe(self, loss: Any) -> Tensor | None:
        del loss
        if self.buffered:
            return None
        for param in self._params():
            # No backward pass calls the hooks of a parameter without data.
            if param.is_meta and param.grad is not None:
                self._own_norms.see(id(param), param.grad)
        norm = self._own_norms.take()
        # Some parameters may have been frozen before.
        self._watch()
        if norm is None and not gradients(self._params()):
            # Other ranks have gradients.
            return torch.zeros((), device=self._params()[0].device)
        if norm is None:
            raise RuntimeError(
                "no gradient of this micro-batch came from backward(); pass buffered=True if they"
                " are set by hand"
            )
        return norm

    def _record(self, observed: Sequence[float], norm: float, scale: float) -> None:
        self.history += [number / scale for number in observed or (norm,)]

    def _is_due(self) -> bool:
        if self.estimator == "norms":
            return rules.noise_is_low(
                rules.spread_of_norms(self.history), self.num_draws, self.target.value
            )
        if len(self.history) < 2:
            return False
        return rules.noise_is_low(
            rules.noise_scale(*self._averages()), len(self.history), self.target.value
        )

    def _averages(self) -> tuple[float, float]:
        """Return tr(Sigma) and |G|^2, this window's averaged with those of earlier steps."""
        noise, signal = rules.noise_and_signal(self.history, self.mean_norm())
        if self._noise is None or self._signal is None:
            return noise, signal
        return (
            self.decay * self._noise + (1 - self.decay) * noise,
            self.decay * self._signal + (1 - self.decay) * signal,
        )

    def _step_with_mean(self, params: Sequence[Tensor]) -> None:
        if len(self.history) > 1:
            self._noise, self._signal = self._averages()
        super()._step_with_mean(params)

    def vital_statistics(self, aggregate: Aggregate = "mean") -> dict[str, float]:
        """Return also McCandlish's noise scale of the last step in micro-batches."""
        statistics = super().vital_statistics(aggregate)
        if self._noise is not None and self._signal is not None and self._signal > 0:
            statistics["noise_scale"] = rules.noise_scale(self._noise, self._signal)
        return statistics

    def __getstate__(self) -> dict[str, Any]:
        """Return all attributes except the hooks."""
        return {
            name: value for name, value in super().__getstate__().items() if name != "_own_norms"
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickle or a copy, with hooks on its own parameters."""
        super().__setstate__(state)
        self._set_hooks()
