"""Steps that wait for a good gradient: what the wrappers share that decide after each micro-batch.

    accumulation = GradientNormThreshold(torch.optim.AdamW(model.parameters()), threshold=0.8)
    for batch in batches:
        model(batch).backward()
        stepped = accumulation.step()

A draw is a micro-batch whose gradient went into the sum. A window is the draws between two steps of
the optimizer inside. `rules` has the wrappers' decisions, `sums` where the sum is kept.
"""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.optim import LBFGS
from torch.optim.optimizer import Optimizer

from ..loading import lasting
from ..reductions import total_norm
from ..sharded import is_sharded
from . import saved
from .around import Aggregate, Around, group_statistics
from .norms import norm_over_shards, on_host, rank_count
from .saved import Reader
from .sums import SumInBuffers, SumInGradients, gradients
from .target import Target

DistributedMode = Literal["replicated", "sharded"]

_COUNTS = ("num_batches", "num_steps", "num_dropped", "last_num_draws", "last_grad_norm")


class Accumulation(Around):
    """An optimizer around another that adds micro-batches to a sum and steps with their mean.

    `param_groups`, `state` and `defaults` are those of the optimizer inside; `target` is the number
    that decides, which a scheduler may drive. After `max_draws` draws there is a step in any case.
    Tensors without data have no norms to decide by: for them `max_draws` alone decides.

    The sum lies in `.grad` and needs no memory. A gradient that is not finite is never stepped
    with, but it spoils the sum, so the whole window is dropped and counted in `num_dropped`. With
    `buffered=True` the sum is in buffers of float32 or wider, 4 bytes a parameter: then only that
    micro-batch is dropped, half precision is rounded once a step, and .grad may be cleared, clipped
    or unscaled between draws. Each draw reads the gradients once and waits once for the device,
    twice if a buffered rule needs the norm of the sum. A GradScaler unscales once, at the step.

    With torch.distributed every rank must call `step`, also one without gradients, and all decide
    alike. DDP's averaged gradients and FSDP2's DTensors need no option; with
    `distributed_mode="sharded"` plain tensors are shards of whole ones (FSDP1, ZeRO).

    Not supported: CUDA graphs and torch.compile of `step`, which decides on the host, and LBFGS,
    which needs many gradients in one step.
    """

    extra_key = "accumulation"
    # The target's name in statistics.
    target_name = "target"
    # The attributes in a checkpoint, apart from the target and the sum.
    _saved: Mapping[str, Reader] = {
        **dict.fromkeys(("num_batches", "num_steps", "num_dropped", "num_draws"), saved.count),
        "last_num_draws": saved.optional(saved.count),
        "last_grad_norm": saved.optional(saved.number),
        "history": saved.numbers,
    }
    _needs_loss = False
    # Observe the norm of the micro-batch's own gradient, which also shows whether it is finite.
    _observes_gradient = False
    # GradScaler then passes its scale on. Otherwise it would divide .grad by it at every draw, and
    # earlier draws again.
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
        self._sum = SumInBuffers() if buffered else SumInGradients()
        self._norm: float | None = None
        self._warned: set[str] = set()

    def _is_due(self) -> bool:
        """Return whether the draws are good enough to step with."""
        raise NotImplementedError

    def _observe(self, loss: Any) -> Tensor | None:
        """Return the 0-dim number that the rule needs of each micro-batch, apart from its norm."""
        del loss

    def _record(self, observed: Sequence[float], norm: float, scale: float) -> None:
        """Record what each rank observed of a draw.

        `norm` is that of the gradients in .grad; the loss was multiplied by `scale`.
        """

    def _factor(self) -> float:
        """Return the mean's factor in the step."""
        return 1.0

    def most_draws(self) -> int:
        """Return the most draws that a window can have while the target stays."""
        return self.max_draws

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None, *, loss: Any = None) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Draw the micro-batch whose gradients are in .grad, and step if the mean is good enough.

        Returns whether it stepped. `closure` is called once, with gradients enabled; its result is
        kept in the attribute `loss`, and is the micro-batch's loss unless `loss` is given. If no
        rank has gradients nothing is drawn. Raises RuntimeError if something else has cleared,
        replaced or unscaled the sum, and ValueError if the rule needs a loss and there is none.
        """
        if self._needs_loss and closure is None and loss is None:
            raise ValueError(
                f"{type(self).__name__} needs the micro-batch's loss: step(loss=loss), or a closure"
                " that returns it"
            )
        if closure is not None:
            with torch.enable_grad():
                result = closure()
            self.loss = result.detach() if isinstance(result, Tensor) else result
            loss = self.loss if loss is None else loss
        # A scheduler of the optimizer inside would warn that it steps before its optimizer.
        self.optimizer._opt_called = True  # pyright: ignore[reportAttributeAccessIssue]
        params = self._params()
        if not gradients(params) and rank_count() == 1:
            return False
        self._sum.require_intact(params)
        norm, observed, scale = self._read(params, loss)
        if norm is None:
            return False
        self.num_batches += 1
        if not math.isfinite(norm):
            self._drop(params)
            return False
        self._draw(params, norm, scale)
        self._record(observed, norm, scale)
        has_data = not params[0].is_meta
        if self.num_draws < self.max_draws and not (has_data and self._is_due()):
            return False
        if not math.isfinite(self.mean_norm()):
            # The sum of finite gradients may overflow.
            self._drop_window(params)
            return False
        self._step_with_mean(params)
        return True

    def mean_norm(self) -> float:
        """Return the norm of the mean of the draws since the last step."""
        if self._norm is None:
            norms = on_host([self._total_norm(self._sum.tensors(self._params()))])[0]
            self._norm = _agreed(norms) / self._sum.divisor
        return self._norm

    def _params(self) -> list[Tensor]:
        return [param for group in self.optimizer.param_groups for param in group["params"]]

    def _total_norm(self, tensors: list[Tensor]) -> Tensor:
        if self.distributed_mode == "replicated":
            return self._norm_here(tensors)
        # The norm of a DTensor is already that of the whole.
        plain = self._norm_here([tensor for tensor in tensors if not is_sharded(tensor)])
        return total_norm([norm_over_shards(plain), *filter(is_sharded, tensors)])

    def _norm_here(self, tensors: list[Tensor]) -> Tensor:
        return total_norm(tensors) if tensors else torch.zeros((), device=self._params()[0].device)

    def _read(
        self, params: Sequence[Tensor], loss: Any
    ) -> tuple[float | None, Sequence[float], float]:
        """Return a norm of the gradients, the ranks' observations and the scale of the loss.

        The norm is infinite unless all ranks' gradients are finite, and None if no rank has any.
        """
        scale, observed = self._loss_scale(), self._observe(loss)
        norm = (
            observed
            if observed is not None and self._observes_gradient
            else self._total_norm(gradients(params))
        )
        # A single rank without gradients has returned before.
        has_any = torch.full_like(norm, bool(gradients(params))) if rank_count() > 1 else None
        norms, *others = on_host(
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
        """Return the scale that a GradScaler left in .grad, None without one."""
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
        with lasting():
            self._sum.add(params, scale)
        # A sum in .grad has the norm that was read, unless that was the micro-batch's own.
        is_known = not self.buffered and not self._observes_gradient
        self._norm = norm / self._sum.divisor if is_known else None

    def _drop(self, params: Sequence[Tensor]) -> None:
        """Drop a micro-batch that is not finite, and the window that it spoilt if not buffered."""
        if not self._under_scaler():
            self._warn(
                "a micro-batch's gradient is not finite; it was dropped, and num_dropped counts"
                " the dropped ones"
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
        self._sum.put_mean(params, self._sum.divisor / factor if factor else math.inf)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.num_steps += 1
        self.last_num_draws = self.num_draws
        self._begin_window(params)

    def _begin_window(self, params: Sequence[Tensor]) -> None:
        self._sum.clear(params)
        self.num_draws, self.history, self._norm = 0, [], None

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients, unless they hold draws: those the step clears.

        A call that keeps draws warns once.
        """
        if self.num_draws and not self.buffered:
            self._warn(
                "zero_grad() keeps the draws since the last step; the step clears the gradients,"
                " so leave the call out"
            )
        else:
            self.optimizer.zero_grad(set_to_none)

    def statistics(self, aggregate: Aggregate = "mean") -> dict[str, float]:
        """Return counts, the target and every number of the parameter groups, for a log.

        If groups differ the name ends in `*` and the value is their mean, max or min. Values that
        are not known yet are left out.
        """
        return {"num_draws": self.num_draws, **self.vital_statistics(aggregate)}

    def vital_statistics(self, aggregate: Aggregate = "mean") -> dict[str, float]:
        """Return the statistics that do not change within a window, for a progress bar."""
        counts = {name: getattr(self, name) for name in _COUNTS if getattr(self, name) is not None}
        return {
            **counts,
            self.target_name: self.target.value,
            **group_statistics(self.optimizer.param_groups, aggregate),
        }

    def _warn(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            warnings.warn(message, stacklevel=2)

    def _extra_state(self) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in self._saved}
        return {
            **values,
            "history": list(self.history),
            "_weight": self._sum.weight,
            "_scale": self._sum.scale,
            "target": self.target.settings(),
            "sum": self._sum.save(self._params()) if self.num_draws else None,
        }

    def _checked_extra(self, extra: Any) -> dict[str, Any]:
        readers = {
            **self._saved,
            "_weight": saved.not_negative,
            "_scale": saved.positive,
            "target": saved.settings,
            "sum": saved.optional(saved.tensors_like(self._params())),
        }
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
            with lasting():
                self._sum.load(params, extra["sum"], extra["_weight"], extra["_scale"])

    def __getstate__(self) -> dict[str, Any]:
        """Return all attributes, with the sum's tensors, which copies of parameters lose."""
        total = self._sum
        tensors = total.save(self._params()) if self.num_draws else None
        return {**super().__getstate__(), "_sum": (tensors, total.weight, total.scale)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickle or a copy with its sum."""
        tensors, weight, scale = state["_sum"]
        super().__setstate__(
            {**state, "_sum": SumInBuffers() if state["buffered"] else SumInGradients()}
        )
        if tensors is not None:
            self._sum.load(self._params(), tensors, weight, scale)


def _agreed(norms: Sequence[float]) -> float:
    """Return the norm that all ranks use.

    Ranks' norms may differ in the last bit, or in whether they are finite.
    """
    return max(norms) if all(map(math.isfinite, norms)) else math.inf


def _require_arguments(optimizer: Any, max_draws: Any, distributed_mode: Any) -> None:
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}"
        )
    if isinstance(optimizer, LBFGS):
        raise ValueError(
            "LBFGS needs many gradients in one step, which cannot be drawn; use another optimizer"
        )
    if not isinstance(max_draws, int) or isinstance(max_draws, bool) or max_draws < 1:
        raise ValueError(f"max_draws must be a whole number >= 1, got {max_draws!r}")
    if distributed_mode not in get_args(DistributedMode):
        raise ValueError(
            f"distributed_mode must be one of {', '.join(get_args(DistributedMode))}, got"
            f" {distributed_mode!r}"
        )
