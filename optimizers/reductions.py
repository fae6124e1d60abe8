"""Reductions of many tensors to one number each: few kernels on a device, exact on a CPU.

On a CPU torch's float32 norm adds all elements to a few sums, whose rounding errors grow: of 4e7
normal numbers it misses 0.24 %. torch.sum and compiled sums add pairwise.
"""

# pyright: reportPrivateImportUsage=false

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from .bucket import Tensors
from .sharded import is_sharded, local, over_ranks, sharding

# A CPU's norm of up to _FEW elements is right to 1e-6; larger tensors go by rows of _ROW.
_FEW, _ROW = 2**16, 2**10
# Elements that are widened at once.
_PIECE = 2**20
# A pairwise sum rounds once a level; no tensor has more levels.
_LEVELS = 32


def largest(tensors: Tensors) -> Tensors:
    """Return the largest magnitude of each."""
    if torch.compiler.is_compiling():
        return [tensor.abs().amax() for tensor in tensors]
    if len(tensors) > 1 and not tensors[0].is_cpu:
        return torch._foreach_norm(tensors, float("inf"))
    bounds = [torch.aminmax(tensor) for tensor in tensors]
    return [torch.maximum(-least, most) for least, most in bounds]


def sums(tensors: Tensors) -> Tensors:
    """Return the sum of each tensor; no element may be negative."""
    if len(tensors) > 1 and not tensors[0].is_cpu:
        return torch._foreach_norm(tensors, 1)
    return [tensor.sum() for tensor in tensors]


def l2_norms(tensors: Tensors, dtype: torch.dtype) -> Tensors:
    """Return the L2 norm of each real tensor of one kind, summed in a dtype.

    Sharded tensors (DTensor) are sharded alike. Their norms are those of the whole ones.
    """
    if is_sharded(tensors[0]):
        norms = torch.stack([*l2_norms([local(tensor) for tensor in tensors], dtype)])
        return over_ranks(norms.square(), tensors[0], torch.sum).sqrt().unbind()
    if torch.compiler.is_compiling():
        return [tensor.to(dtype).square().sum().sqrt() for tensor in tensors]
    if not tensors[0].is_cpu:
        return torch._foreach_norm(tensors, dtype=dtype)
    return [_norm_on_cpu(tensor, dtype) for tensor in tensors]


def total_norm(tensors: Iterable[Tensor]) -> Tensor:
    """Return the L2 norm of all elements of one or more tensors, in float32 or wider.

    The result is a 0-dim tensor on the first one's device. Every tensor is read once, without a
    wait for the device. Half precision is summed in float32. The norm of sharded tensors (DTensor)
    is that of the whole ones, the same on every rank.
    """
    alike: defaultdict[tuple[Any, ...], list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        alike[tensor.device, tensor.dtype, *sharding(tensor)].append(tensor)
    norms = [_norm_of_alike(group) for group in alike.values()]
    if len(norms) == 1:
        return norms[0]
    dtype = torch.float64 if any(norm.dtype == torch.float64 for norm in norms) else torch.float32
    return torch.linalg.vector_norm(
        torch.stack([norm.to(norms[0].device, dtype) for norm in norms])
    )


def _norm_of_alike(tensors: list[Tensor]) -> Tensor:
    elements = [each for each in map(_elements, tensors) if each.numel()]
    dtype = torch.promote_types(
        torch.float32, tensors[0].real.dtype if tensors[0].is_complex() else tensors[0].dtype
    )
    norm = (
        torch.linalg.vector_norm(torch.stack(l2_norms(elements, dtype)))
        if elements
        else torch.zeros((), dtype=dtype, device=tensors[0].device)
    )
    return (
        over_ranks(norm.square(), tensors[0], torch.sum).sqrt() if is_sharded(tensors[0]) else norm
    )


def _elements(tensor: Tensor) -> Tensor:
    """Return this rank's elements as a dense real tensor."""
    shard = local(tensor)
    shard = shard.coalesce().values() if shard.is_sparse else shard
    return torch.view_as_real(shard) if shard.is_complex() else shard


def _norm_on_cpu(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if tensor.numel() <= _FEW:
        return torch.linalg.vector_norm(tensor, dtype=dtype)
    if not tensor.is_contiguous():
        return torch.linalg.vector_norm(torch.linalg.vector_norm(tensor, dim=-1, dtype=dtype))
    elements, count = tensor.view(-1), tensor.numel() // _ROW * _ROW
    rows = torch.linalg.vector_norm(elements[:count].view(-1, _ROW), dim=1, dtype=dtype)
    rest = torch.linalg.vector_norm(elements[count:], dtype=dtype)
    return torch.linalg.vector_norm(torch.cat([rows, rest.view(1)]))


def deviation(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the unbiased standard deviation of two or more elements, in a dtype that holds theirs.

    torch.std has the tensor's dtype: in float16 it is 0 below 3e-8, in bfloat16 it is right to
    0.4 %. Half precision is widened in pieces of 4 MiB. A sharded tensor is not gathered.
    """
    if not is_sharded(tensor) and (tensor.dtype == dtype or torch.compiler.is_compiling()):
        return tensor.to(dtype).std()
    shard = local(tensor)
    # Differences from one of the elements are exactly 0 if all are equal.
    least = shard.new_full((), -torch.inf, dtype=dtype)
    first = shard[(0,) * shard.dim()].to(dtype) if shard.numel() else least
    origin = over_ranks(first, tensor, torch.amax)
    total, squares = torch.zeros_like(origin), torch.zeros_like(origin)
    moments: list[tuple[int, Tensor, Tensor]] = []
    for piece in _pieces(shard):
        differences = piece.to(dtype, copy=True).sub_(origin)
        moments.append((piece.numel(), *torch.var_mean(differences, correction=0)))
        total += moments[-1][2] * piece.numel()
    mean = over_ranks(total, tensor, torch.sum) / tensor.numel()
    for count, variance, average in moments:
        squares += (variance + (average - mean).square()) * count
    return (over_ranks(squares, tensor, torch.sum) / (tensor.numel() - 1)).sqrt()


def resolution(tensor: Tensor) -> float:
    """Return the largest `deviation` that equal elements of magnitude 1 may have.

    Their mean is rounded at each level of its sum. In half precision that sum is exact.
    """
    if tensor.dtype in (torch.float16, torch.bfloat16) and not torch.compiler.is_compiling():
        return 0.0
    return _LEVELS * torch.finfo(torch.promote_types(tensor.dtype, torch.float32)).eps


def _pieces(tensor: Tensor) -> list[Tensor]:
    """Return a tensor in pieces, whole rows if not contiguous; an empty one has none."""
    if not tensor.numel():
        return []
    rows = tensor.view(-1) if tensor.is_contiguous() else tensor
    return list(rows.split(max(1, _PIECE * len(rows) // rows.numel())))
