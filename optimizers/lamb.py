"""LAMB: Adam's direction, rescaled tensor by tensor to the norm of the weights.

"Large Batch Optimization for Deep Learning: Training BERT in 76 minutes",
https://arxiv.org/abs/1904.00962. For a parameter w with gradient g, squares and roots taken element
by element:

    m   <- beta1 m + (1 - beta1) g
    v   <- beta2 v + (1 - beta2) g^2
    r   =  m^ / (sqrt(v^) + eps) + weight_decay w     m^ = m / (1 - beta1^t), v^ = v / (1 - beta2^t)
    phi =  |w| / |r|, and 1 where either norm is 0
    w   <- w - lr phi r
"""

# pyright: reportPrivateImportUsage=false

import ctypes
from collections.abc import Collection, Iterator
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from . import fused
from .arguments import require_betas, require_not_negative, require_positive
from .bucket import (
    Bucket,
    Options,
    State,
    Tensors,
    add_number,
    add_squares,
    average,
    descend,
    is_nonzero,
    to_device,
)
from .loading import Shapes
from .multi_tensor import MultiTensorOptimizer, as_real
from .reductions import l2_norms, total_norm
from .sharded import placed_like
from .ways import chosen_way

# The choices in which the lineages of LAMB differ.
PAPER = {
    "bias_correction": True,
    "max_weight_norm": inf,
    "max_grad_norm": inf,
    "trust_clip": inf,
    "adapts_without_decay": True,
}
PRESETS = {
    "paper": PAPER,
    "cybertronai": {**PAPER, "bias_correction": False, "max_weight_norm": 10.0},
    "nvidia": {**PAPER, "max_grad_norm": 1.0, "adapts_without_decay": False},
}

_KERNELS = Path(__file__).with_suffix(".cpp")


class _Numbers(ctypes.Structure):
    """The kernel's numbers, by their names in the C++ source."""

    _fields_ = tuple(
        (name, ctypes.c_double)
        for name in (
            *("lr", "eps", "weight_decay", "first_taken", "second_taken"),
            *("first_divisor", "root_divisor", "max_weight_norm", "trust_clip"),
        )
    )


class LAMB(MultiTensorOptimizer):
    """Adam with layer-wise adaptation, for large batches.

    `preset` names the lineage: "paper"; "cybertronai" (no bias correction, the weight norm clamped
    at 10); "nvidia" (the gradients of the whole optimizer clipped to a norm of 1 first, phi = 1 for
    parameters without weight decay). Each choice of a preset is also an option; None leaves it to
    the preset, and math.inf lifts a limit:

    - `bias_correction` divides m and v as above.
    - `max_weight_norm` limits |w| in phi.
    - `max_grad_norm` limits the norm of the gradients of all parameters together.
    - `trust_clip` limits phi (1 in NVLAMB).
    - `adapts_without_decay` uses phi for parameters without weight decay too.

    The state is `exp_avg` and `exp_avg_sq`, shaped like the parameter, and with bias correction
    `step`, a float32 scalar on the host; with `capturable` it is on the parameter's device, and a
    CUDA graph can hold a step. Moments, directions and norms are float32 or wider: in bfloat16
    0.999 v rounds back to v, which would never fall, and in float16 the squares of small gradients
    are 0. A step needs one such temporary as large as the bucket's parameters, and a copy of the
    gradients if it clips them; a `fused` step needs neither on CUDA.
    """

    kernels = "lamb"

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        *,
        preset: str = "paper",
        bias_correction: bool | None = None,
        max_weight_norm: float | None = None,
        max_grad_norm: float | None = None,
        trust_clip: float | None = None,
        adapts_without_decay: bool | None = None,
        maximize: bool = False,
        foreach: bool | None = None,
        compiled: bool = False,
        fused: bool = False,
        capturable: bool = False,
    ) -> None:
        require_not_negative(
            {"learning rate": lr, "epsilon value": eps, "weight_decay value": weight_decay}
        )
        require_betas(betas)
        require_positive(
            {
                "max_weight_norm": max_weight_norm,
                "max_grad_norm": max_grad_norm,
                "trust_clip": trust_clip,
            }
        )
        if preset not in PRESETS:
            raise ValueError(f"Invalid preset: {preset!r}, must be one of {', '.join(PRESETS)}")
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "preset": preset,
        }
        limits = {
            "max_weight_norm": max_weight_norm,
            "max_grad_norm": max_grad_norm,
            "trust_clip": trust_clip,
        }
        choices = {
            "bias_correction": bias_correction,
            **limits,
            "adapts_without_decay": adapts_without_decay,
        }
        super().__init__(
            params,
            {
                **defaults,
                **choices,
                "maximize": maximize,
                "foreach": foreach,
                "compiled": compiled,
                "fused": fused,
                "capturable": capturable,
            },
        )

    def _initial_state(self, param: Tensor, options: Options) -> State:
        del options
        dtypes = {key: self._state_dtype(key, param) for key in ("exp_avg", "exp_avg_sq")}
        return {
            key: torch.zeros_like(param, dtype=dtype, memory_format=torch.preserve_format)
            for key, dtype in dtypes.items()
        }

    def _shapes(self, param: Tensor, options: Options) -> Shapes:
        del options
        return {"exp_avg": param.shape, "exp_avg_sq": param.shape, "step": ()}

    def _required(self, param: Tensor, options: Options, names: Collection[str]) -> set[str]:
        del param, names
        moments = {"exp_avg", "exp_avg_sq"}
        return moments | {"step"} if choices_of(options)["bias_correction"] else moments

    def _buckets(self) -> Iterator[Bucket]:
        """Yield the buckets, with their gradients clipped if the options say so."""
        norm = None
        for bucket in super()._buckets():
            limit = choices_of(bucket.options)["max_grad_norm"]
            if limit < inf:
                norm = self._gradient_norm() if norm is None else norm
                factor = to_device((limit / norm).clamp(max=1.0), bucket.grads[0].device).to(
                    bucket.grads[0].dtype
                )
                bucket = replace(bucket, options={**bucket.options, "clip": factor})
            # A fused update multiplies the gradients as it reads them.
            yield bucket if chosen_way(bucket.options) == "fused" else _clipped(bucket)

    def _gradient_norm(self) -> Tensor:
        """Return the norm of all gradients together, in few launches for any number of them."""
        params = [param for group in self.param_groups for param in group["params"]]
        return total_norm(
            placed_like(param.grad, param) for param in params if param.grad is not None
        )

    def _prepare(self, bucket: Bucket) -> Bucket:
        """Count the step, and compute the divisors of the bias correction."""
        if not choices_of(bucket.options)["bias_correction"]:
            return bucket
        beta1, beta2 = bucket.options["betas"]
        return self._counted(
            bucket,
            {"first": lambda step: 1 - beta1**step, "second": lambda step: 1 - beta2**step},
        )

    def _update(self, bucket: Bucket) -> None:
        bucket = _clipped(bucket)
        weight_decay, choices = bucket.options["weight_decay"], choices_of(bucket.options)
        directions = _adam_directions(bucket)
        if is_nonzero(weight_decay):
            descend(directions, bucket.params, -weight_decay)
        ratios = None
        if is_nonzero(weight_decay) or choices["adapts_without_decay"]:
            weight_norms, direction_norms = (
                torch.stack(_norms(each)) for each in (bucket.params, directions)
            )
            ratios = trust_ratios(weight_norms, direction_norms, choices).unbind()
        descend(bucket.params, directions, bucket.options["lr"], ratios)

    def _fits_kernel(self, param: Tensor, state: State) -> bool:
        return all(state[key].shape == param.shape for key in ("exp_avg", "exp_avg_sq"))

    def _update_fused(self, bucket: Bucket) -> None:
        bucket = _clipped(bucket)
        options, choices = bucket.options, choices_of(bucket.options)
        (beta1, beta2), weight_decay = options["betas"], options["weight_decay"]
        update = fused.kernel(_KERNELS, "update", bucket.params[0].dtype)
        ones = [1.0] * len(bucket.params)
        corrections = (bucket.numbers.get(name, ones) for name in ("first", "second"))
        numbers = _Numbers(
            lr=float(options["lr"]),
            eps=options["eps"],
            weight_decay=weight_decay,
            first_taken=1 - beta1,
            second_taken=1 - beta2,
            max_weight_norm=choices["max_weight_norm"],
            trust_clip=choices["trust_clip"],
        )
        for param, grad, state, first, second in zip(
            bucket.params, bucket.grads, bucket.states, *corrections, strict=True
        ):
            numbers.first_divisor, numbers.root_divisor = float(first), float(second) ** 0.5
            update(
                *fused.addresses(param, grad, state["exp_avg"], state["exp_avg_sq"]),
                ctypes.c_int64(param.numel()),
                ctypes.byref(numbers),
                int(bool(weight_decay or choices["adapts_without_decay"])),
                fused.threads(param),
            )


