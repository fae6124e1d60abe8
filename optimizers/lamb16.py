"""LAMB16: LAMB whose two moments are kept in one byte each.

https://github.com/vxst/LAMB16. For a parameter w of n elements with gradient g, in float32, clips, squares and roots element by element:

    m    = beta1 s_m q_m + (1 - beta1) g              q_m in float8_e4m3fn, s_m one float32 for the tensor
    v    = beta2 s_v q_v + (1 - beta2) g^2            q_v in float8_e5m2, s_v likewise
    s_m <- size(m, 0, 10) + eps;   q_m <- clip(m / s_m, -15, 15)
    s_v <- size(v, 0, 10) + eps;   q_v <- clip(v, 0, 10) / s_v
    r    = m / (sqrt(v) + eps) + weight_decay w
    phi  = clip((size(w, eps, 1) / size(r, eps, 1) * 0.001 / lr)^trust_scale, 0, 2)
    w   <- w - lr phi r

where size(x, least, most) = sqrt(sum(clip(x^2, least, most))) / n.
"""

# pyright: reportPrivateImportUsage=false

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from .multi_tensor import Bucket, MultiTensorOptimizer, Options, State, Tensors, require_betas, require_not_negative

_USUAL_LR = 1e-3


class LAMB16(MultiTensorOptimizer):
    """LAMB in 2 bytes a parameter; the update is computed in float32 whatever the parameter's dtype.

    Keeps `exp_avg` (float8_e4m3fn) and `exp_avg_sq` (float8_e5m2), shaped like the parameter, and two float32 scalars, `exp_avg_scale` and
    `exp_avg_sq_scale`.
    The adaptive trust grows as (1 / lr)^trust_scale, so that the step follows lr^(1 - trust_scale) until phi reaches 2.
    A step holds three float32 temporaries as large as the bucket's parameters.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        trust_scale: float = 0.382,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
    ) -> None:
        require_not_negative({"learning rate": lr, "weight_decay value": weight_decay, "trust_scale value": trust_scale})
        require_betas(betas)
        if not eps > 0.0:
            raise ValueError(f"Invalid epsilon value: {eps}, must be > 0, since the moments are divided by scales that it keeps from 0")
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "trust_scale": trust_scale}
        super().__init__(params, {**defaults, "maximize": maximize, "foreach": foreach})

    def _initial_state(self, param: Tensor, options: Options) -> State:
        del options
        return {
            "exp_avg": torch.zeros_like(param, dtype=torch.float8_e4m3fn, memory_format=torch.preserve_format),
            "exp_avg_sq": torch.zeros_like(param, dtype=torch.float8_e5m2, memory_format=torch.preserve_format),
            "exp_avg_scale": param.new_ones((), dtype=torch.float32),
            "exp_avg_sq_scale": param.new_ones((), dtype=torch.float32),
        }

    def _update(self, bucket: Bucket) -> None:
        lr, eps, weight_decay, trust_scale = (bucket.options[name] for name in ("lr", "eps", "weight_decay", "trust_scale"))
        directions = _first_moments(bucket)
        torch._foreach_div_(directions, _second_moment_roots(bucket))
        if weight_decay:
            torch._foreach_add_(directions, bucket.params, alpha=weight_decay)
        weights, updates = (torch.stack(_sizes(tensors, eps, 1.0)) for tensors in (bucket.params, directions))
        # Tensors to the end: an lr of 0 gives an infinite trust, clipped to 2, where the float would not divide.
        trust = (weights * _USUAL_LR / (updates * lr)).pow_(trust_scale).clamp_(0.0, 2.0)
        torch._foreach_addcmul_(bucket.params, directions, trust.unbind(), value=-lr)


def _first_moments(bucket: Bucket) -> Tensors:
    """The new m, of which the state keeps a quantised copy."""
    beta1, eps = bucket.options["betas"][0], bucket.options["eps"]
    quantised, scales = bucket.state("exp_avg"), bucket.state("exp_avg_scale")
    moments = _decode(quantised, scales, beta1)
    torch._foreach_add_(moments, bucket.grads, alpha=1 - beta1)
    torch._foreach_copy_(scales, torch._foreach_add(_sizes(moments, 0.0, 10.0), eps))
    scaled = torch._foreach_div(moments, scales)
    torch._foreach_clamp_min_(scaled, -15.0)
    torch._foreach_clamp_max_(scaled, 15.0)
    torch._foreach_copy_(quantised, scaled)
    return moments


def _second_moment_roots(bucket: Bucket) -> Tensors:
    """sqrt(v) + eps for the new v, of which the state keeps a quantised copy."""
    beta2, eps = bucket.options["betas"][1], bucket.options["eps"]
    quantised, scales = bucket.state("exp_avg_sq"), bucket.state("exp_avg_sq_scale")
    squares = _decode(quantised, scales, beta2)
    torch._foreach_addcmul_(squares, bucket.grads, bucket.grads, value=1 - beta2)
    torch._foreach_copy_(scales, torch._foreach_add(_sizes(squares, 0.0, 10.0), eps))
    scaled = torch._foreach_clamp_max(squares, 10.0)
    torch._foreach_div_(scaled, scales)
    torch._foreach_copy_(quantised, scaled)
    torch._foreach_sqrt_(squares)
    torch._foreach_add_(squares, eps)
    return squares


def _decode(quantised: Tensors, scales: Tensors, beta: float) -> Tensors:
    """beta * scale * q, in float32."""
    decoded = [tensor.float() for tensor in quantised]
    torch._foreach_mul_(decoded, torch._foreach_mul(scales, beta))
    return decoded


def _sizes(tensors: Tensors, least: float, most: float) -> Tensors:
    """sqrt(sum(clip(x^2, least, most))) / n, as the norm of clip(|x|, sqrt(least), sqrt(most))."""
    clipped = torch._foreach_abs([tensor.float() for tensor in tensors])
    if least:
        torch._foreach_clamp_min_(clipped, least**0.5)
    torch._foreach_clamp_max_(clipped, most**0.5)
    return torch._foreach_div(torch._foreach_norm(clipped), [float(tensor.numel()) for tensor in tensors])
