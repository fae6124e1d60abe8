"""Steps that wait for a good gradient: what all wrappers share that decide after each micro-batch
whether to step.

    accumulation = GradientNormThreshold(torch.optim.AdamW(model.parameters()), threshold=0.8)
    for batch in batches:
        model(batch).backward()
        stepped = accumulation.step()

A draw is a micro-batch whose gradient went into the sum, a window what is drawn between two steps
of the optimizer inside. What each wrapper decides is in `rules`, where the sum is kept in `sums`.
"""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.optim import LBFGS
from torch.optim.optimizer import Optimizer

from ..lasting import lasting
from ..sharded import is_sharded
from . import ranks, saved
from .around import Around
from .norms import total_norm
from .saved import Reader
from .statistics import Aggregate, of_groups
from .sums import SumInBuffers, SumInGradients, fresh
from .target import Target

DistributedMode = Literal["replicated", "sharded"]

_COUNTS = ("num_batches", "num_steps", "num_dropped", "last_num_draws", "last_grad_norm")


class Accumulation(Around):
    """An optimizer around another, whose step adds a micro-batch's gradient to a sum and now and
    then steps with the mean.

    `param_groups`, `state` and `defaults` are those of the optimizer inside; `target` is what
    decides and what a scheduler may drive. The sum lies in `.grad`: it takes no memory. A
    micro-batch whose gradient is not finite is never stepped with, but it has spoilt the sum, and
    the whole window is dropped and counted in `num_dropped`. `buffered=True` keeps the sum in
    buffers of float32 or wider, 4 bytes a parameter: such a micro-batch is then dropped alone, half
    precision is rounded once a step, and .grad may be cleared, clipped or unscaled between draws.
    After `max_draws` draws there is a step whatever the rule says. Each draw reads the gradients
    once and waits once for the device, twice where a buffered rule asks for the norm of the sum.
    With torch.distributed initialised every rank must call `step`, and all decide alike. DDP's
    averaged gradients and FSDP2's DTensors are understood as they are; `distributed_mode="sharded"`
    says that plain tensors are shards of whole ones (FSDP1, ZeRO). A rank without gradients of its
    own calls `step` like the others. A GradScaler unscales once, at the step. Not supported: CUDA
    graphs and torch.compile of `step`, which decides on the host, and LBFGS, which asks for many
    gradients in one step.
    """

    extra_key = "accumulation"
    # The target's name in statistics, and what a checkpoint holds beside it and the sum.
    target_name = "target"
    _saved: Mapping[str, Reader] = {
        **dict.fromkeys(("num_batches", "num_steps", "num_dropped", "num_draws"), saved.count),
        "last_num_draws": saved.optional(saved.count),
        "last_grad_norm": saved.optional(saved.number),
        "history": saved.numbers,
        "_weight": saved.not_negative,
        "_scale": saved.positive,
    }
    # Whether what is observed is the norm of the micro-batch's own gradient, which then tells
    # whether that is finite.
    _observes_gradient = False
    # GradScaler then hands its scale over instead of dividing .grad by it, and with it the draws
    # before, once more at every draw.
    _step_supports_amp_scaling = True

    def __init__(
        self,
        optimizer: Optimizer,
        target: float,
        *,
        max_draws: int = 64,
        distributed_mode: DistributedMode = "replicated",
        buffered: bool = False,
    ) -> None:
        _require_arguments(optimizer, max_draws, distributed_mode)
        super().__init__(optimizer)
        self.target = Target(target)
        self.max_draws = max_draws
        self.distributed_mode: DistributedMode = distributed_mode
        self.buffered = buffered
        self.loss: Any = None
        self.num_batches = self.num_steps = self.num_draws = self.num_dropped = 0
        self.last_num_draws: int | None = None
        self.last_grad_norm: float | None = None
        self.history: list[float] = []
        self._heeds_rule = True
        self._sum = SumInBuffers() if buffered else SumInGradients()
        # The sum is worth `weight` draws of gradients in units of `scale`.
        self._weight, self._scale = 0.0, 1.0
        self._norm: float | None = None
        self._warned: set[str] = set()

    def _is_due(self) -> bool:
        """Whether what was drawn is good enough to step with."""
        raise NotImplementedError

    def _observe(self) -> Tensor | None:
        """A number that the rule asks of each micro-batch beside its gradient, 0-dim."""
        return None

    def _record(self, observed: Sequence[float], norm: float, scale: float) -> None:
        """Take what each rank observed of a micro-batch that counts; `norm` is of what lay in
        .grad, the loss was scaled by `scale`.
        """

    def _factor(self) -> float:
        """What the mean is multiplied by before the step."""
        return 1.0

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Draw the micro-batch whose gradients are there, and step the optimizer inside if their
        mean is now good enough; whether it did.

        `closure` is called once, with gradients enabled; what it returned is then in `loss`. Where
        no rank has gradients nothing is drawn. Raises RuntimeError where something else has
        cleared, replaced or unscaled the sum.
        """
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
            self.loss = loss.detach() if isinstance(loss, Tensor) else loss
        # A scheduler of the optimizer inside would warn that it steps before its optimizer.
        self.optimizer._opt_called = True  # pyright: ignore[reportAttributeAccessIssue]
        params = self._params()
        if not fresh(params) and ranks.count() == 1:
            return False
        if isinstance(self._sum, SumInGradients) and self.num_draws:
            self._sum.require_kept(params)
        norm, observed, scale = self._read(params)
        if norm is None:
            return False
        self.num_batches += 1
        if not math.isfinite(norm):
            self._drop(params)
            return False
        self._draw(params, norm, scale)
        self._record(observed, norm, scale)
        if self.num_draws < self.max_draws and not (self._heeds_rule and self._is_due()):
            return False
        if not math.isfinite(self.mean_norm()):
            # Finite gradients may have a sum that is not.
            self._drop_window(params)
            return False
        self._step_with_mean(params)
        return True

    def step_every(self, draws: int) -> None:
        """Step after so many draws from now on, whatever the rule says: for simulations, in which
        numbers have no values.
        """
        self.max_draws, self._heeds_rule = draws, False

    def mean_norm(self) -> float:
        """The norm of the mean of what was drawn since the last step."""
        if self._norm is None:
            norms = ranks.on_host([self._total_norm(self._sum.tensors(self._params()))])[0]
            self._norm = _agreed(norms) / self._worth()
        return self._norm

    def _params(self) -> list[Tensor]:
        return [param for group in self.optimizer.param_groups for param in group["params"]]

    def _worth(self) -> float:
        """What the sum is divided by for the mean."""
        return self._weight * self._scale

    def _total_norm(self, tensors: list[Tensor]) -> Tensor:
        if self.distributed_mode == "replicated":
            return self._norm_here(tensors)
        # The norm of a DTensor is that of the whole already.
        plain = self._norm_here([tensor for tensor in tensors if not is_sharded(tensor)])
        return total_norm([ranks.norm_over_shards(plain), *filter(is_sharded, tensors)])

    def _norm_here(self, tensors: list[Tensor]) -> Tensor:
        return total_norm(tensors) if tensors else torch.zeros((), device=self._params()[0].device)

    def _read(self, params: Sequence[Tensor]) -> tuple[float | None, Sequence[float], float]:
        """A norm of the gradients, infinite unless all ranks' are finite, None where none has any;
        what each observed; the loss's scale.
        """
        scale, observed = self._loss_scale(), self._observe()
        norm = (
            observed
            if observed is not None and self._observes_gradient
            else self._total_norm(fresh(params))
        )
        # Alone, a rank without gradients has left before.
        has_any = torch.full_like(norm, bool(fresh(params))) if ranks.count() > 1 else None
        norms, *others = ranks.on_host(
            [number for number in (norm, has_any, scale, observed) if number is not None]
        )
        if has_any is not None and not any(others.pop(0)):
            return None, (), 1.0
        return (
            _agreed(norms),
            others[-1] if observed is not None else (),
            others[0][0] if scale is not None else 1.0,
        )

    def _loss_scale(self) -> Tensor | None:
        """The scale that a GradScaler left in .grad, None where there is none."""
        if not self._under_scaler():
            return None
        scale: Tensor | None = getattr(self, "grad_scale", None)
        if scale is None and not self.buffered and self.max_draws > 1:
            raise RuntimeError(
                "GradScaler.unscale_() divides earlier draws again; leave it out, or pass"
                " buffered=True"
            )
        return scale

    def _under_scaler(self) -> bool:
        return hasattr(self, "found_inf")

    def _draw(self, params: Sequence[Tensor], norm: float, scale: float) -> None:
        self.num_draws += 1
        if isinstance(self._sum, SumInBuffers):
            with lasting():
                self._sum.add(params, scale)
            self._weight, self._norm = float(self.num_draws), None
            return
        self._sum.mark(params)
        # Where the scaler has changed its scale since, the draws before count in proportion.
        self._weight, self._scale = self._weight * (self._scale / scale) + 1, scale
        self._norm = None if self._observes_gradient else norm / self._worth()

    def _drop(self, params: Sequence[Tensor]) -> None:
        """Forget a micro-batch that is not finite, and without buffers the window that it was added
        to.
        """
        if not self._under_scaler():
            self._warn(
                "a micro-batch's gradient is not finite; it was dropped, and num_dropped counts"
                " what was"
            )
        self.num_dropped += 1
        for param in params:
            param.grad = None
        if not self.buffered:
            self._drop_window(params)

    def _drop_window(self, params: Sequence[Tensor]) -> None:
        self.num_dropped += self.num_draws
        self._begin_window(params)

    def _step_with_mean(self, params: Sequence[Tensor]) -> None:
        factor = self._factor()
        self.last_grad_norm = self.mean_norm() * factor
        self._sum.put_mean(params, self._worth() / factor if factor else math.inf)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.num_steps += 1
        self.last_num_draws = self.num_draws
        self._begin_window(params)

    def _begin_window(self, params: Sequence[Tensor]) -> None:
        self._sum.clear(params)
        self.num_draws, self.history = 0, []
        self._weight, self._scale, self._norm = 0.0, 1.0, None

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear gradients that hold no draws; those that do are kept, with a warning once, and
        cleared by the step.
        """
        if self.num_draws and not self.buffered:
            self._warn(
                "zero_grad() keeps what was drawn since the last step; the step clears the"
                " gradients, so leave the call out"
            )
        else:
            self.optimizer.zero_grad(set_to_none)

    def statistics(self, aggregate: Aggregate = "mean") -> dict[str, float]:
        """Counts, the target and every number of the parameter groups, for a log.

        Where groups differ the name ends in `*` and the value is their mean, max or min. What is
        not known yet is left out.
        """
        return {"num_draws": self.num_draws, **self.vital_statistics(aggregate)}

    def vital_statistics(self, aggregate: Aggregate = "mean") -> dict[str, float]:
        """The same without what moves within a window, for a progress bar."""
        known = {name: getattr(self, name) for name in _COUNTS if getattr(self, name) is not None}
        return {
            **known,
            self.target_name: self.target.value,
            **of_groups(self.optimizer.param_groups, aggregate),
        }

    def _warn(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            warnings.warn(message, stacklevel=2)

    def _extra_state(self) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in self._saved}
        pending = self._sum.save(self._params()) if self.num_draws else None
        return {
            **values,
            "history": list(self.history),
            "target": self.target.settings(),
            "sum": pending,
        }

    def _checked_extra(self, extra: Any) -> dict[str, Any]:
        sums = saved.tensors_like(self._params())
        readers = {**self._saved, "target": saved.settings, "sum": saved.optional(sums)}
        checked = saved.read(f"{type(self).__name__} cannot load", self.extra_key, extra, readers)
        if checked["num_draws"] and checked["sum"] is None:
            raise ValueError(
                f"{type(self).__name__} cannot load 'sum' of {self.extra_key!r}: found None, "
                f"expected the sum of {checked['num_draws']} draws"
            )
        return checked

    def _load_extra_state(self, extra: dict[str, Any] | None) -> None:
        params = self._params()
        self._begin_window(params)
        if extra is None:
            return
        self.target.param_groups[0].update(extra["target"])
        for name in self._saved:
            setattr(self, name, extra[name])
        if extra["sum"] is not None:
            self._load_sum(params, extra["sum"])

    def _load_sum(self, params: Sequence[Tensor], tensors: Sequence[Tensor | None]) -> None:
        with lasting():
            self._sum.load(params, tensors)
        if self.buffered and self._scale != 1:
            for tensor in self._sum.tensors(params):
                tensor.div_(self._scale)
            self._scale = 1.0

    def __getstate__(self) -> dict[str, Any]:
        """Every attribute, and the sum, which a parameter's copy would leave behind."""
        return {
            **super().__getstate__(),
            "_sum": self._sum.save(self._params()) if self.num_draws else None,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take up a pickle or a copy, its sum too."""
        tensors = state["_sum"]
        super().__setstate__(
            {**state, "_sum": SumInBuffers() if state["buffered"] else SumInGradients()}
        )
        if tensors is not None:
            self._sum.load(self._params(), tensors)


def _agreed(norms: Sequence[float]) -> float:
    """The norm that all ranks go by: they may differ in the last bit, or in whether they are
    finite.
    """
    return max(norms) if all(map(math.isfinite, norms)) else math.inf


def _require_arguments(optimizer: Any, max_draws: Any, distributed_mode: Any) -> None:
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}"
        )
    if isinstance(optimizer, LBFGS):
        raise ValueError(
            "LBFGS asks for many gradients in one step, which cannot be drawn; use another"
            " optimizer"
        )
    if not isinstance(max_draws, int) or isinstance(max_draws, bool) or max_draws < 1:
        raise ValueError(f"max_draws must be a whole number >= 1, got {max_draws!r}")
    if distributed_mode not in get_args(DistributedMode):
        raise ValueError(
            f"distributed_mode must be one of {', '.join(get_args(DistributedMode))}, got"
            f" {distributed_mode!r}"
        )
