"""SM3: adaptive steps from one accumulator per axis.

An (m, n) weight keeps m + n numbers instead of Adam's 2mn. Algorithm SM3-II of "Memory-Efficient
Adaptive Optimization", https://arxiv.org/abs/1901.11150. For a parameter w of k axes with gradient
g and accumulators mu_1 .. mu_k, squares and roots taken element by element:

    nu   = min_i mu_i + g^2                           beta = 0: squares add up
    nu   = beta min_i mu_i + (1 - beta) g^2           beta > 0: squares are averaged
    mu_i = max of nu over every axis but i
    u    = g / sqrt(nu + eps)
    b    <- momentum b + (1 - momentum) u             with momentum, b takes the place of u
    w    <- w - lr u
"""

# pyright: reportPrivateImportUsage=false

import ctypes
from collections.abc import Collection
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from . import fused
from .arguments import require_fraction, require_not_negative
from .bucket import Bucket, Options, State, add_number, add_squares, average, descend, is_nonzero
from .loading import Shapes
from .multi_tensor import MultiTensorOptimizer
from .sharded import along, is_sharded, joined_along, largest_along, local

_ROWS = 32
_KERNELS = Path(__file__).with_suffix(".cpp")


class _Numbers(ctypes.Structure):
    """The kernel's numbers, by their names in the C++ source."""

    _fields_ = tuple((name, ctypes.c_double) for name in ("lr", "momentum", "kept", "taken", "eps"))


class SM3(MultiTensorOptimizer):
    """Adagrad with its sums of squares kept per row, per column, and so on, never per element.

    The state is `accumulator_0` .. `accumulator_{k-1}` of shape [1, .., d_i, .., 1], or one scalar
    if there is no axis. They are float32 or wider: sums of squares stop growing in half precision.
    With momentum there is also `momentum_buffer`, like the parameter. With beta > 0 the
    accumulators forget, as the authors define it; those of torch-SM3 never do, because it takes the
    maximum with the old ones. NaN never wins a maximum, so it stays in its coordinate.

    A sparse gradient of rows, such as an embedding's, updates only those rows: other rows keep
    their weights and their accumulator, with beta > 0 too, and momentum is not applied. A parameter
    whose first gradient is sparse has only the accumulator of its rows. After a dense one, such as
    the zero gradients with which torch.distributed.checkpoint steps before training, it has those
    of all axes. A step needs one float32 temporary as large as the bucket's parameters, and in half
    precision with momentum a copy of it in that precision. A `fused` step needs none.
    """

    takes_sparse = True
    sees_axes = True
    kernels = "sm3"

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.1,
        momentum: float = 0.0,
        beta: float = 0.0,
        eps: float = 1e-30,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        compiled: bool = False,
        fused: bool = False,
    ) -> None:
        require_not_negative({"learning rate": lr, "epsilon value": eps})
        require_fraction({"momentum value": momentum, "beta value": beta})
        defaults = {"lr": lr, "momentum": momentum, "beta": beta, "eps": eps}
        super().__init__(
            params,
            {
                **defaults,
                "maximize": maximize,
                "foreach": foreach,
                "compiled": compiled,
                "fused": fused,
            },
        )

    def _initial_state(self, param: Tensor, options: Options) -> State:
        del options
        axes = max(param.dim(), 1)
        if param.grad is not None and param.grad.is_sparse:
            axes = 1
        return {f"accumulator_{axis}": _zeros_along(param, axis) for axis in range(axes)}

    def _shapes(self, param: Tensor, options: Options) -> Shapes:
        del options
        axes = range(max(param.dim(), 1))
        return {
            **{f"accumulator_{axis}": _along(param, axis) for axis in axes},
            "momentum_buffer": param.shape,
        }

    def _required(self, param: Tensor, options: Options, names: Collection[str]) -> set[str]:
        covers = {f"accumulator_{axis}" for axis in range(max(param.dim(), 1))}
        if param.dim() < 2 or not covers & {*names} - {"accumulator_0"}:
            # All its gradients may have been sparse.
            return {"accumulator_0"}
        return covers | {"momentum_buffer"} if options["momentum"] else covers

    def _prepare(self, bucket: Bucket) -> Bucket:
        """Make the missing momentum buffers, and shard accumulators along with their axes."""
        for param, state in zip(bucket.params, bucket.states, strict=True):
            if is_sharded(param):
                _shard_cover(state, param)
        if bucket.options["momentum"] and not bucket.grads[0].is_sparse:
            for param, state in zip(bucket.params, bucket.states, strict=True):
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(
                        param, memory_format=torch.preserve_format
                    )
        return bucket

    def _update(self, bucket: Bucket) -> None:
        if bucket.grads[0].is_sparse:
            _update_rows(
                bucket.params[0],
                bucket.grads[0],
                _cover(bucket.states[0], bucket.params[0]),
                bucket.options,
            )
            return
        lr, momentum, eps = (bucket.options[name] for name in ("lr", "momentum", "eps"))
        params, grads = (
            [local(each) for each in tensors] for tensors in (bucket.params, bucket.grads)
        )
        covers = [
            [local(each) for each in _cover(state, param)]
            for state, param in zip(bucket.states, bucket.params, strict=True)
        ]
        squares = [
            _smallest(cover, param.shape) for cover, param in zip(covers, params, strict=True)
        ]
        _take_in(squares, grads, bucket.options["beta"])
        for cover, square, whole in zip(covers, squares, bucket.params, strict=True):
            for axis, accumulator in enumerate(cover):
                largest = (
                    _largest_in_columns(square)
                    if torch.compiler.is_compiling() and axis == 1 and not is_sharded(whole)
                    else largest_along(square, axis, whole)
                )
                accumulator.copy_(largest)

        add_number(squares, eps)
        torch._foreach_rsqrt_(squares)
        torch._foreach_mul_(squares, grads)
        directions = squares
        if is_nonzero(momentum):
            directions = [local(each) for each in bucket.state("momentum_buffer")]
            average(directions, squares, 1 - momentum)
        descend(params, directions, lr)

    def _fits_kernel(self, param: Tensor, state: State) -> bool:
        # A parameter whose first gradient was sparse has only the accumulator of its rows.
        cover = _cover(state, param)
        return [each.numel() for each in cover] == list(param.shape or [1]) and state.get(
            "momentum_buffer", param
        ).shape == param.shape

    def _update_fused(self, bucket: Bucket) -> None:
        lr, momentum, beta, eps = (
            float(bucket.options[name]) for name in ("lr", "momentum", "beta", "eps")
        )
        numbers = _Numbers(lr=lr, momentum=momentum, kept=beta or 1.0, taken=1 - beta, eps=eps)
        for param, grad, state in zip(bucket.params, bucket.grads, bucket.states, strict=True):
            cover = _cover(state, param)
            covers, sizes = (ctypes.c_void_p * len(cover))(), (ctypes.c_int64 * len(cover))()
            covers[:], sizes[:] = (
                [each.data_ptr() for each in cover],
                [each.numel() for each in cover],
            )
            update = fused.kernel(_KERNELS, "update", param.dtype)
            update(
                *fused.addresses(param, grad, state["momentum_buffer"] if momentum else None),
                covers,
                sizes,
                ctypes.c_int64(len(cover)),
                ctypes.byref(numbers),
                fused.threads(param),
            )


