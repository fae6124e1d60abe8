"""What an update asks of a tensor that is sharded over ranks (DTensor): one number of it all, and
its largest elements along an axis.

Elementwise work needs no help: a DTensor does it shard by shard.
"""

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor


def whole(scalar: Tensor) -> Tensor:
    """A number worked out from a sharded tensor as one that every rank holds; any other as it
    is.
    """
    return scalar.full_tensor() if is_sharded(scalar) else scalar  # pyright: ignore[reportAttributeAccessIssue]


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of a sharded tensor, in the same memory; any other as it is."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # pyright: ignore[reportAttributeAccessIssue]


def first_element(tensor: Any) -> int:
    """The place, row by row in the whole tensor, of the first element that this rank holds."""
    if not is_sharded(tensor):
        return 0
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    _, offsets = compute_local_shape_and_global_offset(
        tensor.shape, tensor.device_mesh, tensor.placements
    )
    return sum(offset * prod(tensor.shape[axis + 1 :]) for axis, offset in enumerate(offsets))


def over_ranks(found: Tensor, like: Any, combine: Callable[..., Tensor]) -> Tensor:
    """What each rank found on its share of `like`, combined (torch.sum or torch.amax) and given to
    every rank; of any other as it is.
    """
    if not is_sharded(like):
        return found
    from torch.distributed.tensor import DTensor, Partial, Replicate

    share = Partial("sum" if combine is torch.sum else "max")
    parts = [
        placement if isinstance(placement, Replicate) else share for placement in like.placements
    ]
    return DTensor.from_local(found, like.device_mesh, parts, run_check=False).full_tensor()


def is_sharded(tensor: Tensor) -> bool:
    """Whether it is a DTensor, told without importing torch.distributed."""
    return hasattr(tensor, "full_tensor")


def placed_like(tensor: Tensor, other: Tensor) -> Tensor:
    """A sharded tensor laid over the ranks as another is; any other as it is."""
    return tensor.redistribute(placements=other.placements) if is_sharded(tensor) else tensor  # pyright: ignore[reportAttributeAccessIssue]


def largest_along(square: Tensor, axis: int) -> Tensor:
    """The largest elements over every axis but one, the others left at a size of 1; of a shard each
    rank holds what lies along it.
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
    # A rank without rows has nothing above 0, the least that a square is; amax would not say so.
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
