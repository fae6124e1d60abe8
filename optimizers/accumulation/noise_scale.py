"""GNS: steps that wait until the batch is large beside the gradient noise scale."""

import weakref
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from ..checks import require_fraction, require_positive
from ..sharded import is_sharded
from . import rules, saved
from .accumulation import Accumulation, DistributedMode
from .norms import FreshNorms
from .saved import Reader
from .statistics import Aggregate
from .sums import fresh

Estimator = Literal["norms", "mccandlish"]


class GradientNoiseScale(Accumulation):
    """GNS: step once the noise scale of the gradients, in micro-batches, is at most `tolerance`
    times those that were drawn.

    `estimator` "norms" is torch-gqc's: the variance of the micro-batches' norms over their mean
    square. "mccandlish" estimates tr(Sigma) / |G|^2, the simple noise scale of
    https://arxiv.org/abs/1812.06162, from the norms of the micro-batches and of their mean. One
    window tells little of either part, so both are averaged over steps, as that paper does, the
    past with weight `decay`; statistics have the ratio as `noise_scale`. The norms of micro-batches
    are taken by hooks as their gradients arrive, in one backward pass for each `step`, under DDP on
    every rank; with `buffered=True` without hooks, which sharded parameters need. `close()` removes
    the hooks; they also go with the wrapper.
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
        # Averages over steps of tr(Sigma) and |G|^2, None before the first.
        self._noise: float | None = None
        self._signal: float | None = None
        self._set_hooks()

    def _set_hooks(self) -> None:
        self._fresh_norms = FreshNorms()
        weakref.finalize(self, self._fresh_norms.close)
        self._watch()

    def _watch(self) -> None:
        """Hook the parameters that are trained and have no hook yet."""
        if self.buffered:
            return
        if self.distributed_mode == "sharded" or any(map(is_sharded, self._params())):
            raise ValueError(
                "GradientNoiseScale sees no micro-batch's own gradient of sharded parameters; pass"
                " buffered=True"
            )
        self._fresh_norms.watch(self._params())

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the optimizer inside, and hooks to its parameters."""
        super().add_param_group(param_group)
        self._watch()

    def close(self) -> None:
        """Remove the hooks from the parameters; the wrapper is of no further use."""
        self._fresh_norms.close()

    def see_gradients(self) -> None:
        """Take the norms of what lies in .grad as a micro-batch's own, as the hooks do, where no
        backward pass has called them.
        """
        for param in self._params():
            if param.grad is not None and not self.buffered:
                self._fresh_norms.see(id(param), param.grad)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As `Accumulation.zero_grad`; the norms of gradients that it clears are forgotten."""
        super().zero_grad(set_to_none)
        if not self.num_draws:
            self._fresh_norms.take()

    def _begin_window(self, params: Sequence[Tensor]) -> None:
        super()._begin_window(params)
        self._fresh_norms.take()

    def _observe(self) -> Tensor | None:
        if self.buffered:
            return None
        norm = self._fresh_norms.take()
        # Some may have been frozen until now.
        self._watch()
        if norm is None and not fresh(self._params()):
            # Other ranks have some.
            return torch.zeros((), device=self._params()[0].device)
        if norm is None:
            raise RuntimeError(
                "no gradient of this micro-batch came from backward(); pass buffered=True where"
                " they are set by hand"
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
        """tr(Sigma) and |G|^2, those of this window averaged with those of the steps before."""
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
        """Also McCandlish's noise scale in micro-batches, as of the last step, whichever estimator
        decides.
        """
        found = super().vital_statistics(aggregate)
        if self._noise is not None and self._signal is not None and self._signal > 0:
            found["noise_scale"] = rules.noise_scale(self._noise, self._signal)
        return found

    def __getstate__(self) -> dict[str, Any]:
        """Every attribute but the hooks."""
        return {
            name: value for name, value in super().__getstate__().items() if name != "_fresh_norms"
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take up a pickle or a copy, with hooks on its own parameters."""
        super().__setstate__(state)
        self._set_hooks()