def _update_rows(param: Tensor, grad: Tensor, cover: list[Tensor], options: Options) -> None:
    """Update the rows of a sparse gradient as a dense one does whose other rows are 0."""
    if grad.sparse_dim() != 1:
        raise RuntimeError(
            "SM3 takes sparse gradients of rows, with one sparse dimension; got one with"
            f" {grad.sparse_dim()}"
        )
    grad = grad.coalesce()
    rows, values = grad.indices()[0], grad.values()
    if not len(rows):
        return
    squares = [_smallest([cover[0][rows], *cover[1:]], values.shape)]
    _take_in(squares, [values], options["beta"])
    cover[0][rows] = largest_along(squares[0], 0)
    for axis, accumulator in enumerate(cover[1:], 1):
        torch.maximum(accumulator, largest_along(squares[0], axis), out=accumulator)
    param.index_add_(
        0, rows, (values * (squares[0] + options["eps"]).rsqrt_() * -options["lr"]).to(param.dtype)
    )


def _take_in(squares: list[Tensor], grads: list[Tensor], beta: float) -> None:
    """Add the squares of the gradients, NaN as 0."""
    if is_nonzero(beta):
        torch._foreach_mul_(squares, beta)
    add_squares(squares, grads, 1 - beta)
    for square in squares:
        if torch.compiler.is_compiling():
            # Several times faster than nan_to_num in compiled code, and several times slower here.
            square.masked_fill_(square != square, 0.0)
        else:
            square.nan_to_num_(nan=0.0, posinf=torch.inf)


def _largest_in_columns(square: Tensor) -> Tensor:
    """Return the maximum of each column, of a matrix by blocks of rows.

    Compiled code would otherwise read each column through all of the memory.
    """
    rows = square.shape[0]
    blocks = rows // _ROWS
    if square.dim() != 2 or not blocks:
        return largest_along(square, 1)
    largest = square[: blocks * _ROWS].view(blocks, _ROWS, -1).amax(1).amax(0, keepdim=True)
    return (
        largest
        if rows % _ROWS == 0
        else torch.maximum(largest, square[blocks * _ROWS :].amax(0, keepdim=True))
    )


def _cover(state: State, param: Tensor) -> list[Tensor]:
    """Return the accumulators, by axis."""
    keys = [f"accumulator_{axis}" for axis in range(max(param.dim(), 1))]
    return [state[key] for key in keys if key in state]


def _along(param: Tensor, axis: int) -> tuple[int, ...]:
    """Return the shape of an accumulator."""
    return tuple(size if each == axis else 1 for each, size in enumerate(param.shape))


def _zeros_along(param: Tensor, axis: int) -> Tensor:
    """Return an accumulator of zeros, sharded as the parameter's axis is."""
    dtype = torch.promote_types(param.dtype, torch.float32)
    if not is_sharded(param):
        return torch.zeros_like(
            largest_along(param.detach(), axis), dtype=dtype, memory_format=torch.contiguous_format
        )
    part = torch.zeros(_along(local(param), axis), dtype=dtype, device=param.device)
    return joined_along(part, param, axis)


def _shard_cover(state: State, param: Tensor) -> None:
    """Shard accumulators along with their axes, if a checkpoint has placed them otherwise."""
    cover: list[Any] = _cover(state, param)
    for axis, each in enumerate(cover):
        if is_sharded(each) and each.placements != (placements := along(param, axis)):
            state[f"accumulator_{axis}"] = each.redistribute(placements=placements)


def _smallest(cover: list[Tensor], shape: torch.Size) -> Tensor:
    """Return a new tensor of the smallest accumulator that covers each element."""
    return reduce(
        torch.minimum, cover[1:], cover[0].expand(shape).clone() if len(cover) == 1 else cover[0]
    )
