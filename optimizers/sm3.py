"""SM3: adaptive steps from one accumulator per axis.

An (m, n) weight keeps m + n numbers instead of Adam's 2mn. Algorithm SM3-II of "Memory-Efficient Adaptive Optimization",
https://arxiv.org/abs/1901.11150.
For a parameter w of k axes with gradient g and accumulators mu_1 .. mu_k, squares and roots taken element by element:

    nu   = min_i mu_i + g^2                           beta = 0: squares add up
    nu   = beta min_i mu_i + (1 - beta) g^2           beta > 0: squares are averaged
    mu_i = max of nu over every axis but i
    u    = g / sqrt(nu + eps)
    b    <- momentum b + (1 - momentum) u             with momentum, b takes the place of u
    w    <- w - lr u
"""

# pyright: reportPrivateImportUsage=false

from functools import reduce

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from .multi_tensor import Bucket, MultiTensorOptimizer, Options, State, require_fraction, require_not_negative


class SM3(MultiTensorOptimizer):
    """Adagrad with its sums of squares kept per row, per column, and so on, never per element.

    Keeps `accumulator_0` .. `accumulator_{k-1}` of shape [1, .., d_i, .., 1], one scalar where there is no axis; in float32 or wider, since
    sums of squares stop growing in half precision. With momentum also `momentum_buffer`, like the parameter.
    With beta > 0 the accumulators forget, as the authors define it; torch-SM3 takes the maximum with the old ones and never does.
    A step holds one float32 temporary as large as the bucket's parameters, and for half precision with momentum a copy of it in that.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.1,
        momentum: float = 0.0,
        beta: float = 0.0,
        eps: float = 1e-30,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
    ) -> None:
        require_not_negative({"learning rate": lr, "epsilon value": eps})
        require_fraction({"momentum value": momentum, "beta value": beta})
        defaults = {"lr": lr, "momentum": momentum, "beta": beta, "eps": eps, "maximize": maximize, "foreach": foreach}
        super().__init__(params, defaults)

    def _initial_state(self, param: Tensor, options: Options) -> State:
        dtype = torch.promote_types(param.dtype, torch.float32)
        state = {key: param.new_zeros(shape, dtype=dtype) for key, shape in _cover_shapes(param).items()}
        if options["momentum"]:
            state["momentum_buffer"] = torch.zeros_like(param, memory_format=torch.preserve_format)
        return state

    def _update(self, bucket: Bucket) -> None:
        lr, momentum, beta, eps = (bucket.options[name] for name in ("lr", "momentum", "beta", "eps"))
        covers = [[state[key] for key in _cover_shapes(param)] for param, state in zip(bucket.params, bucket.states, strict=True)]
        squares = [_smallest(cover) for cover in covers]
        if beta:
            torch._foreach_mul_(squares, beta)
        torch._foreach_addcmul_(squares, bucket.grads, bucket.grads, value=1 - beta)
        for cover, square in zip(covers, squares, strict=True):
            for axis, accumulator in enumerate(cover):
                accumulator.copy_(_largest_along(square, axis))

        torch._foreach_add_(squares, eps)
        torch._foreach_rsqrt_(squares)
        torch._foreach_mul_(squares, bucket.grads)
        directions = squares
        if momentum:
            directions = bucket.state("momentum_buffer")
            torch._foreach_lerp_(directions, [new.to(old.dtype) for new, old in zip(squares, directions, strict=True)], 1 - momentum)
        torch._foreach_add_(bucket.params, directions, alpha=-lr)


def _cover_shapes(param: Tensor) -> dict[str, list[int]]:
    """The accumulators by name: one an axis, of shape [1, .., d_i, .., 1]; a scalar where there is no axis."""
    if param.dim() == 0:
        return {"accumulator_0": []}
    return {f"accumulator_{axis}": [size if other == axis else 1 for other in range(param.dim())] for axis, size in enumerate(param.shape)}


def _smallest(cover: list[Tensor]) -> Tensor:
    """A new tensor of the parameter's shape: for each element the smallest accumulator that covers it."""
    return reduce(torch.minimum, cover[1:], cover[0].clone())


def _largest_along(square: Tensor, axis: int) -> Tensor:
    others = [other for other in range(square.dim()) if other != axis]
    return square.amax(others, keepdim=True) if others else square