def _clipped(bucket: Bucket) -> Bucket:
    """Return the bucket with its gradients multiplied by the factor "clip" of its options."""
    options = {**bucket.options}
    factor = options.pop("clip", None)
    if factor is None:
        return bucket
    return replace(bucket, grads=torch._foreach_mul(bucket.grads, factor), options=options)


def choices_of(options: Options) -> dict[str, Any]:
    """Return the preset's choices, overridden by the options that are not None."""
    return {
        name: value if options[name] is None else options[name]
        for name, value in PRESETS[options["preset"]].items()
    }


def _adam_directions(bucket: Bucket) -> Tensors:
    """Update both moments and return m^ / (sqrt(v^) + eps)."""
    (beta1, beta2), eps = bucket.options["betas"], bucket.options["eps"]
    moments, squares = bucket.state("exp_avg"), bucket.state("exp_avg_sq")
    average(moments, bucket.grads, 1 - beta1)
    torch._foreach_mul_(squares, beta2)
    add_squares(squares, bucket.grads, 1 - beta2)

    directions = torch._foreach_sqrt(squares)
    if bucket.numbers:
        torch._foreach_div_(
            directions, [correction**0.5 for correction in bucket.numbers["second"]]
        )
    add_number(directions, eps)
    if bucket.numbers:
        torch._foreach_mul_(directions, bucket.numbers["first"])
    # The quotient replaces its denominator, which saves a tensor.
    torch._foreach_reciprocal_(directions)
    torch._foreach_mul_(directions, moments)
    return directions


def trust_ratios(weight_norms: Tensor, direction_norms: Tensor, choices: dict[str, Any]) -> Tensor:
    """Return phi from the norms of each parameter's weights and direction."""
    weight_norms = weight_norms.clamp(max=choices["max_weight_norm"])
    ratios = torch.where(
        (weight_norms != 0) & (direction_norms != 0), weight_norms / direction_norms, 1.0
    )
    return ratios.clamp(max=choices["trust_clip"])


def _norms(tensors: Tensors) -> list[Tensor]:
    """Return the norms in float32 or wider: sums of squares overflow in half precision."""
    dtype = torch.promote_types(as_real(tensors[0]).dtype, torch.float32)
    return [*l2_norms([as_real(tensor) for tensor in tensors], dtype)]
