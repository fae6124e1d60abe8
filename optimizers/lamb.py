"""LAMB: Adam's direction, rescaled tensor by tensor to the norm of the weights.

"Large Batch Optimization for Deep Learning: Training BERT in 76 minutes", https://arxiv.org/abs/1904.00962.
For a parameter w with gradient g, squares and roots taken element by element:

    m   <- beta1 m + (1 - beta1) g
    v   <- beta2 v + (1 - beta2) g^2
    r   =  m^ / (sqrt(v^) + eps) + weight_decay w     m^ = m / (1 - beta1^t), v^ = v / (1 - beta2^t)
    phi =  |w| / |r|, and 1 where either norm is 0
    w   <- w - lr phi r
"""

# pyright: reportPrivateImportUsage=false

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from .multi_tensor import Bucket, MultiTensorOptimizer, Options, State, Tensors, require_betas, require_not_negative


@dataclass(frozen=True, kw_only=True)
class Preset:
    """The choices in which the lineages of LAMB differ."""

    bias_correction: bool = True
    max_weight_norm: float | None = None
    max_grad_norm: float | None = None
    adapts_without_decay: bool = True


PRESETS = {
    "paper": Preset(),
    "cybertronai": Preset(bias_correction=False, max_weight_norm=10.0),
    "nvidia": Preset(max_grad_norm=1.0, adapts_without_decay=False),
}


class LAMB(MultiTensorOptimizer):
    """Adam with layer-wise adaptation, for large batches.

    `preset` names the lineage: "paper"; "cybertronai" (no bias correction, the weight norm clamped at 10); "nvidia" (the gradients of the
    whole optimizer clipped to a norm of 1 first, phi = 1 for parameters without weight decay).
    Keeps `exp_avg` and `exp_avg_sq`, like the parameter, and where the bias is corrected `step`, a float32 scalar on the host.
    A step holds one temporary as large as the bucket's parameters, two where gradients are clipped.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        *,
        preset: str = "paper",
        maximize: bool = False,
        foreach: bool | None = None,
    ) -> None:
        require_not_negative({"learning rate": lr, "epsilon value": eps, "weight_decay value": weight_decay})
        require_betas(betas)
        if preset not in PRESETS:
            raise ValueError(f"Invalid preset: {preset!r}, must be one of {', '.join(PRESETS)}")
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "preset": preset, "maximize": maximize, "foreach": foreach})

    def _initial_state(self, param: Tensor, options: Options) -> State:
        state = {key: torch.zeros_like(param, memory_format=torch.preserve_format) for key in ("exp_avg", "exp_avg_sq")}
        if PRESETS[options["preset"]].bias_correction:
            # On the host, as in torch's Adam: its value is read at every step, and that must not wait for the device.
            state["step"] = torch.tensor(0.0, dtype=torch.float32, device="cpu")
        return state

    def _buckets(self) -> Iterator[Bucket]:
        """The buckets, with gradients clipped where the preset asks for it."""
        norm = None
        for bucket in super()._buckets():
            limit = PRESETS[bucket.options["preset"]].max_grad_norm
            if limit is not None:
                norm = self._gradient_norm() if norm is None else norm
                factor = (limit / norm).clamp(max=1.0).to(bucket.grads[0])
                bucket = replace(bucket, grads=torch._foreach_mul(bucket.grads, factor))
            yield bucket

    def _gradient_norm(self) -> Tensor:
        params = [param for group in self.param_groups for param in group["params"]]
        return torch.nn.utils.get_total_norm([param.grad for param in params if param.grad is not None])

    def _update(self, bucket: Bucket) -> None:
        lr, weight_decay = bucket.options["lr"], bucket.options["weight_decay"]
        preset = PRESETS[bucket.options["preset"]]
        directions = _adam_directions(bucket, corrected=preset.bias_correction)
        if weight_decay:
            torch._foreach_add_(directions, bucket.params, alpha=weight_decay)
        if weight_decay or preset.adapts_without_decay:
            ratios = _trust_ratios(bucket.params, directions, preset.max_weight_norm)
            torch._foreach_addcmul_(bucket.params, directions, ratios, value=-lr)
        else:
            torch._foreach_add_(bucket.params, directions, alpha=-lr)


def _adam_directions(bucket: Bucket, *, corrected: bool) -> Tensors:
    """Take the gradients into both moments; m^ / (sqrt(v^) + eps)."""
    (beta1, beta2), eps = bucket.options["betas"], bucket.options["eps"]
    moments, squares = bucket.state("exp_avg"), bucket.state("exp_avg_sq")
    torch._foreach_lerp_(moments, bucket.grads, 1 - beta1)
    torch._foreach_mul_(squares, beta2)
    torch._foreach_addcmul_(squares, bucket.grads, bucket.grads, value=1 - beta2)

    directions = torch._foreach_sqrt(squares)
    if corrected:
        counts = bucket.state("step")
        torch._foreach_add_(counts, 1.0)
        steps = [count.item() for count in counts]
        torch._foreach_div_(directions, [(1 - beta2**step) ** 0.5 for step in steps])
        torch._foreach_add_(directions, eps)
        torch._foreach_mul_(directions, [1 - beta1**step for step in steps])
    else:
        torch._foreach_add_(directions, eps)
    # The quotient takes the place of its denominator, which saves a tensor.
    torch._foreach_reciprocal_(directions)
    torch._foreach_mul_(directions, moments)
    return directions


def _trust_ratios(params: Tensors, directions: Tensors, max_weight_norm: float | None) -> Tensors:
    weight_norms, direction_norms = (torch.stack(torch._foreach_norm(tensors)) for tensors in (params, directions))
    if max_weight_norm is not None:
        weight_norms.clamp_(max=max_weight_norm)
    ratios = torch.where((weight_norms != 0) & (direction_norms != 0), weight_norms / direction_norms, 1.0)
    return ratios.unbind()
