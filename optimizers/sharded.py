"""Reductions of tensors that are sharded over ranks (DTensor): to one number, and along an axis.

Elementwise operations need no help here: a DTensor runs them shard by shard.
"""

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor


def whole(scalar: Tensor) -> Tensor:
    """Return a sharded number as a plain one on every rank, any other tensor unchanged."""
    return scalar.full_tensor() if is_sharded(scalar) else scalar  # pyright: ignore[reportAttributeAccessIssue]


def local(tensor: Tensor) -> Tensor:
    """Return this rank's shard, in the same memory; a tensor that is not sharded unchanged."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # pyright: ignore[reportAttributeAccessIssue]


def first_element(tensor: Any) -> int:
    """Return the flat index, in the whole tensor, of this rank's first element."""
    if not is_sharded(tensor):
        return 0
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    _, offsets = compute_local_shape_and_global_offset(
        tensor.shape, tensor.device_mesh, tensor.placements
    )
    return sum(offset * prod(tensor.shape[axis + 1 :]) for axis, offset in enumerate(offsets))


def over_ranks(number: Tensor, like: Any, combine: Callable[..., Tensor]) -> Tensor:
    """Combine the ranks' numbers of their shards of `like` by torch.sum or torch.amax.

    Every rank gets the result. If `like` is not sharded, the number is returned unchanged.
    """
    if not is_sharded(like):
        return number
    from torch.distributed.tensor import DTensor, Partial, Replicate

    share = Partial("sum" if combine is torch.sum else "max")
    parts = [
        placement if isinstance(placement, Replicate) else share for placement in like.placements
    ]
    return DTensor.from_local(number, like.device_mesh, parts, run_check=False).full_tensor()


def largest_over(numbers: Tensor, like: Any, dimension: int) -> Tensor:
    """Return the largest of the ranks' numbers along one dimension of the mesh of `like`."""
    from torch.distributed.tensor import DTensor, Partial, Replicate

    parts = [
        Partial("max") if each == dimension else Replicate()
        for each in range(like.device_mesh.ndim)
    ]
    return DTensor.from_local(numbers, like.device_mesh, parts, run_check=False).full_tensor()


def sharded_axes(tensor: Any) -> list[int | None]:
    """Return the axis that each dimension of the mesh shards, None for one that replicates."""
    return [getattr(placement, "dim", None) for placement in tensor.placements]


def follows(tensor: Any, other: Any, axis: int) -> bool:
    """Return whether a tensor is sharded along with an axis of a sharded one, and not otherwise.

    The answer is the same on all ranks.
    """
    from torch.distributed.tensor import Replicate, Shard

    wanted = [Shard(axis) if each == Shard(axis) else Replicate() for each in other.placements]
    return (
        all(type(each) in (Shard, Replicate) for each in other.placements)
        and is_sharded(tensor)
        and list(tensor.placements) == wanted
    )


def sharding(tensor: Any) -> tuple[Any, ...]:
    """Return the mesh and the placements of a sharded tensor, nothing for any other."""
    return (tensor.device_mesh, tensor.placements) if is_sharded(tensor) else ()


def is_sharded(tensor: Tensor) -> bool:
    """Return whether a tensor is a DTensor, without importing torch.distributed."""
    return hasattr(tensor, "full_tensor")


def placed_like(tensor: Tensor, other: Tensor) -> Tensor:
    """Return a sharded tensor redistributed as another is, any other tensor unchanged."""
    return tensor.redistribute(placements=other.placements) if is_sharded(tensor) else tensor  # pyright: ignore[reportAttributeAccessIssue]


def largest_along(square: Tensor, axis: int) -> Tensor:
    """Return the maximum over all axes except one, which keep a size of 1.

    The result of a sharded tensor is sharded along with that axis.
    """
    others = [other for other in range(square.dim()) if other != axis]
    if not others:
        return square
    return (
        _largest_of_shards(square, axis, others)
        if is_sharded(square)
        else square.amax(others, keepdim=True)
    )


def _largest_of_shards(square: Any, axis: int, others: list[int]) -> Tensor:
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

    local = square.to_local()
    # A rank without rows contributes 0, the least that a square can be; amax would fail.
    shape = [size if other == axis else 1 for other, size in enumerate(local.shape)]
    largest = local.amax(others, keepdim=True) if local.numel() else local.new_zeros(shape)
    stays = [
        isinstance(placement, Replicate) or placement == Shard(axis)
        for placement in square.placements
    ]
    parts = [
        placement if keeps else Partial("max")
        for placement, keeps in zip(square.placements, stays, strict=True)
    ]
    size = torch.Size([size if other == axis else 1 for other, size in enumerate(square.shape)])
    joined = DTensor.from_local(
        largest, square.device_mesh, parts, run_check=False, shape=size, stride=(1,) * len(size)
    )
    return joined.redistribute(
        placements=[
            part if keeps else Replicate() for part, keeps in zip(parts, stays, strict=True)
        ]
    )
